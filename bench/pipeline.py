"""Measures fetcher, router and mailbox together, from the provider's maildrop to readable, beside mpop and fetchmail.

All read the same maildrop of the same Dovecot. The time of mailgroup counts from the due time of the poll until all
mails are in the mailbox; then they are read by POP3 and compared with those at the provider.
"""

from __future__ import annotations

import hashlib
import itertools
import poplib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from bench import Wrong
from bench.baselines import PASSWORD
from bench.environment import ROUND_TRIP, Environment
from bench.fetchers import fetch
from bench.gateway import Gateway, external, imap_external, person
from bench.mails import ADDRESS, fill_maildir, mail
from bench.processes import Run, measured
from bench.table import Goal, Line, rate_line

OCTETS = 10_240
MAILS, SOME, FEW, FEWEST = 2_000, 500, 200, 50
"""Mails in the maildrops ``source``, ``some``, ``few`` and ``fewest``. The slow fetchmail reads ``few``, the slower
getmail6 ``fewest``: enough for their rates."""
_DUE_IN, _BEFORE = 1.5, 0.2
"""Seconds from adding an account to its poll, and from the start of the measurement to this poll."""
_ARRIVED = """select count(*) from folder_mails r join folders f on f.id = r.folder_id and f.special_use = 'inbox'
           join local_accounts l on l.id = f.local_id
              where l.address = %s and l.removed_at is null"""
_numbers = itertools.count(1)


def pipeline(environment: Environment, pairs: int) -> list[Line]:
    """Measure with a near and a distant provider."""
    fill_source(environment)
    lines = near(environment, pairs, environment.dovecot.port, "", 1, 12)
    with environment.far(environment.dovecot.port) as port:
        return lines + near(environment, pairs, port, f", {ROUND_TRIP} ms away", 1.5, 100)


def fill_source(environment: Environment) -> None:
    """Fill the maildrops to fetch, once."""
    if "source" not in environment.filled:
        for user, mails in (("source", MAILS), ("some", SOME), ("few", FEW), ("fewest", FEWEST)):
            fill_maildir(environment.dovecot.maildir(user), mails, OCTETS)
            fetch(
                "mpop", environment.folder / "fetched", environment.dovecot.port, user, mails
            )  # makes Dovecot's index files
        environment.filled.add("source")


def near(
    environment: Environment, pairs: int, port: int, where: str, than_mpop: float, than_fetchmail: float
) -> list[Line]:
    """Run all three alternately. :param port: of the provider. :param where: text for the title."""
    folder = environment.folder / "fetched"
    mpop, ours, fetchmail = environment.alternate(
        pairs,
        partial(fetch, "mpop", folder, port, "source", MAILS),
        partial(deliver, environment.gateway, port, "source", MAILS),
        partial(fetch, "fetchmail", folder, port, "few", FEW),
    )
    return [
        rate_line(f"2,000 mails of 10 KB{where}", ours, mpop, Goal("≥", than_mpop), "mails/s", "mpop"),
        rate_line(
            f"the same beside fetchmail with maildrop, {FEW} mails{where}",
            ours,
            fetchmail,
            Goal("≥", than_fetchmail),
            "mails/s",
            "fetchmail",
        ),
    ]


def deliver(
    gateway: Gateway, port: int, login: str, mails: int, sharers: int = 1, octets: int = OCTETS,
    used: Callable[[], Mapping[str, float]] | None = None, imap: bool = False,
) -> Run:  # fmt: skip
    """Fetch a mailbox for a new account and deliver it to its sharers.

    :param port: of POP3, or of IMAP. :param used: as for ``measured``; None: that of the gateway. :param imap: fetch by
        IMAP. Such an account is polled as soon as it is there, so the time counts from then.
    :raises Wrong: the mails that POP3 returns are not those at the provider.
    """
    number = next(_numbers)
    address = f"source{number}@provider.example"
    people = [person(f"reader{number}x{which}", address) for which in range(sharers)]
    people[0]["user_name"] = "Alex" if sharers == 1 else people[0]["user_name"]
    account = (imap_external if imap else external)(address, port, login=login, aliases=[ADDRESS])
    due = gateway.add([account], people, 0.0 if imap else _DUE_IN)
    names = [fields["address"] for fields in people]
    time.sleep(max(0.0, due - time.time() - _BEFORE))
    run = measured(
        lambda: Run(mails, max(gateway.await_value(mails, _ARRIVED, name) for name in names) - due),
        used or gateway.used,
    )
    compare(gateway, names[-1], mails, octets)
    gateway.remove([address], names)
    return run


def compare(gateway: Gateway, address: str, mails: int, octets: int = OCTETS) -> None:
    """Read a mailbox by POP3. :raises Wrong: it does not hold exactly mails 0 to ``mails - 1`` of ``octets`` octets."""
    session = poplib.POP3("127.0.0.1", gateway.settings.pop3_port, timeout=60)
    session.user(address)
    session.pass_(PASSWORD)
    found = Counter(
        hashlib.sha256(b"\r\n".join(session.retr(number + 1)[1]) + b"\r\n").digest()
        for number in range(session.stat()[0])
    )
    session.quit()
    if found != Counter(hashlib.sha256(mail(octets, number)).digest() for number in range(mails)):
        raise Wrong(f"{address} reads other mails by POP3 than those at the provider: {found.total()} mails")
