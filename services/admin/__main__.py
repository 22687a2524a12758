"""Start of the command line ``mailgroup``."""

import atexit
import gc
import sys

# A short command makes little garbage, but searches for it among all that its imports made, and once more at its end.
gc.set_threshold(200_000)  # objects; the console, which stays, sets its own
atexit.register(gc.freeze)

from services.admin.cli import app, completion  # noqa: E402  # the imports are what this is for

if __name__ == "__main__":
    completion.prepare()
    app.run(sys.argv[1:])
