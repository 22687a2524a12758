"""Decides whether the author may use the sender addresses of a mail. Pure functions over the header section."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

from services.smtp_in.data_reader import SmtpRefusal, Values
from services.smtp_in.recipient_policy import Directory
from shared.mime.addresses import fold_address
from shared.mime.headers import MAX_HOPS, mailboxes, message_ids
from shared.model import Local

_ID = re.compile(r"\s*<([!-;=?A-~]+@[!-;=?A-~]+)>\s*")
_ANGLE = re.compile(rb"<[^<>]*>?")
MESSAGE_ID_OCTETS = 500
"""Longest Message-ID that is kept."""
MAX_MESSAGE_ID_FIELD = 4 * MESSAGE_ID_OCTETS
"""Longest value of the field Message-ID that is parsed, with blanks and line ends: octets."""

ORIGINATOR_OCTETS = 10_000
"""Longest values of all From, Sender and Resent-From fields together: octets. They hold a few mailboxes, and each
mailbox takes processor time: with a header of 1 MiB it would be a second, in which no other session is served."""

_NOT_YOURS = "Sender address refused: it is neither yours nor your external account's"


NO_REDIRECT = SmtpRefusal(
    550,
    "5.7.1",
    "From: it is not yours. Only a mail that you received can be redirected, unchanged and with your own address in "
    "Resent-From; forward it instead",
)


def check_envelope(directory: Directory, author: Local, address: str) -> SmtpRefusal | None:
    """Check MAIL FROM: '' (``<>``, a read receipt), or an address of the author or of the external account."""
    if address and fold_address(address) not in directory.addresses_of(author):
        return SmtpRefusal(550, "5.7.1", _NOT_YOURS)
    return None


def check_header(directory: Directory, author: Local, header: Values) -> SmtpRefusal | None:
    """Check From, Sender, Resent-From and Received.

    From: at most one field, which contains only mailboxes of the author or of the external account, unless the mail is
    redirected (``redirected_id``). Without the field, one is added later. Sender and Resent-From: any address but that
    of another local account. Received: too many fields are a mail loop (RFC 5321 section 6.3).
    """
    if len(header.get("received", [])) > MAX_HOPS:
        return SmtpRefusal(554, "5.4.6", f"A mail loop: more than {MAX_HOPS} servers have passed it on")
    own = directory.addresses_of(author)
    from_fields, resent_fields = header.get("from", []), header.get("resent-from", [])
    sender_fields = header.get("sender", [])
    if len(from_fields) > 1:
        return SmtpRefusal(550, "5.7.1", "There is more than one From field")
    if sum(map(len, (*from_fields, *sender_fields, *resent_fields))) > ORIGINATOR_OCTETS:
        return SmtpRefusal(550, "5.6.0", f"From, Sender and Resent-From are longer than {ORIGINATOR_OCTETS} octets")
    for value in from_fields:
        boxes = mailboxes(value)
        if not boxes or _outside_spans(value, [(box.start, box.end) for box in boxes]).strip(b" \t\r\n,"):
            return SmtpRefusal(550, "5.6.0", "The From field cannot be read")
        beside = mailboxes(_ANGLE.sub(b" ", value))  # some programs read any word with an @ as the address
        foreign = {fold_address(box.address) for box in boxes + beside} - own
        if foreign and not resent_fields:
            return SmtpRefusal(550, "5.7.1", f"From: {_NOT_YOURS}")
        if foreign and (any(directory.is_ours(address) for address in foreign) or not _resends(own, header)):
            return NO_REDIRECT
    if _names_another(directory, own, [box.address for value in sender_fields for box in mailboxes(value)]):
        return SmtpRefusal(550, "5.7.1", "Sender: this is the address of somebody else here")
    if _names_another(directory, own, [box.address for value in resent_fields for box in mailboxes(value)]):
        return SmtpRefusal(550, "5.7.1", "Resent-From: this is the address of somebody else here")
    return None


def redirected_id(directory: Directory, author: Local, header: Values) -> str | None:
    """Return the Message-ID of the mail that an accepted header redirects, None if the author has written the mail.

    The mail has to be one that was delivered to the author, which the caller checks.
    """
    own = directory.addresses_of(author)
    written = all(fold_address(box.address) in own for value in header.get("from", []) for box in mailboxes(value))
    return None if written else valid_message_id(header)


def _resends(own: AbstractSet[str], header: Values) -> bool:
    """Return whether Resent-From names the author alone, and the redirected mail has a valid Message-ID."""
    boxes = [box for value in header.get("resent-from", []) for box in mailboxes(value)]
    return bool(boxes) and {fold_address(box.address) for box in boxes} <= own and valid_message_id(header) is not None


def _names_another(directory: Directory, own: AbstractSet[str], addresses: list[str]) -> bool:
    folded = set(map(fold_address, addresses))
    return any(address in directory.locals for address in folded - own)


def _outside_spans(value: bytes, spans: list[tuple[int, int]]) -> bytes:
    """The octets of the value outside of these spans: another program might read a mailbox there."""
    position, rest = 0, b""
    for start, end in spans:
        rest += value[position:start]
        position = max(position, end)
    return rest + value[position:]


def valid_message_id(header: Values) -> str | None:
    """The Message-ID without angle brackets; None unless there is one field with one well-formed ``<local@domain>``."""
    values = header.get("message-id", [])
    if len(values) != 1 or len(values[0]) > MAX_MESSAGE_ID_FIELD:
        return None
    match = _ID.fullmatch(values[0].decode("ascii", "replace"))
    if match is None or len(match[1]) > MESSAGE_ID_OCTETS or message_ids(values[0]) != [match[1]]:
        return None
    return match[1]
