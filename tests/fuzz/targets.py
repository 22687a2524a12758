"""The judges: each feeds any bytes to one parser of ours and asserts what must be true of the result.

A judge does not use the code under test to check the result, except to compare two runs of it.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from functools import partial

from services.sender.header_fields import AUTHOR_FIELDS
from services.sender.header_rewriting import Author, mailbox_addresses, parse_header, rewrite_header
from services.smtp_in import parameters, recipient_policy, sender_policy
from services.smtp_in.data_reader import DataReader, SmtpRefusal
from services.smtp_in.recipient_policy import Directory
from shared import routing
from shared.db.database import storable
from shared.mime import bounces, display_names, dsn_options, headers
from shared.mime.addresses import fold_address
from shared.mime.dot_stuffing import CrlfDotStuffer
from shared.model import External, Local, Relay, Sent, Server
from shared.net import proxy_protocol
from shared.provider.pop3_replies import Body
from tests.fuzz import imap_judges, imap_sessions, provider_sessions, sessions

_SERVER = Server("mail.company.com", 110, "none")
SUPPORT = External(
    1,
    "support@company.com",
    True,
    "",
    b"",
    _SERVER,
    (Relay(_SERVER),),
    60,
    "all",
    None,
    False,
    True,
    ("help@co.example",),
)
PEOPLE = [
    Local(number, address, True, "", name, aliases, (), 1, None)
    for number, (name, address, aliases) in enumerate(
        [("Alex", "alex@local.com", ("Lex",)), ("Jim", "jim@local.com", ()), ("Jörg", "jörg@local.com", ())], 1
    )
]
OFFICE = Directory.from_accounts([SUPPORT], PEOPLE)
SENT = {"a@b": [Sent("a@b", 1, 1, ("ann@customer.org",), 1)]}

LIMIT = 1 << 20
_LONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def route(data: bytes) -> None:
    """A mail from outside has at least one recipient; each shares the account, appears once, and has a reason.

    The Message-IDs that the router looks up are bounded in number, and PostgreSQL can store them as text.
    """
    facts = routing.read_facts(data, SUPPORT)
    asked = routing.referenced_ids(facts)
    assert len(asked) < 1000 and all(storable(message_id) == message_id for message_id in asked)
    decision = routing.decide(facts, SUPPORT, PEOPLE, SENT)
    own_copy = routing.find_own_copy(facts, SUPPORT, PEOPLE, SENT)
    assert own_copy is None or len(own_copy.decision.recipients) == 1
    who = [recipient.local_id for recipient in decision.recipients]
    assert who and len(who) == len(set(who))
    assert set(who) <= {local.id for local in PEOPLE}
    assert 1 <= decision.rule <= 5 and decision.reason and not decision.held


def route_to(data: bytes) -> None:
    """``route`` for a mail with the input as its To field."""
    route(b"To: " + data.replace(b"\n", b"\n ") + b"\r\n\r\n")


def leave(data: bytes) -> None:
    """A header that smtp_in accepts is relayed without local addresses in its address fields, and with CRLF only."""
    mail = DataReader(LIMIT)
    mail.feed(data.replace(b"\r\n.", b"\r\n..") + b"\r\n.\r\n")
    if mail.refusal is not None or sender_policy.check_header(OFFICE, PEOPLE[0], mail.values) is not None:
        return
    header = mail.header
    everyone = {local.address: (local.user_name, SUPPORT.address) for local in PEOPLE}
    directory = {
        address: everyone[address] for address in mailbox_addresses(parse_header(header)) if address in everyone
    }
    author = Author("Alex", SUPPORT.address, frozenset(SUPPORT.own_addresses))
    left = rewrite_header(
        parse_header(header), directory, author, "made@local.com", datetime.datetime(2026, 11, 3, tzinfo=datetime.UTC)
    )
    assert not _LONE.search(left)
    sender = headers.values(left, "from")
    assert len(sender) == 1
    for name in ("from", *AUTHOR_FIELDS, "to", "cc"):
        for value in headers.values(left, name):
            for mailbox in headers.mailboxes(value):
                assert fold_address(mailbox.address) not in everyone, (name, value)
    for mailbox in headers.mailboxes(sender[0]):
        assert fold_address(mailbox.address) in SUPPORT.own_addresses and mailbox.name == "Alex"
    assert not headers.values(left, "bcc")


def submit(data: bytes) -> None:
    """The end and the stored form of a submission do not depend on how it is split. Its only line end is CRLF."""
    whole, pieces = DataReader(LIMIT), DataReader(LIMIT)
    rest = whole.feed(data)
    step = 1 + len(data) % 7
    left = b""
    for start in range(0, len(data), step):
        if pieces.ended:
            left += data[start : start + step]
        else:
            left += pieces.feed(data[start : start + step])
    assert (pieces.ended, left, str(pieces.refusal)) == (whole.ended, rest, str(whole.refusal))
    assert whole.ended == (b"\r\n.\r\n" in b"\r\n" + data)
    if whole.ended and whole.refusal is None:
        body = bytes(whole.content().body)
        assert body == bytes(pieces.content().body) and whole.content().sha256 == pieces.content().sha256
        assert not _LONE.search(body) and b"\0" not in whole.header


def command(data: bytes) -> None:
    """Parameters of MAIL and RCPT contain no control characters, and no local address is relayed."""
    text = data.decode("utf-8", "surrogateescape")
    for parsed in (parameters.parse_mail(text, LIMIT), parameters.parse_rcpt(text)):
        if isinstance(parsed, SmtpRefusal):
            assert 500 <= parsed.code < 600 and not re.search("[\r\n]", str(parsed))
            continue
        assert not re.search("[\x00-\x1f\x7f]", parsed.dsn_params or "")
        for shown in (dsn_options.envelope_id(parsed.dsn_params), dsn_options.original_recipient(parsed.dsn_params)):
            assert shown is None or shown.isprintable()
        if recipient_policy.check_syntax(parsed.address, True) is None:
            assert not re.search("[\x00-\x20\x7f<>]", parsed.address)
            target = recipient_policy.resolve(OFFICE, parsed.address)
            if isinstance(target, SmtpRefusal):
                assert not re.search("[\r\n]", str(target))
            elif target.kind == "relay":
                assert not target.address.lower().endswith("@local.com")


def report(data: bytes) -> None:
    """The Message-IDs in a bounce are bounded in number, and PostgreSQL can store them as text."""
    found = bounces.reported_ids(data)
    assert len(found) < 1000 and all(storable(message_id) == message_id for message_id in found)


def name(data: bytes) -> None:
    """Quotes around a display name do not change it, unless they make it longer than the limit."""
    text = data.decode("utf-8", "replace")
    bare = display_names.normalise(text)
    assert (
        len(bare) > display_names.LONGEST - 2
        or display_names.normalise(f'"{bare}"') == display_names.normalise(f"'{bare}'") == bare
    )


def wire(data: bytes) -> None:
    """Content for the provider has CRLF only and no end-of-data sequence inside, however it is split."""
    sent = b""
    step = 1 + len(data) % 5
    out = CrlfDotStuffer()
    for start in range(0, len(data), step):
        sent += out.feed(data[start : start + step])
    sent += out.finish()
    assert not _LONE.search(sent) and b"\r\n.\r\n" not in b"\r\n" + sent
    assert not sent or sent.endswith(b"\r\n")


def retrieved(data: bytes) -> None:
    """A retrieved mail does not depend on how it is split. It has CRLF line ends and no dot-stuffing."""
    stream = b"\r\n" + data.replace(b"\r\n.", b"\r\n..") + b"\r\n.\r\n"
    bodies = []
    for step in (len(stream), 1 + len(data) % 5):
        body, pending, ended = Body(LIMIT), b"", False
        for start in range(0, len(stream), step):
            pending += stream[start : start + step]
            ended, at = body.feed(pending, 0)
            pending = pending[at:]
            if ended:
                break
        assert ended
        bodies.append(bytes(body.kept))
    assert bodies[0] == bodies[1]
    assert not re.search(rb"(?<!\r)\n", bodies[0])


def proxy(data: bytes) -> None:
    """A header of the PROXY protocol gives an IP address or None, or is refused."""
    for line in (b"PROXY TCP4 " + data[:96], data[:107]):
        _check_address(partial(proxy_protocol.parse_v1, line))
    _check_address(partial(proxy_protocol.parse_v2, data[:4].ljust(4, b"\0"), data[4:]))


def _check_address(parse: Callable[[], str | None]) -> None:
    try:
        address = parse()
    except proxy_protocol.MalformedProxyHeader:
        return
    assert address is None or ipaddress.ip_address(address)


def pop3(data: bytes) -> None:
    """See ``sessions.pop3_session``."""
    sessions.pop3_session(data)


def submission(data: bytes) -> None:
    """See ``sessions.smtp_session``."""
    sessions.smtp_session(data, OFFICE, PEOPLE[0])


def imap_server(data: bytes) -> None:
    """See ``provider_sessions.imap_session``."""
    provider_sessions.imap_session(data)


def imap_filing(data: bytes) -> None:
    """See ``provider_sessions.imap_filing``."""
    provider_sessions.imap_filing(data)


def imap_client(data: bytes) -> None:
    """See ``imap_sessions.client_session``."""
    imap_sessions.client_session(data)


def imap_command(data: bytes) -> None:
    """See ``imap_judges.judge_commands``."""
    imap_judges.judge_commands(data)


def imap_structure(data: bytes) -> None:
    """See ``imap_judges.judge_structure``."""
    imap_judges.judge_structure(data)


_JUDGES = (
    *(route, route_to, leave, submit, command, report, name, wire, retrieved, proxy, pop3, submission),
    *(imap_server, imap_filing, imap_client, imap_command, imap_structure),
)
TARGETS: dict[str, Callable[[bytes], None]] = {judge.__name__: judge for judge in _JUDGES}
