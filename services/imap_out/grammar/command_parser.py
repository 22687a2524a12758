"""Parses a command whose literals are read (RFC 3501 and RFC 9051, sections 6 and 9)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from services.imap_out.grammar.commands import (
    AppendArguments,
    Arguments,
    AuthenticateArguments,
    CopyArguments,
    CreateArguments,
    EnableArguments,
    ExpungeArguments,
    FetchArguments,
    IdArguments,
    ImapCommand,
    LoginArguments,
    MailboxArguments,
    NoArguments,
    QuotaArguments,
    RenameArguments,
    Resynchronization,
    SearchArguments,
    SelectArguments,
    SortArguments,
    StatusArguments,
    StoreArguments,
    ThreadArguments,
)
from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.fetch_items import FetchAttribute, read_items
from services.imap_out.grammar.list_options import STATUS_ITEMS, read_list, read_lsub
from services.imap_out.grammar.reader import LITERAL, ArgumentReader
from services.imap_out.grammar.search_keys import read_charset, read_keys, read_order, read_returns, read_search
from services.imap_out.number_sets import NumberSet

MAX_ID_FIELDS = 30
"""Fields of ID (RFC 2971 section 3.3)."""
MAX_ID_OCTETS = 1024
"""Longest value of ID that is kept: octets (RFC 2971 section 3.3)."""
OFTEN_OCTETS = 200
"""Longest command, and longest items of FETCH, that are remembered: octets; clients repeat them."""

_TAG = re.compile(rb'[^ (){%*"\\+\x00-\x1f\x7f-\xff]{1,100}')
_OFTEN = re.compile(rb"(?! *(?:LOGIN|AUTHENTICATE))(?:[^\d\0]++|1:\*)*+\Z", re.IGNORECASE)
"""A command without a number, a literal or a password: other sessions send the same one."""
_FETCH_OF_ONE = re.compile(rb" (?i:(UID) )?(?i:FETCH) ([1-9]\d{0,8}) ([^\0]{1,%d}+)\Z" % OFTEN_OCTETS, re.DOTALL)
"""FETCH of one mail: clients send it for mail after mail, with the same items."""
_NAME = re.compile(rb"(?i:(UID) ++)?([A-Za-z][A-Za-z0-9]{0,30}+)(?![^ ])")
_STORES = re.compile(rb"([+-]?)FLAGS(\.SILENT)?(?![^ ])", re.IGNORECASE)
_ACTIONS: dict[bytes, Literal["replace", "add", "remove"]] = {b"": "replace", b"+": "add", b"-": "remove"}


def read_tag(text: bytes) -> tuple[str, int]:
    """Return the tag of a command and the position behind it; ('*', 0) if there is none."""
    found = _TAG.match(text)
    if found is None or text[found.end() : found.end() + 1] not in (b" ", b""):
        return "*", 0
    return found[0].decode("ascii"), found.end()


def parse_command(text: bytes, literals: Sequence[bytes] = (), utf8: bool = False, octets: int = 0) -> ImapCommand:
    """Parse a command.

    :param text: all lines of the command, joined, with a NUL in place of each literal; no line end.
    :param literals: in order, without the mail of APPEND.
    :param utf8: names of mailboxes are UTF-8: UTF8=ACCEPT or IMAP4rev2 is enabled.
    :param octets: length of the mail of APPEND, whose NUL is the last one.
    :raises CommandError: it is malformed, or beyond a limit.
    """
    tag, position = read_tag(text)
    if not position:
        raise CommandError("the command has no tag")
    rest = text[position:]
    if len(rest) <= OFTEN_OCTETS and _OFTEN.match(rest):
        return ImapCommand(tag, *_parse_often(rest, utf8))
    if (found := _FETCH_OF_ONE.match(rest)) is not None:
        number = int(found[2])
        arguments = FetchArguments(NumberSet(((number, number),)), *_read_often(found[3]))
        return ImapCommand(tag, "FETCH", arguments, found[1] is not None)
    return ImapCommand(tag, *_parse(ArgumentReader(text, literals, position, utf8), octets))


@lru_cache(500)
def _parse_often(rest: bytes, utf8: bool) -> tuple[str, Arguments, bool]:
    """Parse what other sessions ask, too. :param rest: of the command, behind its tag."""
    return _parse(ArgumentReader(rest, utf8=utf8), 0)


def _parse(reader: ArgumentReader, octets: int) -> tuple[str, Arguments, bool]:
    """Return the name, the arguments, and whether the command is one with UIDs."""
    reader.space("the name of the command")
    found = reader.match(_NAME)
    name = found[2].decode().upper() if found else ""
    uid = found is not None and found[1] is not None
    read = (_WITH_UIDS if uid else _COMMANDS).get(name)
    if read is None:
        raise CommandError("the command after UID is unknown" if uid else "the command is unknown")
    arguments = _read_append(reader, octets) if name == "APPEND" else read(reader)
    reader.end()
    return name, arguments, uid


def _read_nothing(reader: ArgumentReader) -> Arguments:
    return NoArguments()


def _read_login(reader: ArgumentReader) -> Arguments:
    reader.space("the user name")
    user = reader.astring("the user name")
    reader.space("the password")
    return LoginArguments(user, reader.astring("the password"))


def _read_authenticate(reader: ArgumentReader) -> Arguments:
    reader.space("the mechanism")
    mechanism = reader.atom("the mechanism")
    if not reader.skips_space():
        return AuthenticateArguments(mechanism, None)
    return AuthenticateArguments(mechanism, reader.base64("the initial response"))


def _read_id(reader: ArgumentReader) -> Arguments:
    reader.space("the list of ID")
    if reader.skips_atom(b"NIL"):
        return IdArguments({})
    reader.expect(b"(", "the list of ID")
    fields: dict[str, str | None] = {}
    while not reader.skips(b")"):
        name = reader.string("a name of ID")
        reader.space("a value of ID")
        value = reader.nstring("a value of ID")
        kept = None if value is None else value[:MAX_ID_OCTETS].decode("utf-8", "replace")
        fields[name[:MAX_ID_FIELDS].decode("utf-8", "replace").lower()] = kept
        if len(fields) > MAX_ID_FIELDS:
            raise CommandError(f"ID has more than {MAX_ID_FIELDS} fields")
        reader.skips_space()
    return IdArguments(fields)


def _read_enable(reader: ArgumentReader) -> Arguments:
    capabilities: list[str] = []
    reader.space("the capability")
    capabilities.append(reader.atom("the capability"))
    while reader.skips_space():
        capabilities.append(reader.atom("the capability"))
    return EnableArguments(tuple(capabilities))


def _read_select(reader: ArgumentReader, read_only: bool = False) -> Arguments:
    reader.space("the name of the mailbox")
    mailbox = reader.mailbox()
    condstore, resynchronization = False, None
    if reader.skips_space():
        what = "the parameters of SELECT"
        reader.expect(b"(", what)
        while not reader.skips(b")"):
            match reader.atom(what):
                case "CONDSTORE":
                    condstore = True
                case "QRESYNC":
                    reader.space("the values of QRESYNC")
                    resynchronization = _read_resynchronization(reader)
                case _:
                    raise CommandError(f"{what}: known are CONDSTORE and QRESYNC")
            reader.skips_space()
    return SelectArguments(mailbox, read_only, condstore, resynchronization)


def _read_examine(reader: ArgumentReader) -> Arguments:
    return _read_select(reader, read_only=True)


def _read_resynchronization(reader: ArgumentReader) -> Resynchronization:
    what = "the values of QRESYNC"
    reader.expect(b"(", what)
    uidvalidity = reader.number("the UIDVALIDITY of QRESYNC", least=1)
    reader.space("the mod-sequence of QRESYNC")
    modseq = reader.modseq("the mod-sequence of QRESYNC", 1)
    known, numbers, uids = None, None, None
    if reader.skips_space() and reader.peek() != b"(":
        known = _read_plain_set(reader, "the known UIDs of QRESYNC")
        reader.skips_space()
    if reader.skips(b"("):
        numbers = _read_plain_set(reader, "the known message numbers of QRESYNC")
        reader.space("the UIDs of the known message numbers")
        uids = _read_plain_set(reader, "the UIDs of the known message numbers")
        reader.expect(b")", what)
    reader.expect(b")", what)
    return Resynchronization(uidvalidity, modseq, known, numbers, uids)


def _read_plain_set(reader: ArgumentReader, what: str) -> NumberSet:
    numbers = reader.numbers(what, saved=False)
    if not numbers.is_numbers_only:
        raise CommandError(f"{what} must have no * (RFC 7162 section 3.2.5)")
    return numbers


def _read_mailbox(reader: ArgumentReader) -> Arguments:
    reader.space("the name of the mailbox")
    return MailboxArguments(reader.mailbox())


def _read_create(reader: ArgumentReader) -> Arguments:
    reader.space("the name of the mailbox")
    mailbox = reader.mailbox()
    if not reader.skips_space():
        return CreateArguments(mailbox)
    what = "the parameters of CREATE"
    reader.expect(b"(", what)
    if not reader.skips_atom(b"USE"):
        raise CommandError(f"{what}: known is USE")
    reader.space("the attributes of USE")
    reader.expect(b"(", "the attributes of USE")
    uses = []
    while not reader.skips(b")"):
        reader.expect(b"\\", "the attributes of USE")
        uses.append(f"\\{reader.atom('the attributes of USE').capitalize()}")
        reader.skips_space()
    reader.expect(b")", what)
    return CreateArguments(mailbox, tuple(uses))


def _read_rename(reader: ArgumentReader) -> Arguments:
    reader.space("the name of the mailbox")
    mailbox = reader.mailbox()
    reader.space("the new name of the mailbox")
    return RenameArguments(mailbox, reader.mailbox("the new name of the mailbox"))


def _read_status(reader: ArgumentReader) -> Arguments:
    reader.space("the name of the mailbox")
    mailbox = reader.mailbox()
    what = "the items of STATUS"
    reader.space(what)
    reader.expect(b"(", what)
    items: dict[str, None] = {}
    while not reader.skips(b")"):
        items[reader.atom(what)] = None
        reader.skips_space()
    if not items or not items.keys() <= STATUS_ITEMS:
        raise CommandError(f"{what}: known are {', '.join(sorted(STATUS_ITEMS))}")
    return StatusArguments(mailbox, tuple(items))


def _read_append(reader: ArgumentReader, octets: int) -> Arguments:
    reader.space("the name of the mailbox")
    mailbox = reader.mailbox()
    reader.space("the mail")
    flags: tuple[str, ...] = ()
    moment = None
    if reader.peek() == b"(":
        flags = reader.flags()
        reader.space("the mail")
    if reader.peek() == b'"':
        moment = reader.internal_date("the date of the mail")
        reader.space("the mail")
    utf8 = reader.skips_atom(b"UTF8")
    if utf8:
        reader.space("the mail")
        reader.expect(b"(", "the mail")
    if reader.text[reader.position :] != LITERAL:
        raise CommandError("the mail is missing, or something stands before it that APPEND does not take")
    reader.position += 1
    return AppendArguments(mailbox, flags, moment, octets, utf8)


def _read_expunge(reader: ArgumentReader) -> Arguments:
    reader.space("the set of mails")
    return ExpungeArguments(reader.numbers())


def _read_search(reader: ArgumentReader) -> Arguments:
    reader.space("the key of SEARCH")
    returns = read_returns(reader)
    return SearchArguments(read_search(reader), returns)


def _read_sort(reader: ArgumentReader) -> Arguments:
    reader.space("the criteria of SORT")
    order = read_order(reader)
    reader.space("the charset")
    codec = read_charset(reader)
    reader.space("the key of SORT")
    return SortArguments(order, read_keys(reader, codec))


def _read_thread(reader: ArgumentReader) -> Arguments:
    reader.space("the algorithm")
    algorithm = reader.atom("the algorithm")
    if algorithm not in ("REFERENCES", "ORDEREDSUBJECT"):
        raise CommandError("the algorithm is unknown: known are REFERENCES and ORDEREDSUBJECT")
    reader.space("the charset")
    codec = read_charset(reader)
    reader.space("the key of THREAD")
    return ThreadArguments(algorithm, read_keys(reader, codec))


def _read_fetch(reader: ArgumentReader) -> Arguments:
    reader.space("the set of mails")
    numbers = reader.numbers()
    reader.space("the items of FETCH")
    rest = reader.text[reader.position :]
    if len(rest) > OFTEN_OCTETS or LITERAL in rest:
        return FetchArguments(numbers, *_read_wanted(reader))
    reader.position = len(reader.text)
    return FetchArguments(numbers, *_read_often(rest))


@lru_cache(200)
def _read_often(rest: bytes) -> tuple[tuple[FetchAttribute, ...], int | None, bool]:
    """Read what clients ask of one mail after the other."""
    reader = ArgumentReader(rest)
    wanted = _read_wanted(reader)
    reader.end()
    return wanted


def _read_wanted(reader: ArgumentReader) -> tuple[tuple[FetchAttribute, ...], int | None, bool]:
    """Read the items of FETCH and its modifiers: CHANGEDSINCE and VANISHED."""
    items = read_items(reader)
    changed_since, vanished = None, False
    if reader.skips_space():
        what = "the modifiers of FETCH"
        reader.expect(b"(", what)
        while not reader.skips(b")"):
            match reader.atom(what):
                case "CHANGEDSINCE":
                    reader.space("the value of CHANGEDSINCE")
                    changed_since = reader.modseq("the value of CHANGEDSINCE")
                case "VANISHED":
                    vanished = True
                case _:
                    raise CommandError(f"{what}: known are CHANGEDSINCE and VANISHED")
            reader.skips_space()
    if vanished and changed_since is None:
        raise CommandError("VANISHED needs CHANGEDSINCE (RFC 7162 section 3.2.6)")
    return items, changed_since, vanished


def _read_store(reader: ArgumentReader) -> Arguments:
    reader.space("the set of mails")
    numbers = reader.numbers()
    reader.space("the flags")
    rest = reader.text[reader.position :]
    if len(rest) > OFTEN_OCTETS or LITERAL in rest:
        return StoreArguments(numbers, *_read_change(reader))
    reader.position = len(reader.text)
    return StoreArguments(numbers, *_read_change_often(rest))


_Change = tuple[Literal["replace", "add", "remove"], tuple[str, ...], bool, int | None]


@lru_cache(200)
def _read_change_often(rest: bytes) -> _Change:
    """Read how clients change one mail after the other."""
    reader = ArgumentReader(rest)
    change = _read_change(reader)
    reader.end()
    return change


def _read_change(reader: ArgumentReader) -> _Change:
    """Read the modifier of STORE, and the flags."""
    unchanged_since = None
    if reader.skips(b"("):
        if not reader.skips_atom(b"UNCHANGEDSINCE"):
            raise CommandError("the modifier of STORE is unknown: known is UNCHANGEDSINCE")
        reader.space("the value of UNCHANGEDSINCE")
        unchanged_since = reader.modseq("the value of UNCHANGEDSINCE")
        reader.expect(b")", "the modifier of STORE")
        reader.space("the flags")
    found = reader.match(_STORES)
    if found is None:
        raise CommandError("STORE changes FLAGS, +FLAGS or -FLAGS, with .SILENT or without")
    reader.space("the flags")
    return _ACTIONS[found[1]], reader.flags(), found[2] is not None, unchanged_since


def _read_copy(reader: ArgumentReader) -> Arguments:
    reader.space("the set of mails")
    numbers = reader.numbers()
    reader.space("the name of the mailbox")
    return CopyArguments(numbers, reader.mailbox())


def _read_get_quota(reader: ArgumentReader) -> Arguments:
    reader.space("the quota root")
    return QuotaArguments(reader.astring("the quota root").decode("utf-8", "replace"))


def _read_set_quota(reader: ArgumentReader) -> Arguments:
    reader.space("the quota root")
    root = reader.astring("the quota root").decode("utf-8", "replace")
    reader.space("the limits")
    reader.expect(b"(", "the limits")
    limits = {}
    while not reader.skips(b")"):
        name = reader.atom("the resource")
        reader.space("the limit")
        limits[name] = reader.number("the limit", 2**63)
        reader.skips_space()
    return QuotaArguments(root, limits)


_Reader = Callable[[ArgumentReader], Arguments]
_WITH_UIDS: dict[str, _Reader] = {
    "EXPUNGE": _read_expunge,
    "SEARCH": _read_search,
    "SORT": _read_sort,
    "THREAD": _read_thread,
    "FETCH": _read_fetch,
    "STORE": _read_store,
    "COPY": _read_copy,
    "MOVE": _read_copy,
}
_COMMANDS: dict[str, _Reader] = {
    **_WITH_UIDS,
    **dict.fromkeys(
        ("CAPABILITY", "NOOP", "LOGOUT", "STARTTLS", "IDLE", "CHECK", "CLOSE", "UNSELECT", "EXPUNGE", "NAMESPACE"),
        _read_nothing,
    ),
    **dict.fromkeys(("DELETE", "SUBSCRIBE", "UNSUBSCRIBE", "GETQUOTAROOT"), _read_mailbox),
    "LOGIN": _read_login,
    "AUTHENTICATE": _read_authenticate,
    "ID": _read_id,
    "ENABLE": _read_enable,
    "SELECT": _read_select,
    "EXAMINE": _read_examine,
    "CREATE": _read_create,
    "RENAME": _read_rename,
    "LIST": read_list,
    "LSUB": read_lsub,
    "STATUS": _read_status,
    "APPEND": _read_nothing,
    "GETQUOTA": _read_get_quota,
    "SETQUOTA": _read_set_quota,
}
COMMANDS = frozenset(_COMMANDS)
"""Names of all commands, in upper case."""
