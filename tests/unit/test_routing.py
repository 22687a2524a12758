"""shared/routing and shared/mime/bounces.py: the five rules of routing, one test for each sentence."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import routing
from shared.mime.headers import MAX_HOPS
from shared.model import External, Local, Relay, Sent, Server
from shared.routing import Decision, HeaderFacts, OwnCopy, read_facts, referenced_ids

E = "support@company.com"
ALEX, JIM, KIM, TOM = 1, 2, 3, 4
SALES = 2


def company(address: str = E, *names: str) -> tuple[External, list[Local]]:
    """An external account with id 1 and its sharers with ids 1, 2 …"""
    server = Server("mail.company.com", 110, "none")
    external = External(
        1, address, True, address, b"", server, (Relay(server, False),), 60, "all", None, False, True, ()
    )
    return external, [
        Local(number, f"user{number}@local.com", True, "", name, (), (), 1, None)
        for number, name in enumerate(names or ("Alex", "Jim", "Kim"), 1)
    ]


def people(**changes: dict[str, object]) -> list[Local]:
    """Alex, Jim and Kim with some fields changed, by lower-case name."""
    return [
        dataclasses.replace(local, **changes.get(local.user_name.lower(), {}))  # type: ignore[arg-type]  # any field
        for local in company()[1]
    ]


def external(**changes: object) -> External:
    return dataclasses.replace(company()[0], **changes)  # type: ignore[arg-type]  # any field


def sent(
    message_id: str, author: int, *recipients: str, through: int = 1, blob: int | None = 7
) -> dict[str, Sequence[Sent]]:
    return {message_id: [Sent(message_id, through, author, recipients or ("customer@x.example",), blob)]}


def mail(*lines: str, body: str = "") -> bytes:
    return "\r\n".join([*lines, "", body]).encode()


def decide(
    head: bytes,
    account: External,
    sharers: Sequence[Local],
    known: Mapping[str, Sequence[Sent]],
    source: str = "fetched",
    author: int | None = None,
) -> Decision:
    return routing.decide(read_facts(head, account), account, sharers, known, source, author)


def own_copy(
    head: bytes, account: External, sharers: Sequence[Local], known: Mapping[str, Sequence[Sent]]
) -> OwnCopy | None:
    return routing.find_own_copy(read_facts(head, account), account, sharers, known)


def got(decision: Decision) -> set[int]:
    found = [recipient.local_id for recipient in decision.recipients]
    assert len(found) == len(set(found)), "a copy each, never two"
    return set(found)


def outcome(decision: Decision) -> tuple[int, set[int]]:
    return decision.rule, got(decision)


EVERYONE = {ALEX, JIM, KIM}
SENT = sent("alex-1@company.com", ALEX) | sent("jim-1@company.com", JIM) | sent("kim-1@company.com", KIM)
IN_REPLY_TO_ALEX = "In-Reply-To: <alex-1@company.com>"


# ------------------------------------------------------------- candidates: whose address it has to be


@pytest.mark.parametrize(
    ("to", "rule", "who"),
    [
        (f'"Alex" <{E}>', 1, {ALEX}),
        ('"Alex" <SUPPORT@Company.Com>', 1, {ALEX}),
        ('"Alex" <support@company.com.>', 1, {ALEX}),
        ('"Alex" <support+shop@company.com>', 1, {ALEX}),
        ('"Alex" <support+a+b@company.com>', 1, {ALEX}),
        ('"Alex" <help@company.com>', 1, {ALEX}),  # an alias of the account
        ('"Alex" <Help+x@company.com>', 1, {ALEX}),
        ('"Alex" <support@xn--e1afmkfd.xn--p1ai>', 1, {ALEX}),  # an alias with a domain in Cyrillic
        ('"Alex" <"support"@company.com>', 1, {ALEX}),
        ('"Alex" <sales@company.com>', 5, EVERYONE),
        ('"Alex" <supportx@company.com>', 5, EVERYONE),
        ('"Alex" <xsupport@company.com>', 5, EVERYONE),
        ('"Alex" <support@company.com.evil.example>', 5, EVERYONE),
        ('"Alex" <support@evilcompany.com>', 5, EVERYONE),
        ('"Alex" <user1@local.com>', 5, EVERYONE),
        (f'"Alex" <x@y.example>, {E}', 5, EVERYONE),
        (f'"Alex" <x@y.example>, "Jim" <{E}>', 1, {JIM}),
    ],
)
def test_a_name_counts_beside_an_address_of_the_account_only(to: str, rule: int, who: set[int]) -> None:
    # given
    account = external(aliases=("HELP@company.com", "support@пример.рф"))
    # then
    assert outcome(decide(mail(f"To: {to}"), account, people(), {})) == (rule, who)


# ------------------------------------------------------------- names: compared whole


@pytest.mark.parametrize(
    ("name", "rule", "who"),
    [
        ("Alex", 1, {ALEX}),
        ("ALEX", 1, {ALEX}),
        ("'Alex'", 1, {ALEX}),
        ("A\u200blex", 1, {ALEX}),
        ("=?utf-8?q?Alex?=", 1, {ALEX}),
        ("Lex", 1, {ALEX}),  # a further name
        ("Alexandra Old", 1, {ALEX}),  # a former one
        ("Ale", 5, EVERYONE),
        ("Alex Jim", 5, EVERYONE),
        ("Alex, Jim", 5, EVERYONE),
        ("Alexandra", 5, EVERYONE),
        ("Company Support", 5, EVERYONE),
        ("", 5, EVERYONE),
        ("%", 5, EVERYONE),
        ("support@company.com", 5, EVERYONE),
        ("support", 5, EVERYONE),
        ("<support@company.com>", 5, EVERYONE),
        ("'support@company.com'", 5, EVERYONE),
    ],
)
def test_names_are_compared_whole(name: str, rule: int, who: set[int]) -> None:
    # given
    sharers = people(alex={"aliases": ("Lex", "Alexandra Old")})
    # then
    assert outcome(decide(mail(f'To: "{name}" <{E}>'), external(), sharers, {})) == (rule, who)


@pytest.mark.parametrize("name", ["support", "Support", "support@company.com"])
def test_the_address_as_its_own_name_is_a_name_if_a_sharer_has_it(name: str) -> None:
    # given
    sharers = people(jim={"aliases": (name,)})
    # then
    assert outcome(decide(mail(f"To: {name} <{E}>"), external(), sharers, {})) == (1, {JIM})


def test_people_whose_names_differ_in_case_only_both_get_it() -> None:
    # given
    account, sharers = company(E, "Alex", "alex", "Jim")
    # then
    assert got(decide(mail(f'To: "ALEX" <{E}>'), account, sharers, {})) == {1, 2}


def test_an_empty_name_does_not_mean_a_sharer_without_a_visible_letter() -> None:
    # given
    sharers = people(jim={"user_name": "\u200b"})
    # then
    assert outcome(decide(mail(f'To: "\u200d" <{E}>'), external(), sharers, {})) == (5, EVERYONE)


# ------------------------------------------------------------- rules 1 and 2: To and Cc


@pytest.mark.parametrize(
    ("lines", "rule", "who"),
    [
        # 1: names in To that match, once each, and with them the people named in Cc
        ([f'To: "Alex" <{E}>, "Jim" <{E}>'], 1, {ALEX, JIM}),
        ([f'To: "Alex" <{E}>, "Alex" <{E}>'], 1, {ALEX}),
        ([f'To: "Alex" <{E}>, "Bob" <{E}>'], 1, {ALEX}),
        ([f'To: "Alex" <{E}>, {E}'], 1, {ALEX}),
        ([f'To: "Alex" <{E}>', f'Cc: "Jim" <{E}>'], 1, {ALEX, JIM}),
        ([f'To: "Alex" <{E}>', f'Cc: "Alex" <{E}>'], 1, {ALEX}),
        ([f'To: "Alex" <{E}>', f"Cc: {E}"], 1, {ALEX}),
        ([f'To: "Alex" <{E}>', 'Cc: "Jim" <sales@company.com>'], 1, {ALEX}),
        ([f'To: "Alex" <{E}>', f'Bcc: "Jim" <{E}>'], 1, {ALEX}),
        # all To fields count
        (["To: x@y.example", f'To: "Alex" <{E}>'], 1, {ALEX}),
        ([f'To: "Alex" <{E}>', f'to : "Jim" <{E}>'], 1, {ALEX, JIM}),
        ([f"To: {E}", f'To: "Jim" <{E}>'], 1, {JIM}),
        # a To that holds E's address without a matching name: Cc names nobody
        ([f"To: {E}", f'Cc: "Alex" <{E}>'], 5, EVERYONE),
        ([f'To: "Bob" <{E}>', f'Cc: "Alex" <{E}>'], 5, EVERYONE),
        ([f'To: "Bob" <{E}>', f'Cc: "Alex" <{E}>', IN_REPLY_TO_ALEX.replace("alex", "jim")], 3, {JIM}),
        # 2: E in Cc only
        (["To: x@y.example", f'Cc: "Alex" <{E}>'], 2, {ALEX}),
        ([f'Cc: "Alex" <{E}>, "Jim" <{E}>'], 2, {ALEX, JIM}),
        (["To: x@y.example", f'CC: "Alex" <{E}>', f'Cc: "Kim" <{E}>'], 2, {ALEX, KIM}),
        ([f'Cc: "Alex" <{E}>', IN_REPLY_TO_ALEX.replace("alex", "jim")], 2, {ALEX}),
        (["To: x@y.example", f"Cc: {E}"], 5, EVERYONE),
        (["To: x@y.example", f'Cc: "Bob" <{E}>'], 5, EVERYONE),
        (["To: x@y.example", f'Cc: "Bob" <{E}>', IN_REPLY_TO_ALEX], 3, {ALEX}),
        # 5: E in no header, or nothing that can be read
        (["To: x@y.example"], 5, EVERYONE),
        ([], 5, EVERYONE),
        (["To: undisclosed-recipients:;"], 5, EVERYONE),
        ([f'Bcc: "Alex" <{E}>'], 5, EVERYONE),
        (["Alex " + E], 5, EVERYONE),
        ([f'X-To: "Alex" <{E}>'], 5, EVERYONE),
        (["Subject: x", "", f'To: "Alex" <{E}>'], 5, EVERYONE),  # in the body
    ],
)
def test_to_decides_then_cc(lines: list[str], rule: int, who: set[int]) -> None:
    assert outcome(decide(mail(*lines), external(), people(), SENT)) == (rule, who)


# ------------------------------------------------------------- rules 1 and 3: the author of the mail it answers


@pytest.mark.parametrize(
    ("lines", "rule", "who"),
    [
        ([f"To: {E}", IN_REPLY_TO_ALEX], 3, {ALEX}),
        ([f'To: "My supporter" <{E}>', IN_REPLY_TO_ALEX], 3, {ALEX}),  # replaced by the client's own contact
        (["To: x@y.example", IN_REPLY_TO_ALEX], 3, {ALEX}),
        ([f"To: {E}", "References: <alex-1@company.com>"], 3, {ALEX}),
        # In-Reply-To first, else the last id in References that we know
        ([f"To: {E}", IN_REPLY_TO_ALEX, "References: <jim-1@company.com>"], 3, {ALEX}),
        ([f"To: {E}", "In-Reply-To: <other@y.example>", "References: <jim-1@company.com>"], 3, {JIM}),
        ([f"To: {E}", "References: <jim-1@company.com> <alex-1@company.com>"], 3, {ALEX}),
        ([f"To: {E}", "References: <jim-1@company.com> <alex-1@company.com> <z@y.example>"], 3, {ALEX}),
        ([f"To: {E}", "References: <kim-1@company.com>\r\n <jim-1@company.com>\r\n\t<z@y.example>"], 3, {JIM}),
        ([f"To: {E}", "References: <jim-1@company.com>", "References: <alex-1@company.com>"], 3, {ALEX}),
        ([f"To: {E}", "In-Reply-To: your mail of Monday <alex-1@company.com>"], 3, {ALEX}),
        ([f"To: {E}", "In-Reply-To: <alex-1@\r\n company.com>"], 3, {ALEX}),
        ([f"To: {E}", "In-Reply-To: <z@y.example>"], 5, EVERYONE),
        ([f"To: {E}", "Message-ID: <alex-1@company.com>"], 5, EVERYONE),  # a mail that refers to itself is no answer
        # with names in To, the author gets it too
        ([f'To: "Jim" <{E}>', IN_REPLY_TO_ALEX], 1, {ALEX, JIM}),
        ([f'To: "Jim" <{E}>', "References: <kim-1@company.com>"], 1, {JIM, KIM}),
        ([f'To: "Alex" <{E}>', IN_REPLY_TO_ALEX], 1, {ALEX}),
        ([f'To: "Jim" <{E}>', f'Cc: "Kim" <{E}>', IN_REPLY_TO_ALEX], 1, EVERYONE),
    ],
)
def test_an_answer_reaches_the_author(lines: list[str], rule: int, who: set[int]) -> None:
    assert outcome(decide(mail(*lines), external(), people(), SENT)) == (rule, who)


@pytest.mark.parametrize(
    ("lines", "rule", "who"),
    [
        ([f"To: {E}", IN_REPLY_TO_ALEX], 5, EVERYONE),
        ([f'To: "Jim" <{E}>', IN_REPLY_TO_ALEX], 1, {JIM}),
    ],
)
def test_reply_to_author_can_be_turned_off(lines: list[str], rule: int, who: set[int]) -> None:
    assert outcome(decide(mail(*lines), external(reply_to_author=False), people(), SENT)) == (rule, who)


def test_authorship_counts_while_the_author_shares_the_account() -> None:
    # given Tom, who wrote it and moved to another account
    known = sent("tom-1@company.com", TOM) | SENT
    facts = mail(f"To: {E}", "In-Reply-To: <tom-1@company.com>")
    older = mail(f"To: {E}", "In-Reply-To: <tom-1@company.com>", "References: <alex-1@company.com> <tom-1@company.com>")
    # then
    assert outcome(decide(facts, external(), people(), known)) == (5, EVERYONE)
    assert outcome(decide(older, external(), people(), known)) == (3, {ALEX})


def test_an_id_keeps_its_first_author() -> None:
    # given
    known = {"twice@x": [Sent("twice@x", 1, JIM), Sent("twice@x", 1, ALEX)]}
    # then
    assert outcome(decide(mail(f"To: {E}", "In-Reply-To: <twice@x>"), external(), people(), known)) == (3, {JIM})


def test_an_id_that_went_through_two_accounts_has_an_author_in_each() -> None:
    # given
    known = {"both@x": [Sent("both@x", SALES, TOM), Sent("both@x", 1, ALEX)]}
    # then
    assert outcome(decide(mail(f"To: {E}", "In-Reply-To: <both@x>"), external(), people(), known)) == (3, {ALEX})


def test_an_author_who_moved_here_gets_answers_to_mail_of_the_old_account() -> None:
    # given
    known = sent("old@x", JIM, through=SALES)
    # then
    assert outcome(decide(mail(f"To: {E}", "In-Reply-To: <old@x>"), external(), people(), known)) == (3, {JIM})


# ------------------------------------------------------------- rule 4: failure notices and auto-replies


def report(part: str, content: str, encoding: str = "7bit", boundary: str = "=_b/1") -> list[str]:
    """A multipart/report whose third part is ``content``."""
    return [
        f"To: {E}",
        "From: MAILER-DAEMON@mx.example",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
        "",
        "preamble",
        f"--{boundary}",
        "Content-Type: text/plain",
        "",
        "Message-ID: <jim-1@company.com> is not it",
        "",
        f"--{boundary}",
        "Content-Type: message/delivery-status",
        "",
        "Reporting-MTA: dns; mx.example",
        "",
        "Final-Recipient: rfc822; gone@x.example",
        "Action: failed",
        "Status: 5.1.1",
        "",
        f"--{boundary}",
        f"Content-Type: {part}",
        f"Content-Transfer-Encoding: {encoding}",
        "",
        content,
        f"--{boundary}--",
        "",
    ]


RETURNED = 'Received: x\r\nFrom: "Alex" <support@company.com>\r\nMessage-ID:\r\n <alex-1@company.com>\r\n\r\nHello'


@pytest.mark.parametrize(
    "lines",
    [
        report("message/rfc822", RETURNED),
        report("text/rfc822-headers", RETURNED.partition("\r\n\r\n")[0] + "\r\n"),
        report(
            "text/rfc822-headers; charset=us-ascii",
            RETURNED.replace("=", "=3D").replace("alex-1", "alex=\r\n-1"),
            "quoted-printable",
        ),
        report("text/rfc822-headers", "TWVzc2FnZS1JRDogPGFsZXgtMUBjb21wYW55LmNv\r\nbT4NCg==", "base64"),
        report("message/global-headers", RETURNED),
        report("Message/RFC822", "\r\n" + RETURNED, boundary="simple"),
        report("message/disposition-notification", "Reporting-UA: x\r\nOriginal-Message-ID: <alex-1@company.com>\r\n"),
        [
            f"To: {E}",
            "Auto-Submitted: auto-replied",
            "Content-Type: text/plain",
            "",
            "I could not deliver your mail:",
            "> Message-ID: <alex-1@company.com>",
        ],
        [f"To: {E}", "Return-Path: <>", "", "--- Below this line is a copy.", "Message-Id: <alex-1@company.com>"],
        [f"To: {E}", "X-Failed-Recipients: gone@x.example", "", "Message-ID: <alex-1@company.com>"],
    ],
)
def test_a_notice_reaches_the_author_of_the_mail_that_it_reports_on(lines: list[str]) -> None:
    assert outcome(decide(mail(*lines), external(), people(), SENT)) == (4, {ALEX})


@pytest.mark.parametrize(
    ("lines", "rule", "who"),
    [
        # a name in To precedes it, and so does an answer
        ([line.replace(f"To: {E}", f'To: "Kim" <{E}>') for line in report("message/rfc822", RETURNED)], 1, {KIM}),
        (["In-Reply-To: <kim-1@company.com>", *report("message/rfc822", RETURNED)], 3, {KIM}),
        # about nothing that we sent
        (report("message/rfc822", RETURNED.replace("alex-1", "unknown")), 5, EVERYONE),
        (report("message/rfc822", "no header at all"), 4, {JIM}),  # then the text part
        # no notice: a customer forwards a mail of ours
        (
            [
                f"To: {E}",
                'Content-Type: multipart/mixed; boundary="b"',
                "",
                "--b",
                "Content-Type: message/rfc822",
                "",
                RETURNED,
                "--b--",
            ],
            5,
            EVERYONE,
        ),
        ([f"To: {E}", "Auto-Submitted: no", "", "Message-ID: <alex-1@company.com>"], 5, EVERYONE),
    ],
)
def test_other_rules_go_before_a_notice(lines: list[str], rule: int, who: set[int]) -> None:
    assert outcome(decide(mail(*lines), external(), people(), SENT)) == (rule, who)


@pytest.mark.parametrize(
    "line",
    [
        "Auto-Submitted: auto-replied (vacation)",
        "Auto-Submitted: auto-generated; x=y",
        "Precedence: auto_reply",
        "X-Autoreply: yes",
        "Return-Path: <>",
    ],
)
def test_an_auto_reply_reaches_the_author_even_if_replies_do_not(line: str) -> None:
    # given
    account = external(reply_to_author=False)
    # then
    assert outcome(decide(mail(f"To: {E}", line, IN_REPLY_TO_ALEX), account, people(), SENT)) == (4, {ALEX})


def test_a_report_inside_a_wrapper_is_read() -> None:
    # given a list server or scanner that put its own multipart around
    inner = report("message/rfc822", RETURNED)
    lines = [
        f"To: {E}",
        "Auto-Submitted: auto-replied",
        "Content-Type: multipart/mixed; boundary=outer",
        "",
        "--outer",
        *inner[2:],
        "--outer",
        "",
        "scanned",
        "--outer--",
    ]
    # then
    assert outcome(decide(mail(*lines), external(), people(), SENT)) == (4, {ALEX})


def test_the_returned_mail_goes_before_an_id_that_a_notice_only_names() -> None:
    # given
    named, returned = (
        report("message/disposition-notification", "Original-Message-ID: <jim-1@company.com>\r\n"),
        report("message/rfc822", RETURNED),
    )
    lines = [*named[:-2], *returned[-7:]]
    # then
    assert outcome(decide(mail(*lines), external(), people(), SENT)) == (4, {ALEX})


def test_the_first_256_kib_of_a_report_are_read() -> None:
    # given
    near = report("message/rfc822", RETURNED + "x" * 300_000)
    far = report("message/rfc822", "X: " + "x" * 300_000 + "\r\n" + RETURNED)
    # then
    assert outcome(decide(mail(*near), external(), people(), SENT)) == (4, {ALEX})
    assert decide(mail(*far), external(), people(), sent("alex-1@company.com", ALEX)).rule == 5


# ------------------------------------------------------------- disabled people

OFF: dict[str, object] = {"enabled": False}


@pytest.mark.parametrize(
    ("lines", "changes", "rule", "who"),
    [
        # not in 5
        ([f"To: {E}"], {"alex": OFF}, 5, {JIM, KIM}),
        # by name: the delegate …
        ([f'To: "Alex" <{E}>'], {"alex": OFF | {"delegate_id": JIM}}, 1, {JIM}),
        (["To: x@y.example", f'Cc: "Alex" <{E}>'], {"alex": OFF | {"delegate_id": JIM}}, 2, {JIM}),
        ([f'To: "Alex" <{E}>, "Jim" <{E}>'], {"alex": OFF | {"delegate_id": JIM}}, 1, {JIM}),
        ([f'To: "Alex" <{E}>, "Kim" <{E}>'], {"alex": OFF | {"delegate_id": JIM}}, 1, {JIM, KIM}),
        # … if enabled, sharing E, one hop; else the other sharers
        ([f'To: "Alex" <{E}>'], {"alex": OFF}, 1, {JIM, KIM}),
        ([f'To: "Alex" <{E}>'], {"alex": OFF | {"delegate_id": TOM}}, 1, {JIM, KIM}),
        ([f'To: "Alex" <{E}>'], {"alex": OFF | {"delegate_id": ALEX}}, 1, {JIM, KIM}),
        ([f'To: "Alex" <{E}>'], {"alex": OFF | {"delegate_id": JIM}, "jim": OFF | {"delegate_id": KIM}}, 1, {KIM}),
        ([f'To: "Alex" <{E}>'], {"alex": OFF | {"delegate_id": JIM}, "jim": OFF}, 1, {KIM}),
        ([f'To: "Alex" <{E}>, "Jim" <{E}>'], {"alex": OFF}, 1, {JIM, KIM}),
        # a delegate gets nothing while the person is enabled
        ([f'To: "Alex" <{E}>'], {"alex": {"delegate_id": JIM}}, 1, {ALEX}),
        # the same for an author
        ([f"To: {E}", IN_REPLY_TO_ALEX], {"alex": OFF | {"delegate_id": JIM}}, 3, {JIM}),
        ([f"To: {E}", IN_REPLY_TO_ALEX], {"alex": OFF}, 3, {JIM, KIM}),
        (report("message/rfc822", RETURNED), {"alex": OFF | {"delegate_id": KIM}}, 4, {KIM}),
        # the named person gets the mail: an author who cannot read it adds no other recipient
        ([f'To: "Jim" <{E}>', IN_REPLY_TO_ALEX], {"alex": OFF}, 1, {JIM}),
        ([f'To: "Jim" <{E}>', IN_REPLY_TO_ALEX], {"alex": OFF | {"delegate_id": KIM}}, 1, {JIM, KIM}),
        ([f'To: "Jim" <{E}>', IN_REPLY_TO_ALEX], {"alex": OFF, "jim": OFF}, 1, {KIM}),
    ],
)
def test_mail_for_a_disabled_person_goes_to_delegate_or_sharers(
    lines: list[str], changes: dict[str, dict[str, object]], rule: int, who: set[int]
) -> None:
    assert outcome(decide(mail(*lines), external(), people(**changes), SENT)) == (rule, who)


@pytest.mark.parametrize("line", [f"To: {E}", f'To: "Alex" <{E}>', IN_REPLY_TO_ALEX])
def test_without_an_enabled_sharer_a_mail_is_held(line: str) -> None:
    # given
    nobody = people(alex=OFF | {"delegate_id": JIM}, jim=OFF, kim=OFF)
    for sharers in (nobody, []):
        # when
        decision = decide(mail(line), external(), sharers, SENT)
        # then
        assert decision.held
        assert decision.recipients == ()
        assert E in decision.reason


# ------------------------------------------------------------- our own mail coming back

OWN = [f'From: "Alex" <{E}>', "To: customer@x.example", "Message-ID: <alex-1@company.com>"]


def test_an_own_copy_goes_to_its_author_only_as_deleted() -> None:
    # when
    copy = own_copy(mail(*OWN), external(), people(), SENT)
    # then
    assert copy is not None
    assert copy.decision.own_copy and not copy.decision.held
    assert got(copy.decision) == {ALEX}
    assert (copy.copy_of, copy.further_id, copy.blob_id) == ("alex-1@company.com", None, 7)


def test_a_disabled_author_keeps_the_own_copy() -> None:
    copy = own_copy(mail(*OWN), external(), people(alex=OFF | {"delegate_id": JIM}), SENT)
    assert copy is not None and got(copy.decision) == {ALEX}


@pytest.mark.parametrize("field", ["X-Google-Original-Message-ID", "X-Microsoft-Original-Message-ID"])
def test_an_own_copy_teaches_the_id_that_the_provider_gave_it(field: str) -> None:
    # given
    head = mail(*OWN[:2], "Message-ID: <new@provider.example>", f"{field}: <alex-1@company.com>")
    # when
    copy = own_copy(head, external(), people(), SENT)
    # then
    assert copy is not None
    assert (copy.copy_of, copy.further_id) == ("alex-1@company.com", "new@provider.example")


BODY = b"Hello Ann,\r\n\r\nthe price is 100.\r\n"


@pytest.mark.parametrize(
    ("body", "is_copy"),
    [
        (BODY, True),
        (BODY + b"\r\n\r\n", True),  # a provider adds or removes final line ends
        (BODY.rstrip(), True),
        (BODY.replace(b"100", b"900"), False),
        (BODY[:-10], False),
        (BODY + b"-- \r\nsent by a provider\r\n", False),
        (b"\r\n" + BODY, False),
        (b"", False),
        (BODY * 3000 + b"x", False),
    ],
)
def test_an_own_copy_has_the_body_that_was_sent(body: bytes, is_copy: bool) -> None:
    submission = b"From: alex@local.com\r\n\r\n" + BODY
    assert routing.has_same_body(mail(*OWN) + body, submission) == is_copy


def test_of_a_long_body_the_first_64_kib_have_to_be_the_same() -> None:
    # given
    submission, header = b"From: alex@local.com\r\n\r\n" + b"x" * 100_000, mail(*OWN)
    # then
    assert routing.has_same_body(header + b"x" * 65_536 + b"y", submission)
    assert not routing.has_same_body(header + b"x" * 65_535 + b"y", submission)


def test_an_empty_body_or_a_header_that_fills_the_head_proves_nothing() -> None:
    long = b"X: " + b"x" * 200_000 + b"\r\n\r\n"
    assert not routing.has_same_body(mail(*OWN), mail(*OWN))
    assert not routing.has_same_body(long + BODY, long + BODY)


@pytest.mark.parametrize(
    "lines",
    [
        ['From: "Alex" <customer@x.example>', *OWN[1:]],  # From is not E
        [f"From: {E}, customer@x.example", *OWN[1:]],
        OWN[1:],
        [*OWN[:2], "Message-ID: <unknown@company.com>"],  # not one that we relayed
        [*OWN[:2]],
        [*OWN, f"Cc: {E}"],  # E is in To or Cc
        [*OWN, "To: help+x@company.com"],
        [*OWN, f"Delivered-To: {E}"],  # transit
        [*OWN, "List-Id: <announce.x.example>"],
        [*OWN, "List-Unsubscribe: <mailto:x@y.example>"],
        [*OWN, "Resent-From: customer@x.example"],
        [*OWN, "resent-to: x@y.example"],
    ],
)
def test_a_mail_that_may_have_been_sent_to_us_is_no_own_copy(lines: list[str]) -> None:
    # given
    account = external(aliases=("help@company.com",))
    # then
    assert own_copy(mail(*lines), account, people(), SENT) is None
    assert outcome(decide(mail(*lines), account, people(), SENT)) == (5, EVERYONE)


@pytest.mark.parametrize(
    "known",
    [
        sent("alex-1@company.com", ALEX, "customer@x.example", E),  # E was among its envelope recipients
        sent("alex-1@company.com", ALEX, "support+x@company.com"),
        sent("alex-1@company.com", ALEX, "help@company.com"),
        sent("alex-1@company.com", ALEX, through=SALES),  # relayed through another account
        sent("alex-1@company.com", TOM),  # its author shares another account now
        sent("alex-1@company.com", ALEX, blob=None),  # its bytes are purged: nothing proves that this is a copy
        {},
    ],
)
def test_a_mail_that_was_not_relayed_from_here_is_no_own_copy(known: dict[str, Sequence[Sent]]) -> None:
    # given
    account = external(aliases=("help@company.com",))
    # then
    assert own_copy(mail(*OWN), account, people(), known) is None


# ------------------------------------------------------------- mail that one of us submits to the account


@pytest.mark.parametrize(
    ("lines", "author", "changes", "rule", "who"),
    [
        ([f"To: {E}"], ALEX, {}, 5, {JIM, KIM}),
        ([f'To: "Bob" <{E}>'], ALEX, {}, 5, {JIM, KIM}),
        (["To: x@y.example"], ALEX, {}, 5, {JIM, KIM}),  # Bcc
        ([f"To: {E}"], TOM, {}, 5, EVERYONE),  # from another share
        ([f"To: {E}"], ALEX, {"jim": OFF, "kim": OFF}, 5, {ALEX}),  # there is no other person
        ([f'To: "Jim" <{E}>'], ALEX, {}, 1, {JIM}),
        ([f'To: "Alex" <{E}>'], ALEX, {}, 1, {ALEX}),
        ([f'To: "Jim" <{E}>'], ALEX, {"jim": OFF}, 1, {KIM}),
        ([f'To: "Jim" <{E}>'], ALEX, {"jim": OFF, "kim": OFF}, 1, {ALEX}),
        ([f"To: {E}", IN_REPLY_TO_ALEX], JIM, {}, 3, {ALEX}),
        ([f"To: {E}", IN_REPLY_TO_ALEX], ALEX, {}, 5, {JIM, KIM}),  # an answer to oneself is for the others
        ([f'To: "Jim" <{E}>', IN_REPLY_TO_ALEX], ALEX, {}, 1, {JIM}),
    ],
)
def test_a_colleagues_mail_is_routed_to_the_others(
    lines: list[str], author: int, changes: dict[str, dict[str, object]], rule: int, who: set[int]
) -> None:
    assert outcome(decide(mail(*lines), external(), people(**changes), SENT, "submitted", author)) == (rule, who)


def test_the_author_of_a_fetched_mail_is_not_left_out() -> None:
    assert got(decide(mail(f"To: {E}"), external(), people(), {}, "fetched", ALEX)) == EVERYONE


# ------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("lines", "changes", "who", "reason"),
    [
        ([f'To: "Alex" <{E}>'], {}, ALEX, "To names Alex"),
        ([f'To: "Lex" <{E}>'], {"alex": {"aliases": ("Lex",)}}, ALEX, 'To names Alex as "Lex"'),
        ([f'To: "Alex" <{E}>', f'Cc: "Jim" <{E}>'], {}, JIM, "Cc names Jim"),
        ([f'To: "Alex" <{E}>', f'Cc: "Alex" <{E}>'], {}, ALEX, "To names Alex"),
        ([f'To: "Jim" <{E}>', IN_REPLY_TO_ALEX], {}, ALEX, "Alex wrote the mail that it answers"),
        ([f"To: {E}", IN_REPLY_TO_ALEX], {}, ALEX, "it answers a mail that Alex wrote"),
        (report("message/rfc822", RETURNED), {}, ALEX, "it reports on a mail that Alex wrote"),
        ([f"To: {E}"], {}, JIM, "To names nobody, so everyone who shares it gets it"),
        ([f"To: {E} <{E}>"], {}, JIM, "To names nobody, so everyone who shares it gets it"),
        ([f"To: support <{E}>"], {}, JIM, "To names nobody, so everyone who shares it gets it"),
        (
            [f'To: "Bob\u202e" <{E}>'],
            {},
            JIM,
            'To names "Bob", which is nobody\'s name here, so everyone who shares it gets it',
        ),
        ([f"Cc: {E}"], {}, JIM, "Cc names nobody, so everyone who shares it gets it"),
        (["To: x@y.example"], {}, JIM, f"{E} is in neither To nor Cc, so everyone who shares it gets it"),
        (
            [f'To: "Alex" <{E}>'],
            {"alex": OFF | {"delegate_id": JIM}},
            JIM,
            "To names Alex; Alex is disabled, the delegate gets it",
        ),
        (
            [f'To: "Alex" <{E}>'],
            {"alex": OFF},
            JIM,
            "To names Alex; Alex is disabled and has no delegate, so the others get it",
        ),
    ],
)
def test_every_copy_says_why(lines: list[str], changes: dict[str, dict[str, object]], who: int, reason: str) -> None:
    # when
    decision = decide(mail(*lines), external(), people(**changes), SENT)
    # then
    [recipient] = [recipient for recipient in decision.recipients if recipient.local_id == who]
    assert recipient.reason == reason
    assert recipient.rule == decision.rule


def test_the_mail_itself_says_why() -> None:
    # when
    decision = decide(mail(f'To: "Alex" <{E}>, "Jim" <{E}>'), external(), people(), {})
    # then
    assert decision.reason == "To names Alex; To names Jim"


def test_text_from_outside_in_a_reason_is_short_and_printable() -> None:
    # when
    decision = decide(mail(f'To: "Bob\x07\x1b[31m{"x" * 5000}" <{E}>'), external(), people(), {})
    # then
    assert len(decision.reason) < 160
    assert decision.reason.isprintable()


# ------------------------------------------------------------- reading


def test_an_unreadable_header_goes_to_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a reader that fails
    def fail(*_: object) -> HeaderFacts:
        raise RecursionError

    monkeypatch.setattr("shared.routing.facts._read", fail)
    # when
    head = mail(f'To: "Alex" <{E}>')
    decision = decide(head, external(), people(), SENT)
    # then
    assert read_facts(head, external()) == HeaderFacts("the header cannot be read")
    assert outcome(decision) == (5, EVERYONE)
    assert decision.reason.startswith("the header cannot be read")


def crowd(count: int, name: str = '"Somebody {0}" <n{0}@x.example>') -> str:
    return ",\r\n ".join(name.format(number) for number in range(count))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([f'To: "Alex" <{E}>, {crowd(1000)}'], "To has more than 1000 addresses"),
        ([f'To: "Alex" <{E}>', f"Cc: {crowd(1001)}"], "Cc has more than 1000 addresses"),
        ([f'To: "Alex" <{E}>', *[f"To: {crowd(100, 'n{0}@x')}"] * 10], "To has more than 1000 addresses"),
        ([f'To: "Alex" <{E}>, {crowd(800)}', f"Cc: {crowd(800)}"], "To and Cc have more than 1500 addresses"),
        ([f'To: "Alex" <{E}>, {crowd(3000)}'], "To and Cc are longer than 64 KiB"),
        ([f'To: "Alex" <{E}>, {"a " * 15_000}'], "To is too long"),
        ([f'To: "Alex" <{E}>', f"Cc: {';' * 25_000}"], "Cc is too long"),
        ([f'To: "Alex" <{E}>, {crowd(101, "N{0} <" + E + ">")}'], "To has more than 100 names beside the address"),
        ([f'To: "Alex" <{E}>', *["Cc: x"] * 101], "the header has more than 100 fields Cc"),
    ],
)
def test_more_addresses_than_are_read_go_to_everyone(lines: list[str], reason: str) -> None:
    # when
    decision = decide(mail(*lines, IN_REPLY_TO_ALEX), external(), people(), SENT)
    # then
    assert outcome(decision) == (5, EVERYONE)
    assert decision.reason.startswith(reason)


def test_a_mail_loop_is_seen_in_a_header_with_too_many_addresses() -> None:
    facts = read_facts(mail(*["Received: x"] * 60, f"To: {crowd(3000)}"), external())
    assert facts.problem and facts.hops > MAX_HOPS


@pytest.mark.parametrize("count", [500, 999])
def test_a_few_hundred_addresses_are_read(count: int) -> None:
    head = mail(f'To: {crowd(count)}, "Alex" <{E}>')
    assert outcome(decide(head, external(), people(), SENT)) == (1, {ALEX})


def test_a_hundred_names_at_the_account_are_read() -> None:
    account, sharers = company(E, *(f"N{number}" for number in range(100)))
    head = mail(f"To: {crowd(100, 'N{0} <' + E + '>')}")
    assert len(got(decide(head, account, sharers, {}))) == 100


def test_only_the_names_at_the_account_are_kept_of_the_addresses() -> None:
    # given
    head = mail(f'To: {crowd(300)}, "Alex" <{E}>, {E}, "ALEX" <{E}>, "support" <{E}>', f"Cc: {crowd(300)}")
    # when
    facts = read_facts(head, external())
    # then
    assert facts.to.found and not facts.cc.found
    assert [(name.normalised, name.written, name.repeats_address) for name in facts.to.names] == [
        ("alex", "Alex", False),
        ("support", "support", True),
    ]
    assert facts.cc.names == ()


def test_only_ids_that_rules_need_are_looked_up_in_bounded_number() -> None:
    # given
    many = " ".join(f"<{number}@x>" for number in range(5000))
    facts = read_facts(
        mail(
            "Message-ID: <own@x>", f"In-Reply-To: {many}", f"References: {many}", "X-Google-Original-Message-ID: <g@x>"
        ),
        external(),
    )
    few = read_facts(
        mail("Message-ID: <own@x>", "In-Reply-To: <i@x>", "References: <r@x> <s@x>", f"To: {E}"), external()
    )
    # then
    assert referenced_ids(few) == {"own@x", "i@x", "r@x", "s@x"}
    assert {"own@x", "g@x", "0@x", "4999@x"} <= referenced_ids(facts)
    assert len(referenced_ids(facts)) < 200
    assert referenced_ids(HeaderFacts()) == set()


def test_an_id_that_is_longer_than_ours_is_not_asked() -> None:
    facts = read_facts(mail(f"In-Reply-To: <{'x' * 600}@x> <i@x>", f"References: <{'y' * 600}@x>"), external())
    assert referenced_ids(facts) == {"i@x"}


FRAGMENTS = st.sampled_from(
    [
        "To: ",
        "Cc: ",
        "From: ",
        "\r\n",
        "\r\n ",
        E,
        f"<{E}>",
        '"Alex" ',
        "Jim ",
        ", ",
        "; ",
        '"',
        "(",
        ")",
        "<",
        ">",
        ":",
        "@",
        "=?utf-8?q?Alex?= ",
        "=?utf-8?b?",
        "?=",
        "\0",
        "\udcff",
        "\u200b",
        "Delivered-To: x",
        "In-Reply-To: ",
        "Message-ID: <alex-1@company.com>",
        "<alex-1@company.com>",
        "References: ",
        "Content-Type: multipart/report; boundary=b",
        "\r\n\r\n",
        "--b\r\n",
        "--b--",
        "Auto-Submitted: x",
        "Content-Type: message/rfc822\r\n",
        "Content-Transfer-Encoding: base64",
    ]
)
HEADS = st.binary(max_size=400) | st.lists(FRAGMENTS, max_size=30).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogateescape")
)


@given(
    HEADS,
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.sampled_from([None, 1, 2, 3, 9]), min_size=3, max_size=3),
    st.sampled_from(["fetched", "submitted", "notice"]),
    st.sampled_from([None, 1, 2, 9]),
    st.booleans(),
)
def test_a_mail_goes_to_nobody_only_if_no_sharer_is_enabled(
    head: bytes, enabled: list[bool], delegates: list[int | None], source: str, author: int | None, replies: bool
) -> None:
    # given
    sharers = [
        dataclasses.replace(local, enabled=on, delegate_id=delegate)
        for local, on, delegate in zip(people(), enabled, delegates, strict=True)
    ]
    account = external(reply_to_author=replies)
    # when
    decision = decide(head, account, sharers, SENT, source, author)
    copy = own_copy(head, account, sharers, SENT)
    # then
    assert not read_facts(head, account).problem
    assert 1 <= decision.rule <= 5
    assert all(recipient.reason for recipient in decision.recipients)
    assert got(decision) <= {local.id for local in sharers if local.enabled}
    assert bool(decision.recipients) == any(enabled) == (not decision.held)
    assert copy is None or len(copy.decision.recipients) == 1
    assert decision == decide(head, account, sharers, SENT, source, author)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    [
        b"(",
        b'"',
        b"<",
        b"<a@b>",
        b"a@b,",
        b"=?a?q?",
        b"\r\n ",
        b"a:\r\n",
        b'To: "Alex" <support@company.com>\r\n',
        b"\r\n--b\r\n\r\n",
        b"\r\nMessage-ID: <a@b>",
        b">> >",
        b"To: ,,,,,,,,\r\n",
        b'"' + "\u0301\u0327".encode() * 400 + b'" <support@company.com>,',
    ],
)
def test_no_head_takes_long(unit: bytes) -> None:
    # given
    filling = unit * (1024 * 1024 // len(unit))
    heads = [
        b"To: " + filling,
        filling,
        b"To: " + filling[:65_000] + b"\r\n\r\n",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n" + filling,
        b"References: " + filling,
        b"Content-Type: multipart/report; boundary=" + filling,
    ]
    for head in heads:
        # when
        started = time.process_time()
        decision = decide(head, external(), people(), SENT)
        # then
        assert time.process_time() - started < 20  # about 0.3 s; quadratic time would take minutes
        assert decision.recipients
