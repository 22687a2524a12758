"""Found by every Python whose PYTHONPATH names this folder: makes a service of ours die where the driver says so."""

import os
import sys

if "FAULTS_ORDERS" in os.environ and sys.orig_argv[-1].startswith("services."):
    from tests.faults import steps

    steps.arm(sys.orig_argv[-1].removeprefix("services."))
