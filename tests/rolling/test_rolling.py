"""The short form of ``make rolling``: two replicas of the mail services are replaced while clients work."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from services.imap_out.session import STOPPING as IMAP_STOPPING
from services.pop3_out.replies import STOPPING
from shared.db.migrations import revisions
from tests.faults.books import Findings
from tests.revision_rules import find_violations
from tests.rolling.clients import Ended, Tally, judge_pop3, judge_smtp
from tests.rolling.imap_clients import ImapConnection, Inbox, follow_inbox, judge_imap, read_inbox
from tests.rolling.result import Result
from tests.rolling.run import SHORT, drive, is_clean, pod_timing
from tests.rolling.versions import copy_with_wider_tables


@pytest.mark.timeout(1800)
def test_a_rolling_upgrade_under_load_fails_no_command() -> None:
    result = drive(SHORT)
    assert is_clean(result, SHORT), "\n".join(result.lines())
    assert result.mails and result.submissions


def test_the_migration_of_the_new_version_only_adds(database_url: str, tmp_path: Path) -> None:
    statements = copy_with_wider_tables(tmp_path, database_url, revisions.known_revisions()[-1])
    assert len(statements) > 30
    assert [find_violations(sql, online=False, contracts=False) for sql in statements] == [[]] * len(statements)


def test_a_pod_leaves_its_service_before_it_is_stopped() -> None:
    timing = pod_timing()
    assert timing.propagation < timing.pre_stop
    # preStop, the longest transaction, and the end of the process
    assert timing.grace >= timing.pre_stop + 60


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"+OK 3 mails\r\n", ""),
        (STOPPING, "told"),
        (b"-ERR [SYS/TEMP] the mailbox is not available now, try again later\r\n", "temporary"),
        (b"-ERR [IN-USE] too many sessions of this account\r\n", "temporary"),
        (b"-ERR [AUTH] wrong name or password\r\n", "permanent"),
    ],
)
def test_replies_of_pop3_are_judged(reply: bytes, outcome: str) -> None:
    assert judge_pop3(reply) == outcome


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"OK UID FETCH: done\r\n", ""),
        (b"* OK [CAPABILITY IMAP4rev1] mailgroup IMAP server ready\r\n", ""),
        (IMAP_STOPPING, "told"),
        (b"* BYE [UNAVAILABLE] too many connections\r\n", "temporary"),
        (b"NO [UNAVAILABLE] LOGIN: not available now, try again later\r\n", "temporary"),
        (b"NO [AUTHENTICATIONFAILED] LOGIN: wrong name or password\r\n", "permanent"),
        (b"BAD FETCH: select a mailbox first\r\n", "permanent"),
    ],
)
def test_replies_of_imap_are_judged(reply: bytes, outcome: str) -> None:
    assert judge_imap(reply) == outcome


@asynccontextmanager
async def scripted_imap(*answers: tuple[bytes, bytes]) -> AsyncIterator[int]:
    """A server of one session, which it ends. :param answers: to each line with the first part. :return: its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK ready\r\n")
        for command, answer in answers:
            line = await reader.readline()
            assert command in line, line
            writer.write(answer.replace(b"TAG", line.split()[0]))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


LOGIN = ((b"LOGIN", b"TAG OK in\r\n"), (b"SELECT", b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\nTAG OK selected\r\n"))
MAIL = b"Subject: a\r\n\r\na6 OK this is a line of the mail\r\n"


async def test_an_imap_session_keeps_mails_by_uid_with_all_their_octets() -> None:
    inbox, tally = Inbox(), Tally()
    fetched = b"* 1 FETCH (BODY[] {%d}\r\n%b UID 12)\r\nTAG OK fetched\r\n" % (len(MAIL), MAIL)
    others = (
        (b"UID SEARCH ALL", b"* SEARCH 12\r\n* 1 EXISTS\r\nTAG OK found\r\n"),
        (b"UID FETCH 12 ", fetched),
        (b"UID STORE 12 ", b"TAG OK stored\r\n"),
        (b"LOGOUT", b"* BYE bye\r\nTAG OK out\r\n"),
    )
    async with scripted_imap(*LOGIN, *others) as port:
        await read_inbox(port, "alex@local.com", inbox, tally)
    assert inbox.mails == {(7, 12): MAIL} and not inbox.changed and tally.commands == 7  # the greeting is one
    inbox.add((7, 12), b"another mail")
    assert inbox.changed == {(7, 12)}


@pytest.mark.parametrize(
    ("answer", "outcome"), [(b"+ idling\r\n" + IMAP_STOPPING, "told"), (IMAP_STOPPING, "told"), (b"", "broken")]
)
async def test_the_end_of_a_session_in_idle_is_counted(answer: bytes, outcome: str) -> None:
    empty = (b"UID SEARCH ALL", b"* SEARCH\r\nTAG OK found\r\n")
    async with scripted_imap(*LOGIN, empty, (b"IDLE", answer)) as port:
        with pytest.raises(Ended) as ended:
            await follow_inbox(port, "alex@local.com", Inbox(), Tally(), 60.0)
    assert ended.value.outcome == outcome


async def test_a_server_that_goes_down_may_answer_logout_by_bye_alone() -> None:
    empty = (b"UID SEARCH ALL", b"* SEARCH\r\nTAG OK found\r\n")
    async with scripted_imap(*LOGIN, empty, (b"LOGOUT", IMAP_STOPPING)) as port:
        with pytest.raises(Ended) as ended:
            await read_inbox(port, "alex@local.com", Inbox(), Tally())
    assert ended.value.outcome == "told"


async def test_a_session_in_idle_hears_of_new_mail() -> None:
    answers = ((b"IDLE", b"+ idling\r\n* 2 EXISTS\r\n"), (b"DONE", b"a1 OK idled\r\n"))
    async with scripted_imap(*answers) as port, ImapConnection(Tally()).to(port) as imap:
        assert await imap.idle(60.0)


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"250 2.0.0 Queued as 7\r\n", ""),
        (b"354 End data with <CR><LF>.<CR><LF>\r\n", ""),
        (b"421 4.3.2 The server is shutting down\r\n", "told"),
        (b"451 4.3.0 Try again later\r\n", "temporary"),
        (b"421 4.7.0 Too many connections\r\n", "temporary"),
        (b"550 5.1.1 No such user\r\n", "permanent"),
    ],
)
def test_replies_of_smtp_are_judged(reply: bytes, outcome: str) -> None:
    assert judge_smtp(reply) == outcome


@pytest.mark.parametrize(
    ("replicas", "outcome", "outage", "clean"),
    [
        (2, "told", 0.0, True),
        (2, "refused", 0.0, False),
        (2, "broken", 0.0, False),
        (2, "temporary", 0.0, False),
        (1, "refused", 9.0, True),
        (1, "refused", 11.0, False),
        (1, "temporary", 0.0, True),
        (1, "permanent", 0.0, False),
    ],
)
def test_a_run_is_judged_by_what_clients_noticed(replicas: int, outcome: str, outage: float, clean: bool) -> None:
    plan = replace(SHORT, replicas=replicas)
    for protocol in ("POP3", "IMAP", "SMTP"):
        result = Result(pop3=Tally(sessions=5), imap=Tally(sessions=5), smtp=Tally(sessions=5))
        assert is_clean(result, plan)
        lost = Findings(lost=Counter({("a", "b"): 1}))
        assert not is_clean(replace(result, mailboxes=lost), plan)
        assert not is_clean(replace(result, inboxes=lost), plan)
        assert not is_clean(replace(result, providers=lost), plan)
        assert not is_clean(replace(result, unclean=1), plan)
        result.tallies[protocol].ends[outcome] += 1
        result.tallies[protocol].longest_outage = outage
        assert is_clean(result, plan) is clean
