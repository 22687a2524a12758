"""deploy/machine/dovecot_postfix.py: the properties of the stand-in provider that other tests rely on."""

from __future__ import annotations

import poplib
import smtplib
import ssl

import pytest

from deploy.machine.dovecot_postfix import DemoProvider

MESSAGE = (
    b"""\
From: Ann <ann@customer.test>\r
To: "Desk,\r
\t=?utf-8?q?Caf=C3=A9?=" <desk@company.test>, nobody\r
X-Long: """
    + b"x" * 3000
    + b"""\r
Subject:  odd   spacing \r
\r
.a body\r
"""
)


@pytest.fixture(scope="module")
def boxes(provider: DemoProvider) -> DemoProvider:
    """Run the provider with the mailboxes of a company and a customer."""
    provider.add_mailbox("desk@company.test", "secret")
    provider.add_mailbox("ann@customer.test", "other")
    return provider


def headers_kept(stored: bytes) -> bool:
    return MESSAGE.replace(b"\r\n", b"\n") in stored


def test_mail_travels_both_ways_with_its_headers_untouched(boxes: DemoProvider) -> None:
    # when the customer writes without a login, and the company with one
    with smtplib.SMTP(boxes.host, boxes.smtp_port) as client:
        client.sendmail("ann@customer.test", ["desk@company.test"], MESSAGE)
    with smtplib.SMTP(boxes.host, boxes.smtp_port) as client:
        client.login("desk@company.test", "secret")
        client.sendmail("desk@company.test", ["ann@customer.test"], MESSAGE)
    # then each mail is unchanged below the fields that Postfix adds
    assert headers_kept(boxes.wait_for_mail("desk@company.test")[0])
    assert headers_kept(boxes.wait_for_mail("ann@customer.test")[0])


def test_a_new_password_is_valid_at_once(boxes: DemoProvider) -> None:
    boxes.add_mailbox("desk@company.test", "newer")
    maildrop = poplib.POP3(boxes.host, boxes.pop3_port)
    maildrop.user("desk@company.test")
    maildrop.pass_("newer")
    maildrop.quit()


def test_an_unknown_address_and_a_wrong_password_are_refused(boxes: DemoProvider) -> None:
    with smtplib.SMTP(boxes.host, boxes.smtp_port) as client:
        with pytest.raises(smtplib.SMTPRecipientsRefused, match="550"):
            client.sendmail("ann@customer.test", ["nobody@company.test"], MESSAGE)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("desk@company.test", "wrong")


@pytest.mark.parametrize("mode", ["none", "starttls", "implicit"])
def test_each_kind_of_tls_works_for_pop3_and_smtp(boxes: DemoProvider, mode: str) -> None:
    # given a mail that is put straight into the mailbox
    address = f"{mode}@tls.test"
    boxes.add_mailbox(address, "secret")
    boxes.put(address, MESSAGE)
    context = ssl.create_default_context(cafile=str(boxes.ca_file))
    # then POP3 gives it out
    if mode == "implicit":
        maildrop: poplib.POP3 = poplib.POP3_SSL("localhost", boxes.pop3s_port, context=context)
    else:
        maildrop = poplib.POP3("localhost", boxes.pop3_port)
        if mode == "starttls":
            maildrop.stls(context)
    maildrop.user(address)
    maildrop.pass_("secret")
    assert maildrop.stat()[0] == 1
    maildrop.quit()
    # and SMTP accepts another password
    client = (
        smtplib.SMTP_SSL("localhost", boxes.smtps_port, context=context)
        if mode == "implicit"
        else smtplib.SMTP("localhost", boxes.smtp_port)
    )
    with client:
        if mode == "starttls":
            client.starttls(context=context)
        client.login(address, "secret")
        client.sendmail(address, [address], MESSAGE)
    assert len(boxes.wait_for_mail(address, 2)) == 2
