"""Measures IMAP for mail clients, beside Dovecot: polls, overviews, texts, APPEND, STORE and SEARCH.

Both servers restart before a work that is done for the first time, and their users have logged in once since then. What
they keep of a mail is deleted before, which is the table mail_structures and Dovecot's cache files. The files of both
sides are in the kernel's page cache. What is known from before is in their memory.
"""

from __future__ import annotations

import re
import socket
import time
from functools import partial

from bench import Wrong
from bench.baselines import PASSWORD, USERS, used
from bench.environment import Environment
from bench.gateway import DOMAIN
from bench.mails import fill_maildir, mail
from bench.processes import Run, generate, measured
from bench.table import Goal, Line, rate_line, throughput_line

MAILS, OCTETS = 1_000, 10_240
LARGE_MAILS, LARGE_OCTETS = 6, 5 * 1024 * 1024
BIG_MAILS, BIG_OCTETS = 100_000, 1_024
SEARCHED_MAILS, SEARCHED_OCTETS = 10_000, 4_096
_KINDS = {
    "u": (MAILS, OCTETS),
    "l": (LARGE_MAILS, LARGE_OCTETS),
    "big": (BIG_MAILS, BIG_OCTETS),
    "searched": (SEARCHED_MAILS, SEARCHED_OCTETS),
}
_POLLS = {"ours": 4_000, "anchor": 1_000}
_STRUCTURES_SECONDS = 300.0
_FOUND = 111
"""Mails out of 10,000 whose subject ends with a number that begins with two given digits."""


def ready(environment: Environment, kind: str) -> None:
    """Fill the mailboxes of a kind of users on both sides, once."""
    if kind in environment.filled:
        return
    count, octets = _KINDS[kind]
    for user in _users(kind):
        fill_maildir(environment.dovecot.maildir(user), count, octets)
        environment.gateway.fill(f"{user}@{DOMAIN}", (mail(octets, number) for number in range(count)))
    environment.gateway.wait_until_idle()
    load(environment, "anchor", "overview", kind, count, sessions=len(_users(kind)), concurrency=4)
    load(environment, "ours", "overview", kind, count, sessions=len(_users(kind)), concurrency=4)
    environment.filled.add(kind)


def _users(kind: str) -> list[str]:
    return [f"{kind}{number}" for number in range(USERS)] if len(kind) == 1 else [kind]


def load(environment: Environment, side: str, mode: str, kind: str, mails: int = 0, **options: object) -> Run:
    """Run the load generator, and measure the processor time of the side."""
    name = kind + "{i}" if len(kind) == 1 else kind
    work = partial(
        generate,
        "imap_load",
        mode,
        port=environment.gateway.settings.imap_port if side == "ours" else environment.dovecot.imap_port,
        user=f"{name}@{DOMAIN}" if side == "ours" else name,
        users=len(_users(kind)),
        password=PASSWORD,
        mails=mails,
        **options,
    )
    if mode == "login":
        return work()
    return measured(work, environment.gateway.used if side == "ours" else partial(used, environment.dovecot))


def restart(environment: Environment, side: str, kind: str) -> None:
    """Restart a server, and log its users in once."""
    if side == "ours":
        environment.gateway.restart("imap_out")
    else:
        environment.dovecot.restart()
    load(environment, side, "login", kind, sessions=len(_users(kind)), concurrency=4)


def forget(environment: Environment, kind: str) -> None:
    """Delete what both sides keep of the mails of these users beside their octets."""
    environment.gateway.connection.execute("truncate mail_structures")
    environment.gateway.connection.execute("checkpoint")
    for user in _users(kind):
        for file in environment.dovecot.maildir(user).glob("dovecot.index.cache*"):
            file.unlink()


def _compared(
    environment: Environment, pairs: int, mode: str, kind: str, mails: int = 0, **options: object
) -> list[list[Run]]:
    """Run the same on both sides, alternately. :return: the runs of Dovecot, and ours."""

    def work(side: str) -> Run:
        return load(environment, side, mode, kind, mails, **options)

    return environment.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))


# ------------------------------------------------------------------------------------------------------------- polls


def poll(environment: Environment, pairs: int) -> list[Line]:
    """Poll a known mailbox."""
    ready(environment, "u")
    for side in ("anchor", "ours"):
        restart(environment, side, "u")
        load(environment, side, "poll", "u", MAILS, sessions=USERS)

    def work(side: str) -> Run:
        return load(environment, side, "poll", "u", MAILS, sessions=_POLLS[side], concurrency=16)

    anchor, ours = environment.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
    work_name = "login, SELECT, UID FETCH 1:* FLAGS of 1,000 mails, 16 sessions"
    return [rate_line(work_name, ours, anchor, Goal("≥", 2), "polls/s", "Dovecot")]


def resync(environment: Environment, pairs: int) -> list[Line]:
    """Poll a large mailbox by QRESYNC, without news."""
    ready(environment, "big")
    for side in ("anchor", "ours"):
        restart(environment, side, "big")
    known = {side: _sync_point(environment, side, "big") for side in ("anchor", "ours")}

    def work(side: str) -> Run:
        return load(environment, side, "resync", "big", BIG_MAILS, sessions=30, known=known[side])

    for side in known:
        work(side)
    anchor, ours = environment.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
    return [
        Line(
            "login, SELECT with QRESYNC of 100,000 mails, nothing new",
            tuple(run.session * 1e3 for run in ours),
            "ms",
            Goal("≤", 0.2),
            tuple(run.session * 1e3 for run in anchor),
            "Dovecot",
            runs=(ours, anchor),
        )
    ]


def _sync_point(environment: Environment, side: str, user: str) -> str:
    """Return UIDVALIDITY and HIGHESTMODSEQ of INBOX. :raises Wrong: the server does not name them."""
    port = environment.gateway.settings.imap_port if side == "ours" else environment.dovecot.imap_port
    name = f"{user}@{DOMAIN}" if side == "ours" else user
    with socket.create_connection(("127.0.0.1", port), 60) as connection, connection.makefile("rwb") as lines:
        lines.write(f"1 LOGIN {name} {PASSWORD}\r\n2 ENABLE QRESYNC\r\n3 SELECT INBOX\r\n4 LOGOUT\r\n".encode())
        lines.flush()
        text = lines.read()
    uidvalidity, modseq = re.search(rb"UIDVALIDITY (\d+)", text), re.search(rb"HIGHESTMODSEQ (\d+)", text)
    if uidvalidity is None or modseq is None:
        raise Wrong(f"SELECT of {name} names no mod-sequence: {text[:1000]!r}")
    return f"{int(uidvalidity[1])} {int(modseq[1])}"


# ------------------------------------------------------------------------------------------------------------- mails


def overview(environment: Environment, pairs: int) -> list[Line]:
    """Fetch envelopes and structures: of mails that nobody has asked for yet, and again.

    Ours computes them some seconds after the arrival of a mail; it does so before the second line. Dovecot keeps
    nothing of these mails.
    """
    ready(environment, "u")
    options = {"sessions": USERS, "concurrency": 1}

    def first(side: str) -> Run:
        forget(environment, "u")
        restart(environment, side, "u")
        return load(environment, side, "overview", "u", MAILS, **options)

    def rested(side: str) -> Run:
        forget(environment, "u")
        restart(environment, side, "u")
        if side == "ours":
            _await_structures(environment, USERS * MAILS)
            restart(environment, side, "u")
        return load(environment, side, "overview", "u", MAILS, **options)

    name = "FETCH 1:1000 (ENVELOPE BODYSTRUCTURE FLAGS)"
    anchor, ours = environment.alternate(pairs, partial(first, "anchor"), partial(first, "ours"))
    lines = [rate_line(f"{name}, the first time", ours, anchor, Goal("≥", 1), "mails/s", "Dovecot")]
    anchor, ours = environment.alternate(pairs, partial(rested, "anchor"), partial(rested, "ours"))
    lines.append(rate_line("the first time, seconds after the arrival", ours, anchor, None, "mails/s", "Dovecot"))
    for side in ("anchor", "ours"):
        load(environment, side, "overview", "u", MAILS, **options)
    anchor, ours = _compared(environment, pairs, "overview", "u", MAILS, **options)
    return [*lines, rate_line("the same again", ours, anchor, Goal("≥", 2), "mails/s", "Dovecot")]


def _await_structures(environment: Environment, count: int) -> None:
    """Wait until so many structures are stored."""
    deadline = time.monotonic() + _STRUCTURES_SECONDS
    while time.monotonic() < deadline:
        [row] = environment.gateway.connection.execute("select count(*) from mail_structures").fetchall()
        if row[0] >= count:
            return
        time.sleep(0.5)
    raise Wrong(f"{row[0]} of {count} structures after {_STRUCTURES_SECONDS:.0f} s")


def read(environment: Environment, pairs: int) -> list[Line]:
    """Read mails of 10 KB, a command each."""
    ready(environment, "u")
    lines = []
    for name, pipeline in (("UID FETCH of 1,000 mails of 10 KB each, 16 sessions", 1), ("the same, 50 pipelined", 50)):
        runs = _compared(
            environment, pairs, "read", "u", MAILS, octets=OCTETS, sessions=USERS, concurrency=16, pipeline=pipeline
        )
        lines.append(rate_line(name, runs[1], runs[0], Goal("≥", 1), "mails/s", "Dovecot"))
    return lines


def read_large(environment: Environment, pairs: int) -> list[Line]:
    """Read mails of 5 MB."""
    ready(environment, "l")
    anchor, ours = _compared(
        environment, pairs, "read", "l", LARGE_MAILS, octets=LARGE_OCTETS, sessions=USERS, concurrency=16
    )
    return [throughput_line("UID FETCH of mails of 5 MB, 16 sessions", ours, anchor, Goal("≥", 1), "Dovecot")]


# ----------------------------------------------------------------------------------------------------------- changes


def append(environment: Environment, pairs: int) -> list[Line]:
    """Store mails of 4 KB, durably."""
    anchor, ours = _compared(environment, pairs, "append", "a", 100, octets=4_096, sessions=USERS, concurrency=16)
    return [rate_line("APPEND of mails of 4 KB, 16 sessions", ours, anchor, Goal("≥", 1.5), "mails/s", "Dovecot")]


def store(environment: Environment, pairs: int) -> list[Line]:
    """Change a flag of one mail after the other."""
    ready(environment, "u")

    def work(side: str) -> Run:
        signs[side] = "-" if signs.get(side) == "+" else "+"
        return load(environment, side, "store", "u", MAILS, sessions=USERS, concurrency=16, sign=signs[side])

    signs: dict[str, str] = {}
    anchor, ours = environment.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
    for side in [side for side, sign in signs.items() if sign == "+"]:
        work(side)
    return [rate_line("UID STORE of 1,000 single mails, 16 sessions", ours, anchor, Goal("≥", 1), "/s", "Dovecot")]


def search(environment: Environment, pairs: int) -> list[Line]:
    """Search subjects and bodies: of mails that were never searched before, and again for other texts."""
    ready(environment, "searched")
    digits = iter(range(10, 100))

    def work(side: str) -> Run:
        text = f'OR SUBJECT "message {next(digits)}" BODY "no text {next(digits)}"'
        return load(environment, side, "search", "searched", SEARCHED_MAILS, text=text, found=_FOUND)

    def first(side: str) -> Run:
        forget(environment, "searched")
        restart(environment, side, "searched")
        return work(side)

    name = "SEARCH OR SUBJECT … BODY … in 10,000 mails"
    anchor, ours = environment.alternate(pairs, partial(first, "anchor"), partial(first, "ours"))
    lines = [rate_line(f"{name}, never searched before", ours, anchor, Goal("≥", 1), "mails/s", "Dovecot")]
    anchor, ours = environment.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
    return [*lines, rate_line("the same again, for other texts", ours, anchor, Goal("≥", 3), "mails/s", "Dovecot")]
