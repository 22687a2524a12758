"""Responses with data of the server and of mailboxes (RFC 3501 sections 7.2 and 7.3, RFC 9051 section 7.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from services.imap_out.number_sets import format_numbers
from services.imap_out.responses.strings import astring, flag_list, mailbox, nstring, string

DELIMITER = "/"
"""Between the levels of a mailbox's name."""
NUMBERS_PER_PIECE = 4_000
"""Numbers of a long response that are formatted at once: about a millisecond."""


def capabilities(names: Iterable[str]) -> bytes:
    """Format CAPABILITY (RFC 3501 section 7.2.1)."""
    return b"* CAPABILITY %b\r\n" % " ".join(names).encode("ascii")


def enabled(names: Iterable[str]) -> bytes:
    """Format ENABLED (RFC 5161 section 3.2)."""
    return " ".join(("* ENABLED", *names)).encode("ascii") + b"\r\n"


def server_id(fields: Mapping[str, str | None]) -> bytes:
    """Format ID (RFC 2971 section 3.2). :param fields: none: NIL."""
    if not fields:
        return b"* ID NIL\r\n"
    pairs = (
        string(name.encode()) + b" " + nstring(value.encode() if value is not None else None)
        for name, value in fields.items()
    )
    return b"* ID (%b)\r\n" % b" ".join(pairs)


def namespaces() -> bytes:
    """Format NAMESPACE (RFC 2342 section 5): personal mailboxes only, without a prefix."""
    return b'* NAMESPACE (("" "/")) NIL NIL\r\n'


def flags(names: Iterable[str]) -> bytes:
    """Format FLAGS (RFC 3501 section 7.2.6)."""
    return b"* FLAGS %b\r\n" % flag_list(names)


def exists(count: int) -> bytes:
    """Format EXISTS (RFC 3501 section 7.3.1)."""
    return b"* %d EXISTS\r\n" % count


def recent(count: int = 0) -> bytes:
    """Format RECENT (RFC 3501 section 7.3.2); IMAP4rev2 does not have it."""
    return b"* %d RECENT\r\n" % count


def expunge(number: int) -> bytes:
    """Format EXPUNGE (RFC 3501 section 7.4.1)."""
    return b"* %d EXPUNGE\r\n" % number


def mailbox_list(
    attributes: Iterable[str],
    name: str,
    utf8: bool = False,
    *,
    command: str = "LIST",
    child_info: Iterable[str] = (),
    old_name: str | None = None,
) -> bytes:
    """Format LIST or LSUB (RFC 3501 sections 7.2.2 and 7.2.3, RFC 9051 section 7.3.1).

    :param child_info: selection options that mailboxes below match (RFC 5258 section 4).
    :param old_name: the name before it was changed (RFC 9051 section 7.3.1).
    """
    extended = []
    if info := b" ".join(string(option.encode()) for option in child_info):
        extended.append(b'"CHILDINFO" (%b)' % info)
    if old_name is not None:
        extended.append(b'"OLDNAME" (%b)' % mailbox(old_name, utf8))
    return b'* %b %b "/" %b%b\r\n' % (
        command.encode("ascii"),
        flag_list(attributes),
        mailbox(name, utf8) if name else b'""',
        b" (%b)" % b" ".join(extended) if extended else b"",
    )


def mailbox_status(name: str, items: Mapping[str, int], utf8: bool = False) -> bytes:
    """Format STATUS (RFC 3501 section 7.2.4). :param items: values by name, in order."""
    values = " ".join(f"{item} {value}" for item, value in items.items()).encode("ascii")
    return b"* STATUS %b (%b)\r\n" % (mailbox(name, utf8), values)


def quota(root: str, usage: Mapping[str, tuple[int, int]]) -> bytes:
    """Format QUOTA (RFC 9208 section 4.2.1). :param usage: usage and limit by resource; STORAGE in KiB."""
    values = " ".join(f"{name} {used} {limit}" for name, (used, limit) in usage.items()).encode("ascii")
    return b"* QUOTA %b (%b)\r\n" % (astring(root.encode()), values)


def quota_root(name: str, roots: Iterable[str], utf8: bool = False) -> bytes:
    """Format QUOTAROOT (RFC 9208 section 4.2.2)."""
    return b" ".join((b"* QUOTAROOT", mailbox(name, utf8), *(astring(root.encode()) for root in roots))) + b"\r\n"


def search(numbers: Sequence[int], modseq: int | None = None, command: str = "SEARCH") -> Iterable[bytes]:
    """Format SEARCH or SORT, piece by piece (RFC 3501 section 7.2.5).

    :param modseq: the highest mod-sequence of the found mails, if the search had MODSEQ (RFC 7162 section 3.1.5).
    """
    yield b"* " + command.encode("ascii")
    for start in range(0, len(numbers), NUMBERS_PER_PIECE):
        yield (" " + " ".join(map(str, numbers[start : start + NUMBERS_PER_PIECE]))).encode("ascii")
    yield b" (MODSEQ %d)\r\n" % modseq if modseq is not None and numbers else b"\r\n"


def extended_search(
    tag: str, numbers: Sequence[int], returns: Iterable[str], uid: bool, modseq: int | None = None
) -> bytes:
    """Format ESEARCH (RFC 4731 section 3.1).

    :param numbers: found message numbers or UIDs, ascending. :param returns: MIN, MAX, ALL, COUNT; SAVE has no answer.
    """
    wanted = set(returns)
    parts = [b'* ESEARCH (TAG "%b")' % tag.encode("ascii")]
    if uid:
        parts.append(b"UID")
    if numbers:
        if "MIN" in wanted:
            parts.append(b"MIN %d" % numbers[0])
        if "MAX" in wanted:
            parts.append(b"MAX %d" % numbers[-1])
        if "ALL" in wanted:
            parts.append(b"ALL " + format_numbers(numbers))
    if "COUNT" in wanted:
        parts.append(b"COUNT %d" % len(numbers))
    if modseq is not None and numbers:
        parts.append(b"MODSEQ %d" % modseq)
    return b" ".join(parts) + b"\r\n"
