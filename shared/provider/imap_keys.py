"""Keys of the ledger for mails that are fetched by IMAP. Pure."""

from __future__ import annotations

import hashlib
import urllib.parse

from shared.imap.names import is_inbox

KEY_CHARACTERS = 160
"""Longest name of a folder in a key: characters; a longer one is replaced by its digest."""

_SAFE = "/+,=@&()!*'#$;"
"""Characters of a name that are themselves in a key, beside letters, digits and ``_.-~``."""


def folder_key(name: str, uidvalidity: int) -> str:
    """Return the beginning of the ledger's keys of a folder's mails. The UID follows.

    At most 180 characters of printable ASCII without blanks. Two folders, and a folder before and after a change of
    its UIDVALIDITY, never have the same one.
    """
    coded = "INBOX" if is_inbox(name) else urllib.parse.quote(name, safe=_SAFE)
    if len(coded) > KEY_CHARACTERS:
        coded = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    return f"{coded}:{uidvalidity}:"
