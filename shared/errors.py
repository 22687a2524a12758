"""The two kinds of failure that the services distinguish, and the error of a wrong setting.

An exception of a library is wrapped into one of these where the library is called, with ``raise … from``. In doubt a
failure is temporary: a retry loses nothing, a permanent failure may. A bug of ours is neither.
"""

MAX_FAILURES = 5
"""Unexpected exceptions for one mail before it is parked."""


class Temporary(Exception):
    """A failure that may pass: retry after a pause."""


class Permanent(Exception):
    """A failure that will not pass: notify the author, or park the mail."""


class SettingsError(ValueError):
    """A setting has an invalid value. The message names the setting, the value and the allowed values."""
