"""Reads the human texts of refusals, which POP3 and IMAP servers have in common. Pure."""

from __future__ import annotations

import re

SHOWN_CHARACTERS = 120
"""Length of a reply line in texts: characters."""

_SERVER_FAULT = re.compile(
    r"(too many|max(imum|\.)?|limit)\b.{0,40}\b(connection|session|client|simultaneous|concurrent)|"
    r"(connection|session)s? (limit|exceed)|"
    r"internal\b.{0,20}\b(error|failure|problem)|(server|system|backend|proxy|database|i/o) (error|failure|problem)|"
    r"authenticated but not connected|temporar\w* .{0,20}(auth\w*|login) .{0,10}(fail|error)|"
    r"temporar\w* (error|failure|problem|unavailable)|"
    r"(auth\w*|login) (server|service|backend)\b.{0,30}\b(unavailable|down)|"
    r"unable to (contact|connect|reach)|(bandwidth|command) limit",
    re.IGNORECASE,
)
"""Known forms of "too many connections" and "internal error", which may name the user: Dovecot (Maximum number of
connections from user+IP exceeded; Internal error occurred; Temporary authentication failure), Gmail (Too many
simultaneous connections; Account exceeded command or bandwidth limits), Yahoo (Server error), Exchange (User is
authenticated but not connected), Courier (Temporary problem; Maximum connection limit reached), nginx (internal server
error)."""
_WRONG = re.compile(
    r"(invalid|incorrect|wrong|bad|failed|unsuccessful|unknown)\b.{0,20}\b(pass|user|login|log-?on|auth|credential|attempt)",
    re.IGNORECASE,
)
"""Words of wrong credentials, also beside those above: "Too many bad auth attempts from this session"."""
_TEMPORARY_TEXT = re.compile(
    r"try (again|later)|temporar|login limit|too many|too (often|frequent)|rate limit|throttl|lock busy|"
    r"(already|is|unable to|cannot|could not) lock|(mailbox|maildrop|mail drop) (is )?(in use|busy)|in use by another|"
    r"(server|service|system) (is )?(busy|unavailable|down)",
    re.IGNORECASE,
)
"""Texts of temporary refusals without a response code: "Exceeded the login limit for a 15 minute period" and "Server
Unavailable. 15" (Microsoft), "lock busy! Is another session active?"."""
_ABOUT_THE_USER = re.compile(r"password|credential|user ?name|account|disabled|\bauth", re.IGNORECASE)


def trim(line: bytes) -> str:
    """Return a reply line for texts: printable and short."""
    text = line[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:SHOWN_CHARACTERS]


def sounds_temporary(text: str) -> bool:
    """Whether the text of a refusal without a response code, as ``trim`` returns it, says that it may pass."""
    if _WRONG.search(text):
        return False
    return bool(_SERVER_FAULT.search(text) or (_TEMPORARY_TEXT.search(text) and not _ABOUT_THE_USER.search(text)))
