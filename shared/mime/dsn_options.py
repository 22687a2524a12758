"""What the author of a mail asked to be told about its delivery (RFC 3461), as parameters of MAIL and RCPT.

What was asked is kept, and passed on to a server that announces DSN, as the text of the parameters: ``RET=HDRS
ENVID=a+2Bb`` of a mail, ``NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;ann@customer.org`` of a recipient; None is nothing.
Pure functions; whatever does not keep to the grammar is refused where it comes in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

Action = Literal["failed", "delayed", "delivered", "relayed"]
"""What is told of a recipient (RFC 3464 section 2.3.3)."""

ENVID_CHARACTERS = 100  # RFC 3461 section 4.4
ORCPT_CHARACTERS = 500  # RFC 3461 section 4.2

_WORDS: dict[Action, str] = {
    "failed": "FAILURE",
    "delayed": "DELAY",
    "delivered": "SUCCESS",
    "relayed": "SUCCESS",
}
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+"
_XTEXT_ALONE = re.compile(_XTEXT)
# Of the type utf-8 (RFC 6533 section 3) it may hold letters beyond ASCII, or \x{...} for them, which xtext has as well.
_ORCPT = re.compile(
    rf"[A-Za-z0-9-]{{1,40}};{_XTEXT}|(?i:utf-8);(?:[!-*,-<>-~\u00a1-\ud7ff\ue000-\U0010ffff]|\+[0-9A-F]{{2}})+"
)
_ENCODED = re.compile(r"\+([0-9A-F]{2})")
_ASKED = re.compile(r"(\w+)=(\S+)")


def _ret(value: str) -> str | None:
    return value.upper() if value.upper() in ("FULL", "HDRS") else None


def _envid(value: str) -> str | None:
    return value if len(value) <= ENVID_CHARACTERS and _XTEXT_ALONE.fullmatch(value) else None


def _notify(value: str) -> str | None:
    words = value.upper().split(",")
    if words != ["NEVER"] and not set(words) <= {"SUCCESS", "FAILURE", "DELAY"}:
        return None
    return ",".join(dict.fromkeys(words))


def _orcpt(value: str) -> str | None:
    return value if len(value) <= ORCPT_CHARACTERS and _ORCPT.fullmatch(value) else None


_Reader = Callable[[str], str | None]
OF_MAIL: dict[str, _Reader] = {"RET": _ret, "ENVID": _envid}
OF_RECIPIENT: dict[str, _Reader] = {"NOTIFY": _notify, "ORCPT": _orcpt}
"""The parameters: each takes a value and returns it as it is kept, or None for what is not allowed."""


def format_parameters(parameters: Sequence[tuple[str, str]]) -> str | None:
    """What is kept of parameters that were read by ``OF_MAIL`` or ``OF_RECIPIENT``."""
    return " ".join(f"{name}={value}" for name, value in parameters) or None


def is_notice_wanted(dsn_params: str | None, action: Action) -> bool:
    """Whether a notice is to be sent about a recipient. Nothing asked: of failures and delays (section 4.1)."""
    found = _value(dsn_params, "NOTIFY")
    if found is None:
        return action in ("failed", "delayed")
    return _WORDS[action] in found.split(",")


def is_whole_wanted(dsn_params: str | None) -> bool:
    """Whether a notice of failure is to return the mail as a whole; ``dsn_params`` of the mail."""
    return _value(dsn_params, "RET") == "FULL"


def envelope_id(dsn_params: str | None) -> str | None:
    """The id that the author's program gave the envelope, in printable characters."""
    found = _value(dsn_params, "ENVID")
    return None if found is None else _decoded(found)


def original_recipient(dsn_params: str | None) -> str | None:
    """For the field Original-Recipient: type, semicolon, address, in printable characters."""
    found = _value(dsn_params, "ORCPT")
    if found is None:
        return None
    kind, _, address = found.partition(";")
    return f"{kind};{_decoded(address)}"


def format_for_server(dsn_params: str | None, utf8: bool) -> bytes:
    """What stands behind the path in MAIL or RCPT to a server that announces DSN. utf8: it takes SMTPUTF8, too."""
    if dsn_params is None:
        return b""
    if not dsn_params.isascii() and not utf8:  # only ORCPT can hold that, and no mail depends on it
        dsn_params = " ".join(part for part in dsn_params.split(" ") if part.isascii())
    return b" " + dsn_params.encode() if dsn_params else b""


def _value(dsn_params: str | None, name: str) -> str | None:
    return dict(_ASKED.findall(dsn_params)).get(name) if dsn_params else None


def _decoded(xtext: str) -> str:
    octets = _ENCODED.sub(lambda found: chr(int(found[1], 16)), xtext)
    return "".join(character if character.isprintable() else "?" for character in octets)
