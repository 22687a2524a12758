"""Python runs this file at its start if PYTHONPATH names the folder: it wraps steps and poisons of a service."""

import os
import sys

if sys.orig_argv[-1].startswith("services."):
    service = sys.orig_argv[-1].removeprefix("services.")
    if "FAULTS_ORDERS" in os.environ:
        from tests.faults import steps

        steps.arm(service)
    if "FAULTS_POISONS" in os.environ:
        from tests.faults import poison

        poison.arm(service)
    if "FAULTS_LOOPS" in os.environ:
        from tests.faults import loop_watch

        loop_watch.arm(service)
