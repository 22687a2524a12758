"""The two kinds of failure that the services tell apart.

Whatever a library raises is wrapped into one of these where it is called, with ``raise … from``.
In doubt a failure is temporary: trying again loses nothing, giving up may. A fault of ours is neither.
"""

MAX_FAILURES = 5
"""After so many faults of ours a mail is parked."""


class Temporary(Exception):
    """It may work later: try again after a pause."""


class Permanent(Exception):
    """It will not work: tell the author, or park the mail."""
