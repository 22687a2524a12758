"""DSN parameters of MAIL and RCPT (RFC 3461), by which an author requests notices about the delivery. Pure.

They are stored, and forwarded to a server that announces DSN, as text: ``RET=HDRS ENVID=a+2Bb`` of a mail,
``NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;ann@customer.org`` of a recipient; None without parameters. Invalid parameters are
refused at submission.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

Action = Literal["failed", "delayed", "delivered", "relayed"]
"""The Action field of a notice (RFC 3464 section 2.3.3)."""

ENVID_CHARACTERS = 100  # RFC 3461 section 4.4
ORCPT_CHARACTERS = 500  # RFC 3461 section 4.2

_NOTIFY_WORDS: dict[Action, str] = {
    "failed": "FAILURE",
    "delayed": "DELAY",
    "delivered": "SUCCESS",
    "relayed": "SUCCESS",
}
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+"
_XTEXT_ALONE = re.compile(_XTEXT)
# With type utf-8 (RFC 6533 section 3), ORCPT may contain letters beyond ASCII, or \x{...} for them, as valid xtext.
_ORCPT = re.compile(
    rf"[A-Za-z0-9-]{{1,40}};{_XTEXT}|(?i:utf-8);(?:[!-*,-<>-~\u00a1-\ud7ff\ue000-\U0010ffff]|\+[0-9A-F]{{2}})+"
)
_ENCODED = re.compile(r"\+([0-9A-F]{2})")
_PARAMETER = re.compile(r"(\w+)=(\S+)")


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
"""Readers of the parameters: each takes a value and returns its stored form, or None for an invalid value."""


def format_parameters(parameters: Sequence[tuple[str, str]]) -> str | None:
    """Return the stored text of parameters that ``OF_MAIL`` or ``OF_RECIPIENT`` have read."""
    return " ".join(f"{name}={value}" for name, value in parameters) or None


def is_notice_wanted(dsn_params: str | None, action: Action) -> bool:
    """Whether to send a notice about a recipient. Without NOTIFY: for failures and delays (section 4.1)."""
    notify = _value(dsn_params, "NOTIFY")
    if notify is None:
        return action in ("failed", "delayed")
    return _NOTIFY_WORDS[action] in notify.split(",")


def is_whole_wanted(dsn_params: str | None) -> bool:
    """Whether a failure notice has to return the whole mail. :param dsn_params: of the mail."""
    return _value(dsn_params, "RET") == "FULL"


def envelope_id(dsn_params: str | None) -> str | None:
    """Return the ENVID that the author's mail client chose, in printable characters."""
    envid = _value(dsn_params, "ENVID")
    return None if envid is None else _decoded(envid)


def original_recipient(dsn_params: str | None) -> str | None:
    """Return the value of the field Original-Recipient: type, semicolon, address, in printable characters."""
    orcpt = _value(dsn_params, "ORCPT")
    if orcpt is None:
        return None
    kind, _, address = orcpt.partition(";")
    return f"{kind};{_decoded(address)}"


def format_for_server(dsn_params: str | None, utf8: bool) -> bytes:
    """Return the parameters after the path in MAIL or RCPT. :param utf8: the server announces SMTPUTF8."""
    if dsn_params is None:
        return b""
    if not dsn_params.isascii() and not utf8:  # only ORCPT can contain such letters, and no delivery depends on it
        dsn_params = " ".join(part for part in dsn_params.split(" ") if part.isascii())
    return b" " + dsn_params.encode() if dsn_params else b""


def _value(dsn_params: str | None, name: str) -> str | None:
    return dict(_PARAMETER.findall(dsn_params)).get(name) if dsn_params else None


def _decoded(xtext: str) -> str:
    octets = _ENCODED.sub(lambda match: chr(int(match[1], 16)), xtext)
    return "".join(character if character.isprintable() else "?" for character in octets)
