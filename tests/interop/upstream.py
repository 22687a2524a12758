"""Tests fetcher and sender with a provider's servers: one external account for each TLS mode, each with one person.

The accounts are made once more for each protocol that mail is fetched by.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

from tests.company import local
from tests.interop import providers
from tests.interop.mails import KINDS, Letter, letter
from tests.interop.package_roots import version_of
from tests.interop.providers import Maildirs, Provider
from tests.interop.stand import WAYS, Tls, as_relayed, compared
from tests.servers import scratch
from tests.system import PASSWORD, System, until

CUSTOMER = "anna@customer.example"
NAMES = ("Dovecot", "Postfix", "GNU Mailutils", "Courier", "Cyrus", "Exim")

Fetching = Literal["pop3", "imap"]

_SECONDS = 90.0
"""Limit of each wait for mail: seconds; Courier allows one login every ten seconds."""
_OTHERS = {
    "GNU Mailutils": providers.mailutils,
    "Courier": providers.courier,
    "Cyrus": providers.cyrus,
    "Exim": providers.exim,
}


@contextmanager
def provider(name: str, system: System) -> Iterator[Provider]:
    """Run a provider with the mailboxes of these tests. :param name: of NAMES. :raises Failed: it does not start."""
    stand_in = system.provider
    with ExitStack() as stack:
        if name in _OTHERS:
            folder = stack.enter_context(scratch())
            certificate = stand_in.folder / "tls" / "server.pem"
            yield stack.enter_context(_OTHERS[name](folder, certificate, [*map(_external, WAYS), CUSTOMER]))
        else:
            boxes = Maildirs(lambda address: stand_in.folder / "mail" / address)
            if name == "Dovecot":
                yield Provider(
                    name,
                    version_of("dovecot-imapd"),
                    boxes,
                    pop3=providers.by_tls(stand_in.pop3_port, stand_in.pop3s_port),
                    imap=providers.by_tls(stand_in.imap_port, stand_in.imaps_port),
                )
            else:
                smtp = providers.by_tls(stand_in.smtp_port, stand_in.smtps_port)
                yield Provider(name, version_of("postfix"), boxes, smtp=smtp)


def outcomes(system: System, provider: Provider) -> tuple[list[str | None], list[str | None]]:
    """Fetch from a provider and send to it in each TLS mode.

    :return: the problems of fetching by POP3, then by IMAP, and of sending; "": none; None: the provider does not
        support the protocol or the mode.
    """
    fetched: list[str | None] = []
    sent: list[str | None] = [None] * len(WAYS)
    protocols: tuple[Fetching, ...] = ("pop3", "imap")
    for protocol in protocols:
        offered = provider.fetching(protocol)
        if offered:
            _make_accounts(system, provider, protocol)
        fetched += [_tried(_fetch, system, provider, tls) if tls in offered else None for tls in WAYS]
    if provider.smtp:
        _make_accounts(system, provider, "pop3")
        sent = [_tried(_send, system, provider, tls) if tls in provider.smtp else None for tls in WAYS]
    return fetched, sent


def _tried(how: Callable[[System, Provider, Tls], str], system: System, provider: Provider, tls: Tls) -> str:
    try:
        return how(system, provider, tls)
    except (AssertionError, OSError) as error:  # too late, or refused
        return "; ".join([str(error), *system.json("status")["problems"]])


def _fetch(system: System, provider: Provider, tls: Tls) -> str:
    letters = _letters(CUSTOMER, _external(tls))
    for each in letters:
        provider.boxes.put(_external(tls), each.raw.replace(b"\r\n", b"\n"))
    until(lambda: len(system.mails(_person(tls))) >= len(letters), _SECONDS)
    until(lambda: not provider.boxes.mail_of(_external(tls)), _SECONDS)  # deleted there after they are stored here
    return compared(letters, system.mails(_person(tls)))


def _send(system: System, provider: Provider, tls: Tls) -> str:
    letters = _letters(_person(tls), CUSTOMER)
    for each in letters:
        system.submit(_person(tls), [CUSTOMER], each.raw)
    outside = {_person(tls): f'"{_name(tls)}" <{_external(tls)}>'}
    relayed = [replace(each, raw=as_relayed(each.raw, outside)) for each in letters]

    def arrived() -> list[bytes]:
        return [
            mail for mail in provider.boxes.mail_of(CUSTOMER) if any(each.token.encode() in mail for each in letters)
        ]

    until(lambda: len(arrived()) >= len(letters), _SECONDS)
    return compared(relayed, arrived())


def _letters(author: str, to: str) -> list[Letter]:
    return [letter(kind, secrets.token_hex(6), author, (to,)) for kind in KINDS]


def _make_accounts(system: System, provider: Provider, protocol: Fetching) -> None:
    """Make an external account for each TLS mode. The demo provider serves protocols that this provider lacks.

    :param protocol: mail is fetched by it.
    """
    system.empty()
    system.provider.add_mailbox(CUSTOMER, PASSWORD)
    externals = []
    for tls in WAYS:
        fields: dict[str, Any] = {"delete_after_days": 0, "delete_history": True}
        for name, offered in ((protocol, provider.fetching(protocol)), ("smtp", provider.smtp)):
            if tls in offered:
                server = {"host": "localhost", "port": offered[tls], "tls": tls}
                pin = {} if tls == "none" else {"tls_fingerprint": system.provider.fingerprint}
                fields[name] = server | pin
        account = system.external(_external(tls), **fields)
        if "imap" in fields:
            del account["pop3"]
        externals.append(account)
    people = [local(_name(tls), _external(tls)) for tls in WAYS]
    system.apply({"external_accounts": externals, "local_accounts": people})


def _name(tls: Tls) -> str:
    return {"none": "Clara", "starttls": "Steve", "implicit": "Imogen"}[tls]


def _person(tls: Tls) -> str:
    return f"{_name(tls).lower()}@local.com"


def _external(tls: Tls) -> str:
    return f"{tls}@company.com"
