"""Each sentence of the manual's section 4.3 as a test of the whole system."""

from __future__ import annotations

from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from email.utils import make_msgid

from shared.settings import SERVICES
from tests.system import System, until

PEOPLE = ["alex@local.com", "jim@local.com", "kim@local.com", "tom@local.com"]
CUSTOMER = "anna@customer.example"


def letter(
    to: str, answers: str | None = None, author: str = f"Anna <{CUSTOMER}>", text: str = "Hello\n"
) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = author, to, "Printer"
    message["Message-ID"] = make_msgid(domain="customer.example")
    if answers:
        message["In-Reply-To"] = answers
    message.set_content(text)
    return message


def receivers(system: System, message: EmailMessage) -> list[str]:
    """Wait until a mail at the provider is delivered, and return its local recipients."""
    token = str(message["Message-ID"])
    until(lambda: system.who_has(token, PEOPLE))
    return system.who_has(token, PEOPLE)


def write(system: System, to: str, mailbox: str = "support@company.com", answers: str | None = None) -> list[str]:
    message = letter(to, answers)
    system.provider.put(mailbox, message.as_bytes())
    return receivers(system, message)


def answer_of_alex(system: System) -> EmailMessage:
    """Submit a mail from Alex to the customer, and return it as the customer received it."""
    system.provider.add_mailbox(CUSTOMER, "secret")
    message = letter(f"Anna <{CUSTOMER}>", author="Alex <alex@local.com>")
    system.submit("alex@local.com", [CUSTOMER], message)
    [raw] = until(
        lambda: [mail for mail in system.provider.mail_of(CUSTOMER) if str(message["Message-ID"]).encode() in mail]
    )
    found = BytesParser(policy=default).parsebytes(raw)
    assert isinstance(found, EmailMessage)
    return found


def test_new_customers_send_email_to_support_alex_and_jim_both_get_it(system: System) -> None:
    system.apply(system.company())
    assert write(system, "support@company.com") == ["alex@local.com", "jim@local.com"]


def test_the_new_customers_send_email_to_sales_kim_and_tom_both_can_get_it(system: System) -> None:
    system.apply(system.company())
    assert write(system, "sales@company.com", "sales@company.com") == ["kim@local.com", "tom@local.com"]


def test_mail_to_a_name_goes_to_the_local_account_with_this_user_name(system: System) -> None:
    system.apply(system.company())
    assert write(system, '"Jim" <support@company.com>') == ["jim@local.com"]


def test_outgoing_mail_carries_the_user_name_and_the_external_address(system: System) -> None:
    system.apply(system.company())
    sent = answer_of_alex(system)
    assert sent["From"].replace('"', "") == "Alex <support@company.com>"
    assert b"local.com" not in sent.as_bytes().replace(b"customer.example", b"")
    assert sent["Return-Path"] == "<support@company.com>"


def test_if_alex_sends_email_only_alex_can_get_the_replied_email(system: System) -> None:
    system.apply(system.company())
    sent = answer_of_alex(system)
    assert write(system, sent["From"], answers=sent["Message-ID"]) == ["alex@local.com"]


def test_also_when_the_customers_client_dropped_or_replaced_the_name(system: System) -> None:
    system.apply(system.company())
    sent = answer_of_alex(system)
    for to in ("support@company.com", '"Company Support" <support@company.com>'):
        assert write(system, to, answers=sent["Message-ID"]) == ["alex@local.com"]


def test_trace_shows_why_a_mail_was_delivered_to_its_recipients(system: System) -> None:
    system.apply(system.company())
    message = letter("support@company.com")
    system.provider.put("support@company.com", message.as_bytes())
    receivers(system, message)
    [mail] = system.json("trace", str(message["Message-ID"]))
    assert mail["message_id"] == str(message["Message-ID"]).strip("<>")
    assert [event["event"] for event in mail["events"]] == ["fetched", "routed", "delivered", "delivered"]
    routed = mail["events"][1]
    assert (routed["rule"], routed["who"]) == (5, "alex@local.com, jim@local.com")
    assert "nobody" in routed["reply"]


def test_status_says_that_all_is_well_and_the_books_balance(system: System) -> None:
    system.apply(system.company())
    write(system, "support@company.com")
    found = until(lambda: (status := system.json("status"))["ok"] and status)
    assert {service["name"] for service in found["services"]} == set(SERVICES)
    assert {queue["name"]: queue["consumers"] for queue in found["queues"]} == {
        "router": 1,
        "mailbox": 1,
        "sender": 1,
        "mail.dead-letters": 0,
    }
    for book in found["books"].values():
        assert book.pop("fetched") == sum(book.values())
    assert all(account["last_success"] for account in found["externals"])
