"""services/imap_out/grammar/: the commands of the RFCs' examples and of mail clients, and how they are refused."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.imap_out.grammar.command_parser import COMMANDS, parse_command
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
    ListArguments,
    LoginArguments,
    MailboxArguments,
    NoArguments,
    QuotaArguments,
    RenameArguments,
    Resynchronization,
    SelectArguments,
    StatusArguments,
    StoreArguments,
)
from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.fetch_items import FetchAttribute, Section
from services.imap_out.number_sets import LAST, SAVED, NumberSet

ALL = NumberSet(((1, LAST),))
ONE = NumberSet(((1, 1),))
THUNDERBIRD = "FROM TO CC BCC SUBJECT DATE MESSAGE-ID PRIORITY X-PRIORITY REFERENCES IN-REPLY-TO"


def items(*names: str) -> tuple[FetchAttribute, ...]:
    return tuple(FetchAttribute(name) for name in names)


def headers(fields: str) -> FetchAttribute:
    return FetchAttribute("BODY[]", Section((), "HEADER.FIELDS", tuple(fields.encode().split())))


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        (b"abcd CAPABILITY", NoArguments()),
        (b"a047 noop", NoArguments()),
        (b"A023 LOGOUT", NoArguments()),
        (b"a002 STARTTLS ", NoArguments()),
        (b"A002 IDLE", NoArguments()),
        (b"A003 UNSELECT", NoArguments()),
        (b"A004 NAMESPACE", NoArguments()),
        (b"a001 LOGIN SMITH SESAME", LoginArguments(b"SMITH", b"SESAME")),
        (b'1 LOGIN "alex@local.com" "s\\"e\\\\c ret"', LoginArguments(b"alex@local.com", b's"e\\c ret')),
        (b'1 login alex@local.com ""', LoginArguments(b"alex@local.com", b"")),
        (b"1 LOGIN alex pass]word", LoginArguments(b"alex", b"pass]word")),
        (b"A001 AUTHENTICATE GSSAPI", AuthenticateArguments("GSSAPI", None)),
        (b"a authenticate plain AHRlc3QAdGVzdA==", AuthenticateArguments("PLAIN", b"\0test\0test")),
        (b"a AUTHENTICATE EXTERNAL =", AuthenticateArguments("EXTERNAL", b"")),
        (b"a023 ID NIL", IdArguments({})),
        (
            b'a023 ID ("name" "sodr" "version" "19.34" "vendor" NIL)',
            IdArguments({"name": "sodr", "version": "19.34", "vendor": None}),
        ),
        (b"t2 ENABLE CONDSTORE x-good-idea", EnableArguments(("CONDSTORE", "X-GOOD-IDEA"))),
        (b"a ENABLE UTF8=ACCEPT", EnableArguments(("UTF8=ACCEPT",))),
        (b"A142 SELECT inbox", SelectArguments("INBOX")),
        (b"A932 EXAMINE blurdybloop", SelectArguments("blurdybloop", read_only=True)),
        (b'a SELECT "Entw&APw-rfe" (CONDSTORE)', SelectArguments("Entwürfe", condstore=True)),
        (
            b"A02 SELECT INBOX (QRESYNC (67890007 20050715194045000 41,43:211,214:541))",
            SelectArguments(
                "INBOX",
                resynchronization=Resynchronization(
                    67890007, 20050715194045000, NumberSet(((41, 41), (43, 211), (214, 541)))
                ),
            ),
        ),
        (
            b"A03 SELECT INBOX (QRESYNC (67890007 90060115194045000 41:211,214:541 (1,3 41,43)))",
            SelectArguments(
                "INBOX",
                resynchronization=Resynchronization(
                    *(67890007, 90060115194045000, NumberSet(((41, 211), (214, 541)))),
                    *(NumberSet(((1, 1), (3, 3))), NumberSet(((41, 41), (43, 43)))),
                ),
            ),
        ),
        (b"A003 CREATE owatagusiam/", CreateArguments("owatagusiam/")),
        (b"t2 CREATE MySpecial (USE (\\Drafts \\SENT))", CreateArguments("MySpecial", ("\\Drafts", "\\Sent"))),
        (b"A685 DELETE foo", MailboxArguments("foo")),
        (b'A686 SUBSCRIBE "#news.comp.mail.mime"', MailboxArguments("#news.comp.mail.mime")),
        (b"A683 RENAME blurdybloop sarasoop", RenameArguments("blurdybloop", "sarasoop")),
        (b'A101 LIST "" ""', ListArguments("", ("",))),
        (b"A102 LIST #news.comp.mail.misc %", ListArguments("#news.comp.mail.misc", ("%",))),
        (b'A103 LSUB "#news." "comp.mail.*"', ListArguments("#news.", ("comp.mail.*",))),
        (b'A03 LIST "" (INBOX Drafts Sent/%)', ListArguments("", ("INBOX", "Drafts", "Sent/%"), extended=True)),
        (
            b'A04 LIST (SUBSCRIBED RECURSIVEMATCH) "" "*" RETURN (CHILDREN)',
            ListArguments(
                "", ("*",), frozenset(("SUBSCRIBED", "RECURSIVEMATCH")), frozenset(("CHILDREN",)), extended=True
            ),
        ),
        (
            b'A01 LIST "" % RETURN (SUBSCRIBED STATUS (MESSAGES UNSEEN) SPECIAL-USE)',
            ListArguments(
                *("", ("%",), frozenset(), frozenset(("SUBSCRIBED", "STATUS", "SPECIAL-USE"))),
                *(("MESSAGES", "UNSEEN"), True),
            ),
        ),
        (b"A042 STATUS blurdybloop (UIDNEXT MESSAGES)", StatusArguments("blurdybloop", ("UIDNEXT", "MESSAGES"))),
        (b"a STATUS INBOX (size HIGHESTMODSEQ)", StatusArguments("INBOX", ("SIZE", "HIGHESTMODSEQ"))),
        (b"A101 UID EXPUNGE 3000:3002", ExpungeArguments(NumberSet(((3000, 3002),)))),
        (b"A654 FETCH 2:4 FAST", FetchArguments(NumberSet(((2, 4),)), items("FLAGS", "INTERNALDATE", "RFC822.SIZE"))),
        (
            b"A FETCH $ (FLAGS BODY[HEADER.FIELDS (DATE FROM)])",
            FetchArguments(
                SAVED,
                (
                    FetchAttribute("FLAGS"),
                    FetchAttribute("BODY[]", Section((), "HEADER.FIELDS", (b"DATE", b"FROM")), False),
                ),
            ),
        ),
        (
            b"s100 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 12345 VANISHED)",
            FetchArguments(ALL, items("FLAGS"), 12345, vanished=True),
        ),
        (
            b"a fetch 1 (body.peek[4.2.mime]<0.2048> BINARY[4.1]<5.1> BINARY.SIZE[2] RFC822.HEADER RFC822)",
            FetchArguments(
                ONE,
                (
                    FetchAttribute("BODY[]", Section((4, 2), "MIME"), True, (0, 2048)),
                    FetchAttribute("BINARY[]", Section((4, 1)), False, (5, 1)),
                    FetchAttribute("BINARY.SIZE[]", Section((2,))),
                    FetchAttribute("RFC822.HEADER"),
                    FetchAttribute("RFC822", peek=False),
                ),
            ),
        ),
        (
            b"A003 STORE 2:4 +FLAGS (\\deleted $Forwarded \\Deleted)",
            StoreArguments(NumberSet(((2, 4),)), "add", ("\\Deleted", "$Forwarded")),
        ),
        (b"a STORE 1 flags.silent ()", StoreArguments(ONE, "replace", (), True)),
        (b"a STORE 1 -FLAGS \\Seen NonJunk", StoreArguments(ONE, "remove", ("\\Seen", "NonJunk"))),
        (
            b"a103 UID STORE 6,4,8 (UNCHANGEDSINCE 12121230045) +FLAGS.SILENT (\\Deleted)",
            StoreArguments(NumberSet(((6, 6), (4, 4), (8, 8))), "add", ("\\Deleted",), True, 12121230045),
        ),
        (b"A003 COPY 2:4 MEETING", CopyArguments(NumberSet(((2, 4),)), "MEETING")),
        (b"a UID MOVE 42:69 foo", CopyArguments(NumberSet(((42, 69),)), "foo")),
        (b'A003 GETQUOTA ""', QuotaArguments("")),
        (b"A003 GETQUOTAROOT INBOX", MailboxArguments("INBOX")),
        (b'S0 SETQUOTA "#user/alice" (STORAGE 510)', QuotaArguments("#user/alice", {"STORAGE": 510})),
        # habits of mail clients
        (b"7 UID fetch 1:* (FLAGS)", FetchArguments(ALL, items("FLAGS"))),  # Thunderbird
        (
            f"8 UID fetch 12 (UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS ({THUNDERBIRD})])".encode(),
            FetchArguments(NumberSet(((12, 12),)), (*items("UID", "RFC822.SIZE", "FLAGS"), headers(THUNDERBIRD))),
        ),
        (
            b'5 list (subscribed) "" "*" return (special-use)',
            ListArguments("", ("*",), frozenset(("SUBSCRIBED",)), frozenset(("SPECIAL-USE",)), extended=True),
        ),
        (
            b"17 UID fetch 3 (UID BODY.PEEK[1]<0.8192>)",
            FetchArguments(
                NumberSet(((3, 3),)), (FetchAttribute("UID"), FetchAttribute("BODY[]", Section((1,)), True, (0, 8192)))
            ),
        ),
        (
            b"A7.1 FETCH 1:20 (INTERNALDATE UID RFC822.SIZE FLAGS MODSEQ BODY.PEEK[HEADER])",  # Apple Mail
            FetchArguments(
                NumberSet(((1, 20),)),
                (
                    *items("INTERNALDATE", "UID", "RFC822.SIZE", "FLAGS", "MODSEQ"),
                    FetchAttribute("BODY[]", Section((), "HEADER")),
                ),
            ),
        ),
        (b"x4fz UID FETCH 1:* (FLAGS UID)", FetchArguments(ALL, items("FLAGS", "UID"))),  # Outlook
        (b'K9A LIST "" "*"', ListArguments("", ("*",))),  # K-9
        (
            b"a0005 FETCH 1:3 (UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[HEADER.FIELDS (DATE FROM)])",  # mutt
            FetchArguments(
                NumberSet(((1, 3),)), (*items("UID", "FLAGS", "INTERNALDATE", "RFC822.SIZE"), headers("DATE FROM"))
            ),
        ),
        (
            b"9 UID FETCH 4:*  (UID FLAGS BODY.PEEK[])",  # isync, with a blank too many
            FetchArguments(NumberSet(((4, LAST),)), (*items("UID", "FLAGS"), FetchAttribute("BODY[]", Section()))),
        ),
        (
            b"10 UID FETCH 1,2 BODY.PEEK[HEADER.FIELDS (Message-Id Message-ID Received)]",  # imapsync
            FetchArguments(NumberSet(((1, 1), (2, 2))), (headers("MESSAGE-ID MESSAGE-ID RECEIVED"),)),
        ),
    ],
)
def test_a_command_is_parsed(line: bytes, arguments: Arguments) -> None:
    command = parse_command(line)
    assert command.arguments == arguments
    assert command.tag == line.split()[0].decode() and command.name in COMMANDS
    assert command.uid == (b"UID " in line.upper()[:10])


def test_append_names_flags_date_and_length() -> None:
    line = b'A003 APPEND saved-messages (\\Seen) " 7-Feb-1994 21:52:25 -0800" \0'
    moment = dt.datetime(1994, 2, 7, 21, 52, 25, tzinfo=dt.timezone(dt.timedelta(hours=-8)))
    assert parse_command(line, octets=326).arguments == AppendArguments("saved-messages", ("\\Seen",), moment, 326)
    assert parse_command(b"a APPEND x UTF8 (\0", octets=3).arguments == AppendArguments("x", (), None, 3, True)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", "no tag"),
        (b"+a NOOP", "no tag"),
        (b"a", "the name of the command is missing"),
        (b"a FOO", "the command is unknown"),
        (b"a UID NOOP", "the command after UID is unknown"),
        (b"a NOOP x", "more arguments"),
        (b"a LOGIN alex", "the password is missing"),
        (b'a LOGIN alex "x', "the password"),
        (b"a AUTHENTICATE PLAIN %%", "the initial response is no base64"),
        (b"a SELECT", "the name of the mailbox is missing"),
        (b"a SELECT INBOX (FOO)", "known are CONDSTORE and QRESYNC"),
        (b"a SELECT INBOX (QRESYNC (0 1))", "UIDVALIDITY of QRESYNC"),
        (b"a SELECT INBOX (QRESYNC (1 1 1:*))", "must have no *"),
        (b'a LIST (RECURSIVEMATCH) "" *', "RECURSIVEMATCH needs another"),
        (b'a LIST (FOO) "" *', "the selection options: known are"),
        (b'a LIST "" * RETURN (STATUS)', "the items of STATUS"),
        (b'a LIST "" * FOO', "nothing but RETURN"),
        (b"a STATUS INBOX ()", "the items of STATUS: known are DELETED"),
        (b"a STATUS INBOX (FOO)", "the items of STATUS: known are"),
        (b"a FETCH 0 FLAGS", "the set of mails"),
        (b"a FETCH 1:4294967296 FLAGS", "the set of mails"),
        (b"a FETCH 1, FLAGS", "the set of mails"),
        (b"a FETCH 1 ()", "FETCH has no items"),
        (b"a FETCH 1 (FLAGS", "FETCH has an unknown item"),
        (b"a FETCH 1 BODY[MIME]", "the section is unknown"),
        (b"a FETCH 1 BODY[0]", "the part's number is malformed"),
        (b"a FETCH 1 BODY[1.]", "the part's number is malformed"),
        (b"a FETCH 1 BODY[.TEXT]", "the part's number is malformed"),
        (b"a FETCH 1 BODY[1TEXT]", "the part's number is malformed"),
        (b"a FETCH 1 BODY[HEADER.FIELDS ()]", "the names of header fields are missing"),
        (b"a FETCH 1 BODY[]<1>", "the octets of a partial section"),
        (b"a FETCH 1 BODY[]<1.0>", "the octets of a partial section"),
        (b"a FETCH 1 BINARY[TEXT]", "the section is unknown"),
        (b"a FETCH 1 FLAGS (VANISHED)", "VANISHED needs CHANGEDSINCE"),
        (b"a STORE 1 +FLAGS (\\Recent)", "of those with \\ a client sets"),
        (b"a STORE 1 +FLAGS (\\Seen", "the flags"),
        (b"a STORE 1 FOO (\\Seen)", "STORE changes FLAGS"),
        (b"a COPY 1", "the name of the mailbox is missing"),
        (b"a UID EXPUNGE", "the set of mails is missing"),
        (b"a THREAD FOO UTF-8 ALL", "known are REFERENCES"),
        (b"a SORT () UTF-8 ALL", "the criteria of SORT are missing"),
        (b"a SORT (REVERSE) UTF-8 ALL", "the criteria of SORT are missing"),
        (b"a APPEND INBOX", "the mail is missing"),
        (b'a APPEND INBOX "x" \0', "the date of the mail"),
    ],
)
def test_the_refusal_names_the_argument(line: bytes, text: str) -> None:
    with pytest.raises(CommandError) as refused:
        parse_command(line)
    assert text in str(refused.value) and refused.value.kind == "BAD"


@pytest.mark.parametrize("name", [b"a&b", b"&AGE-", b"&2D0-", b"Entw\xfcrfe", b"x" * 1001, b"&AAk-"])
def test_a_name_that_no_mailbox_can_have_is_refused_with_no(name: bytes) -> None:
    with pytest.raises(CommandError) as refused:
        parse_command(b"a CREATE " + name)
    assert (refused.value.kind, refused.value.code) == ("NO", "CANNOT")


def test_a_session_with_utf8_takes_names_as_they_are() -> None:
    assert parse_command("a CREATE Entwürfe".encode(), utf8=True).arguments == CreateArguments("Entwürfe")
    assert parse_command(b"a CREATE a&b", utf8=True).arguments == CreateArguments("a&b")
    assert parse_command("a CREATE Entwürfe".encode()).arguments == CreateArguments("Entwürfe")  # some clients do


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_every_string_survives_as_quoted_string(text: str) -> None:
    if "\r" in text or "\n" in text:
        return
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').encode()
    command = parse_command(b'a LOGIN "%s" x' % quoted)
    assert command.arguments == LoginArguments(text.encode(), b"x")


@given(st.binary(max_size=60))
def test_any_octets_are_parsed_or_refused(octets: bytes) -> None:
    for start in (b"a ", b"a FETCH 1 ", b"a SEARCH ", b"a LIST ", b"a STORE 1 ", b"a SELECT x ", b"a ID "):
        try:
            parse_command(start + octets.replace(b"\0", b""))
        except CommandError as error:
            assert str(error).isprintable()
