"""The header of mail that leaves through the real sender, with a real PostgreSQL and a scripted provider."""

from __future__ import annotations

import pytest

from services.sender.header_fields import FIELDS
from shared.mime import headers
from tests.company import SUPPORT
from tests.scripted_smtp import PIPELINING, ScriptedSmtp
from tests.sender_harness import MAIL, SenderHarness, harness_fixture, provider_fixture, replies

ANN = "ann@customer.org"


provider = provider_fixture()
harness = harness_fixture()


async def test_no_field_that_holds_addresses_leaves_with_a_local_one(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a mail for each field of the table, and one with all of them
    keys = sorted(FIELDS.keys() - {"from"})
    each = [b"%s: x, Kim <kim@local.com>\r\n" % key.title().encode() for key in keys]
    trace = b"Received: from pc by mx for <kim@local.com>; Tue, 3 Nov 2026\r\n"
    for number, fields in enumerate((*each, b"".join(each), trace)):
        id_ = await harness.submit(ANN, mail=fields + MAIL, message_id=f"{number}@id.example")
        await harness.until(id_, state="done")
    # then nothing of it names the colleague's local address
    assert len(provider.taken) == len(keys) + 2
    for taken in provider.taken:
        assert b"@local.com" not in taken.mail
    # and what each field becomes
    for key, taken in zip(keys, provider.taken, strict=False):
        values = [value for value in headers.values(taken.mail, key) if b"ann@" not in value]
        expected = {
            "mailboxes": [b' x, "Kim" <sales@company.com>'],
            "text": [b" x, Kim <sales@company.com>"],
            "trace": [b" x, Kim <sales@company.com>"],
            "key": [],
            "removed": [],
        }
        assert values == expected[FIELDS[key]], key
    assert headers.values(provider.taken[-1].mail, "received") == [b" from pc by mx; Tue, 3 Nov 2026"]


async def test_a_redirected_mail_keeps_its_from(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a customer's mail that Alex redirects, and an own mail that Alex sends again from an address that is gone
    redirected = b"Resent-From: alex@local.com\r\nResent-To: c@customer.org\r\n" + MAIL
    for author in (b"Ann <ann@customer.org>", b"gone@local.com"):
        mail = redirected.replace(b"From: alex@local.com\r\nTo", b"From: " + author + b"\r\nTo")
        await harness.until(await harness.submit("c@customer.org", mail=mail), state="done")
    # then
    alex = [b' "Alex" <support@company.com>']
    assert [headers.values(taken.mail, "resent-from") for taken in provider.taken] == [alex, alex]
    assert [headers.values(taken.mail, "from") for taken in provider.taken] == [[b" Ann <ann@customer.org>"], alex]


RECEIPT = b'Content-Type: multipart/report;\r\n boundary=x; Report-Type="disposition-notification"\r\n' + MAIL


@pytest.mark.parametrize(
    ("sender", "mail", "left_from"),
    [
        ("", RECEIPT, ""),
        ("", RECEIPT.replace(b'"', b""), ""),
        ("", b"Auto-Submitted: auto-replied\r\n" + MAIL, ""),
        ("", b"Auto-Submitted: Auto-Generated (rule 1); x=y\r\n" + MAIL, ""),
        # other mail, which its author could otherwise not be told about, and mail with a sender
        ("", b"Auto-Submitted: no\r\n" + MAIL, SUPPORT),
        ("", b"Content-Type: multipart/report; report-type=delivery-status\r\n" + MAIL, SUPPORT),
        ("", MAIL, SUPPORT),
        ("alex@local.com", RECEIPT, SUPPORT),
    ],
)
async def test_only_receipts_and_automatic_mail_keep_the_null_sender(
    harness: SenderHarness, provider: ScriptedSmtp, sender: str, mail: bytes, left_from: str
) -> None:
    await harness.until(await harness.submit(ANN, mail=mail, sender=sender), state="done")
    assert [taken.sender for taken in provider.taken] == [left_from]


@pytest.mark.parametrize("hello", [None, PIPELINING])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "END"])
async def test_a_refused_null_sender_leads_to_the_address_of_the_account(
    harness: SenderHarness, provider: ScriptedSmtp, verb: str, hello: str | None
) -> None:
    # given a provider that refuses the null sender at any command
    provider.always("EHLO", hello)
    provider.say(verb, "550 5.7.1 null sender not allowed")
    found = await harness.until(await harness.submit(ANN, mail=RECEIPT, sender=""), state="done")
    # then the mail leaves with the other one, and nobody gets a notice
    assert [taken.sender for taken in provider.taken] == [SUPPORT]
    assert replies(found) == [("relayed", "250 2.0.0 queued")]
    assert [line.split(" ")[1] for line in provider.said("MAIL")] == ["FROM:<>", f"FROM:<{SUPPORT}>"]


async def test_a_receipt_that_is_refused_with_both_senders_fails(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.always("RCPT", "550 5.1.1 unknown")
    found = await harness.until(await harness.submit(ANN, mail=RECEIPT, sender=""), state="done")
    assert (replies(found), len(provider.said("RCPT"))) == ([("failed", "550 5.1.1 unknown")], 2)
    assert await harness.notices("Alex") == []


DISPLAYED = (
    b"Content-Type: multipart/report; boundary=b; report-type=disposition-notification\r\n"
    b"From: Alex <alex@local.com>\r\nTo: ann@customer.example\r\nMessage-ID: <m1@client.example>\r\n\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nYour mail to alex@local.com was displayed.\r\n"
    b"--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
    b"Original-Recipient: rfc822;kim@local.com\r\nFinal-Recipient: rfc822; alex@local.com\r\n"
    b"Disposition: manual-action/MDN-sent-manually; displayed\r\n--b--\r\n"
)


@pytest.mark.parametrize("padding", [b"", b"x" * 78 + b"\r\n"], ids=["small", "large"])
async def test_a_read_receipt_names_the_external_addresses(
    harness: SenderHarness, provider: ScriptedSmtp, padding: bytes
) -> None:
    # given a receipt by a mail client, also with a returned mail that the database holds in pieces
    mail = DISPLAYED.replace(b"--b--", b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + padding * 20_000 + b"--b--")
    await harness.until(await harness.submit(ANN, mail=mail, sender=""), state="done")
    # then its recipients are those to whom the customer wrote, and every other octet of its body is as it was
    body = mail.partition(b"\r\n\r\n")[2]
    expected = body.replace(b"; alex@local.com", b"; support@company.com").replace(
        b"kim@local.com", b"sales@company.com"
    )
    assert provider.taken[0].mail.partition(b"\r\n\r\n")[2] == expected


async def test_a_signed_receipt_keeps_its_recipients(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    mail = DISPLAYED.replace(b"multipart/report;", b"multipart/signed;")
    await harness.until(await harness.submit(ANN, mail=mail, sender=""), state="done")
    assert provider.taken[0].mail.partition(b"\r\n\r\n")[2] == mail.partition(b"\r\n\r\n")[2]


async def test_a_temporarily_refused_null_sender_waits(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    provider.say("MAIL", "451 4.3.0 later")
    found = await harness.until(await harness.submit(ANN, mail=RECEIPT, sender=""), tries=1)
    assert (replies(found), len(provider.said("MAIL"))) == ([("waiting", "451 4.3.0 later")], 1)


async def test_a_header_line_of_more_than_998_octets_leaves_folded(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a client that folds nothing
    mail = b"Subject: " + b"word " * 500 + b"x\r\nCc: " + b",".join([b"kim@local.com"] * 300) + b"\r\n" + MAIL
    await harness.until(await harness.submit(ANN, mail=mail + b"y" * 2000 + b"\r\n"), state="done")
    # then each line of the header is short enough, and the body is as it was
    header, _, body = provider.taken[0].mail.partition(b"\r\n\r\n")
    assert max(map(len, header.split(b"\r\n"))) <= 998
    assert b" ".join(headers.values(header, "subject")[0].split()) == b"word " * 500 + b"x"
    assert headers.values(header, "cc")[0].count(b"<sales@company.com>") == 300
    assert body.endswith(b"y" * 2000 + b"\r\n")
