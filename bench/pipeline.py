"""From the provider's maildrop to readable by POP3: all of fetcher, router, mailbox, beside mpop and fetchmail.

All read the same maildrop of the same Dovecot. The time of ours counts from the moment when the poll is due until all
mails are in the mailbox; then they are read by POP3 and compared with what lies at the provider.
"""

from __future__ import annotations

import hashlib
import itertools
import poplib
import time
from collections import Counter
from functools import partial

from bench import Wrong
from bench.baselines import PASSWORD
from bench.environment import ROUND_TRIP, Environment
from bench.fetchers import fetch
from bench.gateway import Gateway, external, person
from bench.mails import ADDRESS, fill_maildir, mail
from bench.processes import Run, measured
from bench.table import Goal, Line, of_runs

OCTETS = 10_240
MAILS, SOME, FEW = 2_000, 500, 200
"""In the maildrops ``source``, ``some`` and ``few``. fetchmail gets the last: it is slow, and a rate needs no more."""
_DUE_IN, _BEFORE = 1.5, 0.2
"""Seconds from the addition of an account to its poll, and from the begin of the measurement."""
_ARRIVED = """select count(*) from maildrop_mails r join local_accounts l on l.id = r.local_id
              where l.address = %s and l.removed_at is null"""
_numbers = itertools.count(1)


def pipeline(stand: Environment, pairs: int) -> list[Line]:
    """Beside the provider, and at a distance."""
    fill_source(stand)
    lines = near(stand, pairs, stand.dovecot.port, "", 2, 12)
    with stand.far(stand.dovecot.port) as port:
        return lines + near(stand, pairs, port, f", {ROUND_TRIP} ms away", 1.5, 50)


def fill_source(stand: Environment) -> None:
    """The maildrops that are fetched, once."""
    if "source" not in stand.filled:
        for user, mails in (("source", MAILS), ("some", SOME), ("few", FEW)):
            fill_maildir(stand.dovecot.maildir(user), mails, OCTETS)
            fetch("mpop", stand.folder / "fetched", stand.dovecot.port, user, mails)  # makes Dovecot's index files
        stand.filled.add("source")


def near(stand: Environment, pairs: int, port: int, where: str, than_mpop: float, than_fetchmail: float) -> list[Line]:
    """All three in turn. :param port: of the provider. :param where: words for it."""
    folder = stand.folder / "fetched"
    mpop, ours, fetchmail = stand.alternate(
        pairs,
        partial(fetch, "mpop", folder, port, "source", MAILS),
        partial(deliver, stand.gateway, port, "source", MAILS),
        partial(fetch, "fetchmail", folder, port, "few", FEW),
    )
    return [
        of_runs(f"2,000 mails of 10 KB{where}", ours, mpop, Goal("≥", than_mpop), "mails/s", "mpop"),
        of_runs(
            f"the same beside fetchmail with maildrop, {FEW} mails{where}",
            ours,
            fetchmail,
            Goal("≥", than_fetchmail),
            "mails/s",
            "fetchmail",
        ),
    ]


def deliver(gateway: Gateway, port: int, login: str, mails: int, sharers: int = 1) -> Run:
    """Fetch a maildrop for a new account and deliver it to its sharers.

    :raises Wrong: what can be read by POP3 is not what lies at the provider.
    """
    number = next(_numbers)
    address = f"source{number}@provider.example"
    people = [person(f"reader{number}x{which}", address) for which in range(sharers)]
    people[0]["user_name"] = "Alex" if sharers == 1 else people[0]["user_name"]
    due = gateway.add([external(address, port, login=login, aliases=[ADDRESS])], people, _DUE_IN)
    names = [fields["address"] for fields in people]
    time.sleep(max(0.0, due - time.time() - _BEFORE))
    run = measured(
        lambda: Run(mails, max(gateway.await_value(mails, _ARRIVED, name) for name in names) - due), gateway.used
    )
    compare(gateway, names[-1], mails)
    gateway.remove([address], names)
    return run


def compare(gateway: Gateway, address: str, mails: int) -> None:
    """Read a mailbox by POP3. :raises Wrong: it does not hold exactly mails 0 to ``mails - 1`` of ``OCTETS`` octets."""
    session = poplib.POP3("127.0.0.1", gateway.settings.pop3_port, timeout=60)
    session.user(address)
    session.pass_(PASSWORD)
    found = Counter(
        hashlib.sha256(b"\r\n".join(session.retr(number + 1)[1]) + b"\r\n").digest()
        for number in range(session.stat()[0])
    )
    session.quit()
    if found != Counter(hashlib.sha256(mail(OCTETS, number)).digest() for number in range(mails)):
        raise Wrong(f"what {address} reads by POP3 is not what lies at the provider: {found.total()} mails")
