"""The example of the manual's section 4.3 on real servers: what each customer sends, and who receives it.

The company is the manual's: Alex and Jim share support@company.com, Kim and Tom share sales@company.com. The provider
is a real Dovecot and Postfix, fetched from by POP3 or IMAP; people's mailboxes are read as a mail client does.
"""

from __future__ import annotations

import asyncio
import poplib
import smtplib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.policy import default
from email.utils import make_msgid
from pathlib import Path
from typing import Any

from deploy.machine import folders, instance
from deploy.machine.dovecot_postfix import DemoProvider
from deploy.machine.instance import Instance
from services.admin.accounts import apply
from services.admin.accounts.file_format import check
from services.admin.cli import addresses
from services.admin.cli.output import console, print_json, print_table
from services.admin.context import open_context
from services.admin.mail.trace import trace
from shared.data_folder import locked
from shared.settings import Settings, load

SUPPORT, SALES, CUSTOMER = "support@company.com", "sales@company.com", "anna@customer.example"
PEOPLE = {"Alex": SUPPORT, "Jim": SUPPORT, "Kim": SALES, "Tom": SALES}
LOCAL = {name: f"{name.lower()}@local.com" for name in PEOPLE}
PASSWORD = "demo-secret"  # of a stand-in company on the loopback address
STEP_SECONDS = 60.0
"""Time limit of a step: seconds."""


@dataclass(slots=True)
class DemoStep:
    """A step of the example."""

    step: str
    expected: list[str]  # addresses that should receive the mail
    got: list[str]  # addresses that received it
    rule: int | None  # of routing
    reason: str
    ok: bool


class DemoStory:
    """Plays the example, and records its steps."""

    def __init__(self, settings: Settings, provider: DemoProvider, data: Path) -> None:
        self._settings, self._provider, self._data = settings, provider, data
        self.steps: list[DemoStep] = []

    def play(self, say: Callable[[str], None]) -> None:
        """Play all steps in order. :param say: prints the start of each."""
        say("A new customer writes to support@company.com")
        first = self._customer_writes(SUPPORT, "My printer does not print")
        self._check("a new customer writes to support@", first, ["Alex", "Jim"])
        say("A new customer writes to sales@company.com")
        other = self._customer_writes(SALES, "How much is the large one?")
        self._check("a new customer writes to sales@", other, ["Kim", "Tom"])
        say("Alex answers the customer")
        answer = self._alex_answers(first)
        self._check_answer(answer)
        for how, to in (
            ("replies", f'"Alex" <{SUPPORT}>'),
            ("replies without the name", SUPPORT),
            ("replies with a name that nobody has", f'"Company Support" <{SUPPORT}>'),
        ):
            say(f"The customer {how}: To: {to}")
            reply = self._customer_writes(to, "Re: My printer does not print", answer)
            self._check(f"the customer {how}", reply, ["Alex"])

    def _customer_writes(self, to: str, subject: str, answers: str | None = None) -> str:
        message = EmailMessage()
        message["From"] = f"Anna Customer <{CUSTOMER}>"
        message["To"] = to
        message["Subject"] = subject
        message["Message-ID"] = make_msgid(domain="customer.example")
        if answers is not None:
            message["In-Reply-To"] = answers
            message["References"] = answers
        message.set_content("Hello,\n\nplease see the subject.\n\nAnna\n")
        with smtplib.SMTP(self._provider.host, self._provider.smtp_port, timeout=20) as smtp:
            smtp.send_message(message)
        return str(message["Message-ID"])

    def _alex_answers(self, question: str) -> str:
        message = EmailMessage()
        message["From"] = f"Alex <{LOCAL['Alex']}>"
        message["To"] = f"Anna Customer <{CUSTOMER}>"
        message["Subject"] = "Re: My printer does not print"
        message["Message-ID"] = make_msgid(domain="local.com")
        message["In-Reply-To"] = question
        message.set_content("Hello Anna,\n\nplease switch it on.\n\nAlex\n")
        with smtplib.SMTP(self._settings.bind, self._settings.smtp_port, timeout=20) as smtp:
            smtp.login(LOCAL["Alex"], PASSWORD)
            smtp.send_message(message)
        return str(message["Message-ID"])

    def _check(self, step: str, message_id: str, names: Sequence[str]) -> None:
        expected = [LOCAL[name] for name in names]
        deadline = time.monotonic() + STEP_SECONDS
        while not (got := self._who_has(message_id)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if got:  # one commit delivers a mail to all recipients: read the mailboxes once more
            got = self._who_has(message_id)
        rule, reason = asyncio.run(self._why(message_id))
        self.steps.append(DemoStep(step, expected, got, rule, reason, got == expected))

    def _check_answer(self, message_id: str) -> None:
        deadline = time.monotonic() + STEP_SECONDS
        sender = ""
        while not sender and time.monotonic() < deadline:
            sender = self._sender_at_customer(message_id)
            time.sleep(0.1)
        wanted = f"Alex <{SUPPORT}>"
        self.steps.append(
            DemoStep(
                'Alex answers; it leaves as "Alex" <support@company.com>',
                [CUSTOMER],
                [CUSTOMER] if sender else [],
                None,
                f"From: {sender or 'nothing arrived'}",
                sender.replace('"', "") == wanted,
            )
        )

    def _who_has(self, message_id: str) -> list[str]:
        return [
            address
            for address in LOCAL.values()
            if any(
                headers["Message-ID"] == message_id
                for headers in _headers(self._settings.bind, self._settings.pop3_port, address, PASSWORD)
            )
        ]

    def _sender_at_customer(self, message_id: str) -> str:
        for headers in _headers(self._provider.host, self._provider.pop3_port, CUSTOMER, PASSWORD):
            if headers["Message-ID"] == message_id:
                return str(headers["From"])
        return ""

    async def _why(self, message_id: str) -> tuple[int | None, str]:
        async with open_context(self._data) as system, system.database.transaction() as connection:
            for mail in await trace(connection, message_id):
                for event in mail["events"]:
                    if event["event"] in ("routed", "held"):
                        return event["rule"], event["reply"]
        return None, "never routed"


def _headers(host: str, port: int, user: str, password: str) -> Iterator[Any]:
    """Yield the headers of the mails in a mailbox, the newest first."""
    session = poplib.POP3(host, port, timeout=20)
    try:
        session.user(user)
        session.pass_(password)
        for number in range(session.stat()[0], 0, -1):
            lines = session.top(number, 0)[1]
            yield BytesHeaderParser(policy=default).parsebytes(b"\n".join(lines))
    finally:
        session.quit()


async def _create_company(data: Path, provider: DemoProvider, imap: bool) -> None:
    fetching, port = ("imap", provider.imap_port) if imap else ("pop3", provider.pop3_port)
    accounts = check(
        {
            "external_accounts": [
                {
                    "address": address,
                    "password": PASSWORD,
                    "poll_seconds": 1,
                    fetching: {"host": provider.host, "port": port, "tls": "none"},
                    "smtp": {"host": provider.host, "port": provider.smtp_port, "tls": "none"},
                }
                for address in (SUPPORT, SALES)
            ],
            "local_accounts": [
                {"address": LOCAL[name], "password": PASSWORD, "user_name": name, "external": external}
                for name, external in PEOPLE.items()
            ],
        },
        "demo",
    )
    async with open_context(data) as system, system.database.transaction() as connection:
        await apply.apply(connection, accounts, system.vault, system.passwords)


def play(data: Path | None, stay: bool, json: bool, imap: bool = False) -> int:
    """Start the system, play the example, print the result.

    :param stay: keep the system up afterwards. :param imap: fetch from the provider by IMAP instead of POP3.
    :return: exit status, 0 if every step succeeded.
    """
    settings = _settings(data)

    def say(line: str) -> None:
        print(line, file=sys.stderr if json else sys.stdout, flush=True)

    with ExitStack() as stack:
        folders.make_data_folder(settings.data)
        set_state = stack.enter_context(locked(settings.data, "demo"))
        say("Starting the stand-in provider (Dovecot and Postfix)")
        provider = stack.enter_context(
            DemoProvider(
                folders.place(settings.data, "provider", ("mail", "dovecot", "postfix")),
                [(address, PASSWORD) for address in (SUPPORT, SALES, CUSTOMER)],
                str(settings.data),
            )
        )
        system = Instance(settings, say, set_state=set_state)
        stack.enter_context(instance.stopped_by_signals(system.stopping))
        try:
            stack.enter_context(system)
        except instance.Interrupted:
            return 1
        asyncio.run(_create_company(settings.data, provider, imap))
        example = DemoStory(system.settings, provider, settings.data)
        example.play(say)
        well = all(step.ok for step in example.steps)
        if json:
            print_json(_document(example, provider, system))
        else:
            _print(example, provider, system, well)
        if stay and not system.stopping.is_set():
            say("It stays up until Ctrl-C.")
            system.wait()
    return 0 if well and system.failure is None else 1


def _settings(data: Path | None) -> Settings:
    """Return settings that use this machine only, nothing of another installation, and free ports."""
    base = load(data=data)
    settings = base.model_copy(
        update={
            "data": data.absolute() if data else base.data.absolute() / "demo",
            "allow_private_upstream": True,
            "database_url": None,
            "broker_url": None,
            "secret_key": None,
            "bind": "127.0.0.1",
        }
    )
    return instance.with_free_ports(settings)


def _document(story: DemoStory, provider: DemoProvider, system: Instance) -> dict[str, Any]:
    return {
        "steps": [
            {"step": s.step, "expected": s.expected, "got": s.got, "rule": s.rule, "ok": s.ok} for s in story.steps
        ],
        "provider": {
            "pop3": f"{provider.host}:{provider.pop3_port}",
            "imap": f"{provider.host}:{provider.imap_port}",
            "smtp": f"{provider.host}:{provider.smtp_port}",
        },
        "gateway": system.urls(),
    }


def _print(story: DemoStory, provider: DemoProvider, system: Instance, well: bool) -> None:
    print_table(
        "Who received what, and why",
        ("", "Step", "Received by", "Rule", "Why"),
        (
            (
                "ok" if step.ok else "BAD",
                step.step,
                ", ".join(step.got) or "nobody",
                step.rule,
                step.reason if step.ok else f"{step.reason}; expected: {', '.join(step.expected)}",
            )
            for step in story.steps
        ),
    )
    console.print("Every step succeeded." if well else "NOT every step succeeded.", style="green" if well else "red")
    addresses.print_console(system, system.settings.admin_password)
    addresses.print_client_settings(system.settings)
    print_table(
        "People, for a mail client on this machine (manual chapter 5)",
        ("Email address and login", "Password", "User name", "Shares"),
        [(LOCAL[name], PASSWORD, name, external) for name, external in PEOPLE.items()],
    )
    pop3, smtp = (f"{provider.host}:{port}" for port in (provider.pop3_port, provider.smtp_port))
    console.print(
        f"The customer: {CUSTOMER}, password {PASSWORD}, POP3 {pop3}, SMTP {smtp}, without encryption.\n"
        f"Write as the customer:\n  {write_as_customer(smtp)}\n"
        f"List the customer's mailbox:\n  {read_as_customer(pop3)}\n"
        f"Read mail 1 in it:\n  {read_as_customer(pop3, 1)}"
    )


def write_as_customer(smtp: str) -> str:
    """Return the command that sends a mail from the customer to Alex."""
    mail = f'From: Anna <{CUSTOMER}>\\nTo: "Alex" <{SUPPORT}>\\nSubject: Hello\\n\\nHello\\n'
    return f"printf '{mail}' | curl -sS smtp://{smtp} --mail-from {CUSTOMER} --mail-rcpt {SUPPORT} -T -"


def read_as_customer(pop3: str, number: int | None = None) -> str:
    """Return the command that lists the customer's mailbox, or prints a mail in it."""
    return f"curl -sS pop3://{pop3}/{number or ''} -u {CUSTOMER}:{PASSWORD}"
