"""Tests fetcher and sender with a provider's servers: one external account for each TLS mode, each with one person."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from tests.company import local
from tests.interop import providers
from tests.interop.mails import KINDS, Letter, letter
from tests.interop.providers import Provider
from tests.interop.stand import WAYS, Tls, as_relayed, compared
from tests.servers import scratch
from tests.system import PASSWORD, System, until

CUSTOMER = "anna@customer.example"
NAMES = ("Dovecot", "Postfix", "GNU Mailutils", "Courier", "Exim")

_SECONDS = 90.0
"""Limit of each wait for mail: seconds; Courier allows one login every ten seconds."""
_OTHERS = {"GNU Mailutils": providers.mailutils, "Courier": providers.courier, "Exim": providers.exim}


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
            pop3: dict[Tls, int] = {"none": stand_in.pop3_port, "starttls": stand_in.pop3_port}
            smtp: dict[Tls, int] = {"none": stand_in.smtp_port, "starttls": stand_in.smtp_port}
            package = {"Dovecot": "dovecot-pop3d", "Postfix": "postfix"}[name]
            yield Provider(
                name,
                providers.version_of(package),
                pop3 | {"implicit": stand_in.pop3s_port} if name == "Dovecot" else {},
                smtp | {"implicit": stand_in.smtps_port} if name == "Postfix" else {},
                lambda address: stand_in.folder / "mail" / address,
            )


def outcomes(system: System, provider: Provider) -> tuple[list[str | None], list[str | None]]:
    """Fetch from a provider and send to it in each TLS mode.

    :return: the problems of fetching and of sending; "": none; None: the provider does not support the mode.
    """
    _make_accounts(system, provider)
    return (
        [_tried(_fetch, system, provider, tls) if tls in provider.pop3 else None for tls in WAYS],
        [_tried(_send, system, provider, tls) if tls in provider.smtp else None for tls in WAYS],
    )


def _tried(how: Callable[[System, Provider, Tls], str], system: System, provider: Provider, tls: Tls) -> str:
    try:
        return how(system, provider, tls)
    except (AssertionError, OSError) as error:  # too late, or refused
        return "; ".join([str(error), *system.json("status")["problems"]])


def _fetch(system: System, provider: Provider, tls: Tls) -> str:
    letters = _letters(CUSTOMER, _external(tls))
    for each in letters:
        provider.put(_external(tls), each.raw.replace(b"\r\n", b"\n"))
    until(lambda: len(system.mails(_person(tls))) >= len(letters), _SECONDS)
    until(lambda: not provider.mail_of(_external(tls)), _SECONDS)  # deleted there after they are stored here
    return compared(letters, system.mails(_person(tls)))


def _send(system: System, provider: Provider, tls: Tls) -> str:
    letters = _letters(_person(tls), CUSTOMER)
    for each in letters:
        system.submit(_person(tls), [CUSTOMER], each.raw)
    outside = {_person(tls): f'"{_name(tls)}" <{_external(tls)}>'}
    relayed = [replace(each, raw=as_relayed(each.raw, outside)) for each in letters]

    def arrived() -> list[bytes]:
        return [mail for mail in provider.mail_of(CUSTOMER) if any(each.token.encode() in mail for each in letters)]

    until(lambda: len(arrived()) >= len(letters), _SECONDS)
    return compared(relayed, arrived())


def _letters(author: str, to: str) -> list[Letter]:
    return [letter(kind, secrets.token_hex(6), author, (to,)) for kind in KINDS]


def _make_accounts(system: System, provider: Provider) -> None:
    """Make an external account for each TLS mode. The demo provider serves protocols that this provider lacks."""
    system.empty()
    system.provider.add_mailbox(CUSTOMER, PASSWORD)
    externals = []
    for tls in WAYS:
        fields: dict[str, Any] = {"delete_after_days": 0, "delete_history": True}
        for protocol, offered in (("pop3", provider.pop3), ("smtp", provider.smtp)):
            if tls in offered:
                server = {"host": "localhost", "port": offered[tls], "tls": tls}
                pin = {} if tls == "none" else {"tls_fingerprint": system.provider.fingerprint}
                fields[protocol] = server | pin
        externals.append(system.external(_external(tls), **fields))
    people = [local(_name(tls), _external(tls)) for tls in WAYS]
    system.apply({"external_accounts": externals, "local_accounts": people})


def _name(tls: Tls) -> str:
    return {"none": "Clara", "starttls": "Steve", "implicit": "Imogen"}[tls]


def _person(tls: Tls) -> str:
    return f"{_name(tls).lower()}@local.com"


def _external(tls: Tls) -> str:
    return f"{tls}@company.com"
