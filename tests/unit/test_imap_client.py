"""shared/provider/imap_client.py: the steps of a session, TLS, folders, lists and deletions."""

from __future__ import annotations

import pytest

from shared.imap.names import encode_utf7
from shared.net.dial import ConnectTimeout, TlsError, Unreachable
from shared.provider import imap_stream
from shared.provider.credentials import Credential
from shared.provider.imap_client import ImapClient, open_session
from shared.provider.imap_deletion import WITHOUT_UIDPLUS
from shared.provider.retrieval import MailRequest
from shared.provider.session_errors import ConnectionLost, ProtocolError, ServerBusy
from tests.scripted_imap import CAPABILITIES, ScriptedFolder, ScriptedImap
from tests.scripted_pop3 import Answer, cut, drip, hang, say

ONE = b"Subject: one\r\n\r\nbody\r\n"
US = Credential("u", "secret")
COUNTING = (*CAPABILITIES, "CONDSTORE")
KEYS = ("INBOX:1700000000:3", "INBOX:1700000000:9")


async def keys(client: ImapClient) -> list[str]:
    return [key for _, key in (await client.fetch_list()).mails]


# ------------------------------------------------------------------------------------------------ greeting and TLS


@pytest.mark.parametrize(
    ("greeting", "failure", "words"),
    [
        (say(b"* BYE maintenance\r\n"), ServerBusy, "the server refuses service now: maintenance"),
        (say(b"* BYE [UNAVAILABLE] later\r\n"), ServerBusy, "UNAVAILABLE"),
        (say(b"+OK POP3 ready\r\n"), ProtocolError, "the reply is not an IMAP reply; check host, port and tls"),
        (say(b"SSH-2.0-OpenSSH_9.2\r\n"), ProtocolError, "not an IMAP reply"),
        (say(b"* 5 EXISTS\r\n"), ProtocolError, "not an IMAP reply"),
        (say(b"* OK " + b"x" * 200_000), ProtocolError, "a reply line of more than 65536 octets"),
        (say(b"\r\n" * 50), ProtocolError, "not an IMAP reply"),
        (cut(), ConnectionLost, "greeting: the server ended the connection"),
        (hang(), ConnectTimeout, "greeting: no answer within 0.5 s"),
        (hang(b"* O"), ConnectTimeout, "greeting: no answer"),
        (drip(b"* OK " + b"x" * 500, 0.05), ConnectTimeout, "slower than 1024 octets a second"),
    ],
)
async def test_a_bad_greeting_ends_the_session(greeting: Answer, failure: type[Exception], words: str) -> None:
    script = ScriptedImap(answers={"greeting": greeting})
    async with script.running():
        with pytest.raises(failure, match=words):
            async with open_session(script.server(), True, read_seconds=0.5):
                pass


@pytest.mark.parametrize("answer", [say(b"<tag> NO\r\n"), say(b"<tag> BAD no TLS here\r\n")])
async def test_starttls_is_never_downgraded(answer: Answer) -> None:
    script = ScriptedImap(answers={"STARTTLS": answer})
    async with script.running():
        with pytest.raises(TlsError, match="nothing is sent in clear text"):
            async with open_session(script.server("starttls"), True):
                pass
    assert script.commands == ["STARTTLS"]


@pytest.mark.parametrize("behind", [b"* CAPABILITY IMAP4rev1\r\n", b"x"])
async def test_data_injected_before_tls_is_refused(behind: bytes) -> None:
    script = ScriptedImap(answers={"STARTTLS": say(b"<tag> OK go\r\n" + behind)})
    async with script.running():
        with pytest.raises(TlsError, match="between STARTTLS and TLS: this may be an attack"):
            async with open_session(script.server("starttls"), True):
                pass


async def test_a_session_that_begins_logged_in_cannot_start_tls() -> None:
    script = ScriptedImap({3: ONE}, answers={"greeting": say(b"* PREAUTH welcome\r\n")})
    async with script.running():
        with pytest.raises(TlsError, match="PREAUTH"):
            async with open_session(script.server("starttls"), True):
                pass
        assert script.commands == []
        # where no STARTTLS is asked for, no login is sent
        async with open_session(script.server(), True) as client:
            await client.login(US)
            assert await keys(client) == [KEYS[0]]
    assert not [line for line in script.commands if "secret" in line]


# ------------------------------------------------------------------------------------------------ lists


@pytest.mark.parametrize("capabilities", [CAPABILITIES, ("IMAP4rev1",), None])
async def test_mails_are_listed_by_folder_uidvalidity_and_uid(capabilities: tuple[str, ...] | None) -> None:
    script = ScriptedImap({3: ONE, 9: ONE}, capabilities=capabilities)
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        reply = await client.fetch_list_reply()
        listing = reply.parse()
        assert listing.complete and listing.mails == ((3, KEYS[0]), (9, KEYS[1]))
        assert (await client.fetch_list_reply()).digest == reply.digest
        script.mails[10] = ONE
        assert (await client.fetch_list_reply()).digest != reply.digest
    assert not [line for line in script.commands if "SELECT" in line or "SEEN" in line.upper()]


async def test_another_uidvalidity_gives_other_keys() -> None:
    script = ScriptedImap({3: ONE})
    async with script.running():
        found = []
        for uidvalidity in (7, 8):
            script.inbox.uidvalidity = uidvalidity
            async with open_session(script.server(), True) as client:
                await client.login(US)
                found += await keys(client)
    assert found == ["INBOX:7:3", "INBOX:8:3"]


@pytest.mark.parametrize(
    ("answers", "listed", "complete"),
    [
        # the extended search fails, or finds other numbers: the plain one counts
        ({"UID SEARCH RETURN": say(b"<tag> BAD what\r\n")}, 2, True),
        ({"UID SEARCH RETURN": say(b"<tag> OK done\r\n")}, 2, True),
        ({"UID SEARCH RETURN": say(b'* ESEARCH (TAG "x") COUNT 2 ALL 1:2\r\n<tag> OK done\r\n')}, 2, True),
        ({"UID SEARCH RETURN": say(b'* ESEARCH (TAG "x") UID COUNT 1 ALL 3\r\n<tag> OK done\r\n')}, 2, True),
        # SEARCH finds a part only: the mails are named one by one
        ({"UID SEARCH": say(b"* SEARCH 3\r\n<tag> OK done\r\n")}, 2, True),
        ({"UID SEARCH": say(b"* SEARCH 3\r\n* SEARCH 9 (MODSEQ 7)\r\n<tag> OK done\r\n")}, 2, True),
        ({"UID SEARCH": say(b"* SEARCH\r\n* SEARCH  3 9 \r\n<tag> OK done\r\n")}, 2, True),
        # another client deletes a mail meanwhile
        (
            {"UID SEARCH RETURN": say(b'* 2 EXPUNGE\r\n* ESEARCH (TAG "x") UID COUNT 1 ALL 3\r\n<tag> OK\r\n')},
            1,
            True,
        ),
        # nothing names all of them
        ({"UID SEARCH": say(b"* SEARCH 3\r\n<tag> OK\r\n"), "UID FETCH": say(b"<tag> OK\r\n")}, 1, False),
        # numbers that are none, or lie about their count
        ({"UID SEARCH": say(b"* SEARCH 3 x\r\n<tag> OK done\r\n")}, 0, False),
        ({"UID SEARCH": say(b"* SEARCH 3 3\r\n<tag> OK done\r\n")}, 1, False),
        ({"UID SEARCH": say(b'* ESEARCH (TAG "x") UID COUNT 2 ALL 1:4294967295\r\n<tag> OK\r\n')}, 0, False),
    ],
)
async def test_a_list_is_complete_only_with_every_mail(answers: dict[str, Answer], listed: int, complete: bool) -> None:
    script = ScriptedImap({3: ONE, 9: ONE}, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        listing = await client.fetch_list()
    assert (len(listing.mails), listing.complete) == (listed, complete)
    assert complete or f"the folder 'INBOX' has 2 mails, {listed} are listed" in listing.problem


async def test_a_mail_that_arrives_while_the_list_comes_is_in_it() -> None:
    found = b'* 3 EXISTS\r\n* ESEARCH (TAG "x") UID COUNT 3 ALL 3,9:10\r\n<tag> OK done\r\n'
    script = ScriptedImap({3: ONE, 9: ONE}, answers={"UID SEARCH RETURN": say(found)})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        listing = await client.fetch_list()
    assert listing.complete and len(listing.mails) == 3


async def test_uids_may_jump_to_the_end_of_their_range() -> None:
    script = ScriptedImap({1: ONE, 7_000_000: ONE, 2**32 - 1: ONE}, others={"Orders": ScriptedFolder({2**32 - 1: ONE})})
    async with script.running(), open_session(script.server(), True, folders=("INBOX", "Orders")) as client:
        await client.login(US)
        listing = await client.fetch_list()
        uids = [key.rpartition(":")[2] for _, key in listing.mails]
        assert uids == ["1", "7000000", "4294967295", "4294967295"]
        requests = [MailRequest(number, 10) for number, _ in listing.mails]
        got = [mail async for mail in client.retrieve(requests, 1000)]
        assert [bytes(mail.body or b"") for mail in got] == [ONE] * 4


async def test_a_state_is_the_same_only_while_nothing_changes() -> None:
    script = ScriptedImap({7: b"m"}, COUNTING, others={"Team": ScriptedFolder({3: b"m"}, modseq=40)})
    script.inbox.modseq = 12

    async def state(*folders: str) -> bytes | None:
        async with open_session(script.server(), True, folders=folders) as client:
            await client.login(US)
            return await client.fetch_state()

    async with script.running():
        first = await state("INBOX", "Team")
        assert first is not None and await state("INBOX", "Team") == first
        # another folder, a mail that comes, one that goes, a flag: each is another state
        states = [first, await state("INBOX")]
        script.mails[8] = b"n"
        states.append(await state("INBOX", "Team"))
        del script.mails[7]
        states.append(await state("INBOX", "Team"))
        script.others["Team"].modseq = 41
        states.append(await state("INBOX", "Team"))
        assert None not in states and len(set(states)) == 5
        # a folder whose server does not count changes has none
        script.others["Team"].modseq = None
        assert await state("INBOX", "Team") is None
        # nor has one that is missing, or whose server announces what it does not know
        del script.others["Team"]
        assert await state("Team") is None
        script.answers = {'EXAMINE "INBOX" (CONDSTORE)': say(b"<tag> BAD unknown parameter\r\n")}
        assert await state("INBOX") is None


async def test_an_empty_folder_needs_no_search() -> None:
    script = ScriptedImap()
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        listing = await client.fetch_list()
    assert listing.complete and listing.mails == ()
    assert not [line for line in script.commands if "SEARCH" in line]


@pytest.mark.parametrize(
    ("answer", "failure", "words"),
    [
        (say(b"<tag> NO [UNAVAILABLE] later\r\n"), ServerBusy, "EXAMINE: refused for now"),
        (say(b"<tag> BAD User is authenticated but not connected.\r\n"), ServerBusy, "not connected"),
        (say(b"<tag> NO EXAMINE Unsafe Login\r\n"), ProtocolError, "'INBOX' cannot be opened: EXAMINE Unsafe"),
        (say(b"* 1 EXISTS\r\n<tag> OK\r\n"), ProtocolError, "no lasting numbers"),
        (say(b"* OK [UIDVALIDITY 1]\r\n* NO [UIDNOTSTICKY]\r\n<tag> OK\r\n"), ProtocolError, "no lasting numbers"),
        (say(b"* BYE idle for too long\r\n"), ServerBusy, "the server ends the session: idle for too long"),
        (say(b"other OK done\r\n"), ProtocolError, "not an IMAP reply"),
        (say(b"+ what\r\n"), ProtocolError, "not an IMAP reply"),
        (say(b"* X {99999999}\r\n"), ProtocolError, "a string of 99999999 octets"),
        (say(b"* X {1}\r\nx" * 200), ProtocolError, "more than 64 literals"),
    ],
)
async def test_a_folder_that_cannot_be_opened_says_why(answer: Answer, failure: type[Exception], words: str) -> None:
    script = ScriptedImap({3: ONE}, answers={"EXAMINE": answer})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        with pytest.raises(failure, match=words) as caught:
            await client.fetch_list()
    assert f"127.0.0.1:{script.port}: " in str(caught.value)


async def test_a_flood_of_responses_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_stream, "MAX_UNTAGGED", 1000)
    script = ScriptedImap({3: ONE}, answers={"EXAMINE": say(b"* 1 EXPUNGE\r\n" * 5000)})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        with pytest.raises(ProtocolError, match="more than 1000 untagged responses"):
            await client.fetch_list()


async def test_a_list_without_end_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_stream, "LIST_OCTETS", 1_000_000)
    script = ScriptedImap({3: ONE}, answers={"UID SEARCH": say(b"* SEARCH" + b" 1234567" * 300_000)})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        with pytest.raises(ProtocolError, match="more than 1000000 octets"):
            await client.fetch_list()


async def test_a_list_of_many_mails_is_read() -> None:
    uids = b" ".join(b"%d" % uid for uid in range(1, 200_001))
    answers = {"EXAMINE": say(b"* 200000 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n<tag> OK\r\n")}
    answers["UID SEARCH"] = say(b"* SEARCH " + uids + b"\r\n<tag> OK\r\n")
    script = ScriptedImap(capabilities=("IMAP4rev1",), answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        listing = await client.fetch_list()
    assert listing.complete and listing.mails[-1] == (200_000, "INBOX:7:200000")


# ------------------------------------------------------------------------------------------------ folders


def with_folders(**folders: str) -> ScriptedImap:
    """Return a server with one mail in the INBOX and in each of these folders, which have these attributes."""
    others = {name: ScriptedFolder({1: ONE}, 50, attributes) for name, attributes in folders.items()}
    return ScriptedImap({3: ONE}, others=others)


async def test_several_folders_are_one_list() -> None:
    script = with_folders(Orders="", **{"Entw&APw-rfe": ""})
    async with script.running(), open_session(script.server(), True, folders=("inbox", "Orders", "Entwürfe")) as client:
        await client.login(US)
        listing = await client.fetch_list()
        assert listing.complete
        assert [key for _, key in listing.mails] == [KEYS[0], "Orders:50:1", "Entw%C3%BCrfe:50:1"]
        numbers = [number for number, _ in listing.mails]
        assert len(await client.fetch_sizes(numbers)) == 3
        got = [mail async for mail in client.retrieve([MailRequest(number, 10) for number in numbers], 1000)]
        assert [bytes(mail.body or b"") for mail in got] == [ONE] * 3 and [mail.number for mail in got] == numbers


@pytest.mark.parametrize("name", ['a"b\\c', "*", "%", "a b", "台北", "&", "x" * 300, "(", "NIL"])
async def test_any_name_of_a_folder_is_found(name: str) -> None:
    raw = encode_utf7(name)
    listed = b'* LIST () "/" other\r\n* LIST () "/" {%d}\r\n%s\r\n<tag> OK done\r\n' % (len(raw), raw)
    script = ScriptedImap({3: ONE}, others={raw.decode(): ScriptedFolder({1: ONE}, 50)}, answers={"LIST": say(listed)})
    async with script.running(), open_session(script.server(), True, folders=(name,)) as client:
        await client.login(US)
        listing = await client.fetch_list()
    assert listing.complete and len(listing.mails) == 1


@pytest.mark.parametrize("raw", ["Entwürfe".encode(), b"Entw\xfcrfe", b"INBOX.Entw\xfcrfe"])
async def test_a_folder_is_found_by_a_name_in_8_bit(raw: bytes) -> None:
    script = with_folders(**{raw.decode("utf-8", "surrogateescape"): ""})
    script.answers = {
        'LIST "" "Entw&APw-rfe"': say(b"<tag> OK none\r\n"),
        'LIST "" "INBOX.Entw&APw-rfe"': say(b"<tag> OK none\r\n"),
        "NAMESPACE": say(b'* NAMESPACE (("INBOX." ".")) NIL NIL\r\n<tag> OK\r\n'),
    }
    async with script.running(), open_session(script.server(), True, folders=("Entwürfe",)) as client:
        await client.login(US)
        [key] = await keys(client)
    assert key.endswith("Entw%C3%BCrfe:50:1")


async def test_a_name_in_utf8_is_sent_as_it_is_where_that_was_switched_on() -> None:
    script = with_folders(Entwürfe="")
    script.capabilities = (*CAPABILITIES, "ENABLE", "UTF8=ACCEPT")
    async with script.running(), open_session(script.server(), True, folders=("Entwürfe",)) as client:
        await client.login(US)
        assert await keys(client) == ["Entw%C3%BCrfe:50:1"]


async def test_a_folder_is_found_below_the_personal_namespace() -> None:
    script = with_folders(**{"INBOX.Orders": ""})
    script.answers = {"NAMESPACE": say(b'* NAMESPACE (("INBOX." ".")) NIL NIL\r\n<tag> OK\r\n')}
    async with script.running(), open_session(script.server(), True, folders=("Orders",)) as client:
        await client.login(US)
        assert await keys(client) == ["INBOX.Orders:50:1"]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (r"\HasNoChildren \Sent", r"marks it as \sent, it has sent mail"),
        (r"\Drafts", "it has drafts"),
        (r"\Trash", "it has deleted mail"),
        (r"\all", "it shows the mails of other folders again"),
        (r"\Flagged", "it shows the mails of other folders again"),
        (r"\Noselect", "there is no folder 'Odd'"),
        (None, "there is no folder 'Odd'"),
    ],
)
async def test_an_unfit_folder_is_not_fetched_and_the_others_are(attributes: str | None, words: str) -> None:
    script = with_folders(**({} if attributes is None else {"Odd": attributes}))
    async with script.running(), open_session(script.server(), True, folders=("INBOX", "Odd")) as client:
        await client.login(US)
        listing = await client.fetch_list()
    assert not listing.complete and words in listing.problem
    assert [key for _, key in listing.mails] == [KEYS[0]]


async def test_junk_is_fetched_on_request() -> None:
    script = with_folders(Spam=r"\Junk")
    async with script.running(), open_session(script.server(), True, folders=("INBOX", "Spam")) as client:
        await client.login(US)
        assert await keys(client) == [KEYS[0], "Spam:50:1"]


@pytest.mark.parametrize(
    ("name", "attributes", "is_junk"),
    [
        ("Odd", r"\HasNoChildren \Junk", True),
        ("Odd", r"\Spam", True),
        ("Spamverdacht", "", True),
        ("Mail/Bulk", "", True),
        ("Junk", r"\Archive", False),
        ("Orders", "", False),
        ("Junk/Orders", "", False),
    ],
)
async def test_a_folder_is_for_junk_by_its_mark_or_its_name(name: str, attributes: str, is_junk: bool) -> None:
    script = with_folders(**{name: attributes})
    async with script.running(), open_session(script.server(), True, folders=("INBOX", name)) as client:
        await client.login(US)
        listing = await client.fetch_list()
        assert [client.is_junk(number) for number, _ in listing.mails] == [False, is_junk]


async def test_marks_of_folders_are_asked_for_where_that_is_known() -> None:
    script = with_folders(Orders="")
    script.capabilities = (*CAPABILITIES, "LIST-EXTENDED", "SPECIAL-USE")
    async with script.running(), open_session(script.server(), True, folders=("Orders",)) as client:
        await client.login(US)
        await client.fetch_list()
    assert 'LIST "" "Orders" RETURN (SPECIAL-USE)' in script.commands


# ------------------------------------------------------------------------------------------------ deletions


async def test_only_these_mails_are_deleted() -> None:
    script = ScriptedImap(dict.fromkeys(range(1, 11), ONE))
    script.inbox.deleted = {9}  # marked by another client
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        assert not (await client.delete([2, 3, 4, 7])).numbers
        assert await client.quit()
    assert list(script.mails) == [1, 5, 6, 8, 9, 10]
    sent = [line for line in script.commands if line.split()[0] in ("SELECT", "UID")]
    assert sent[-3:] == ['SELECT "INBOX"', r"UID STORE 2:4,7 +FLAGS.SILENT (\Deleted)", "UID EXPUNGE 2:4,7"]
    assert not {"EXPUNGE", "CLOSE"} & set(script.commands)


async def test_many_mails_are_deleted_in_commands_of_limited_length() -> None:
    script = ScriptedImap(dict.fromkeys(range(1, 2001), ONE))
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        assert not (await client.delete(range(1, 2001, 2))).numbers
    assert list(script.mails) == list(range(2, 2001, 2))
    assert max(map(len, script.commands)) < 1000


async def test_without_uidplus_nothing_is_deleted() -> None:
    script = ScriptedImap({3: ONE}, capabilities=("IMAP4rev1", "MOVE"))
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        assert await client.delete([3]) == ([3], WITHOUT_UIDPLUS)
    assert not [line for line in script.commands if line.startswith(("SELECT", "UID STORE"))]


GMAIL_CAPABILITIES = (*CAPABILITIES, "MOVE", "X-GM-EXT-1", "SPECIAL-USE")


async def test_gmail_gets_them_moved_to_its_bin() -> None:
    bin_folder = ScriptedFolder(attributes=r"\HasNoChildren \Trash")
    script = ScriptedImap({2: ONE, 3: ONE, 4: ONE}, GMAIL_CAPABILITIES, others={"[Gmail]/Bin": bin_folder})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        assert not (await client.delete([2, 4])).numbers
    assert list(script.mails) == [3] and list(bin_folder.mails.values()) == [ONE, ONE]
    assert 'UID MOVE 2,4 "[Gmail]/Bin"' in script.commands
    assert not [line for line in script.commands if line.startswith(("UID STORE", "UID EXPUNGE"))]


async def test_gmail_without_a_bin_in_imap_expunges() -> None:
    script = ScriptedImap({3: ONE}, GMAIL_CAPABILITIES)
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        assert not (await client.delete([3])).numbers
    assert "UID EXPUNGE 3" in script.commands and not script.mails


async def test_a_refused_move_to_the_bin_says_why() -> None:
    bins = {"Bin": ScriptedFolder(attributes=r"\Trash")}
    answers = {"UID MOVE": say(b"<tag> NO [OVERQUOTA] the bin is full\r\n")}
    script = ScriptedImap({3: ONE}, GMAIL_CAPABILITIES, answers, bins)
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        assert await client.delete([3]) == ([3], "MOVE: [OVERQUOTA] the bin is full")
    assert 3 in script.mails


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"UID STORE": say(b"<tag> NO [NOPERM] not yours\r\n")}, "STORE: [NOPERM] not yours"),
        ({"UID EXPUNGE": say(b"<tag> NO later\r\n")}, "EXPUNGE: later"),
        (
            {"SELECT": say(b"* 1 EXISTS\r\n* OK [UIDVALIDITY 1700000000]\r\n<tag> OK [READ-ONLY] x\r\n")},
            "the folder 'INBOX' is read-only",
        ),
    ],
)
async def test_a_refused_deletion_says_why(answers: dict[str, Answer], reason: str) -> None:
    script = ScriptedImap({3: ONE}, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        assert await client.delete([3]) == ([3], reason)
    assert 3 in script.mails


async def test_a_folder_renumbered_meanwhile_loses_no_mail() -> None:
    script = ScriptedImap({3: ONE})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        await client.fetch_list()
        script.inbox.uidvalidity += 1
        with pytest.raises(ProtocolError, match="'INBOX' was renumbered meanwhile"):
            await client.delete([3])
    assert 3 in script.mails


@pytest.mark.parametrize(
    "answer", [cut(), cut(b"* BYE bye\r\n"), say(b"<tag> BAD what\r\n"), say(b"junk\r\n<tag> OK\r\n")]
)
async def test_the_end_of_a_session_cannot_fail(answer: Answer) -> None:
    script = ScriptedImap({3: ONE}, answers={"LOGOUT": answer})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(US)
        assert await client.quit()


async def test_a_closed_port_is_unreachable_and_is_named() -> None:
    script = ScriptedImap()
    async with script.running():
        server = script.server()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}: connection refused; check host and port"):
        async with open_session(server, True):
            pass
