"""Measures reading and polling by POP3, beside Dovecot.

Every mail is read for the first time: both servers restart before each run, which empties their memory, and their users
have logged in once since then, as mail clients do every few minutes. The files of both sides are in the kernel's page
cache, as for mail that is read soon after its arrival; an earlier pass has created Dovecot's index files.
"""

from __future__ import annotations

from functools import partial

from bench.baselines import PASSWORD, USERS, used
from bench.environment import Environment
from bench.gateway import DOMAIN
from bench.mails import fill_maildir, mail
from bench.processes import Run, generate, holding, measured, memory, tree
from bench.table import Goal, Line, rate_line, throughput_line

MAILS, OCTETS = 1_000, 10_240
LARGE_MAILS, LARGE_OCTETS = 6, 5 * 1024 * 1024
BIG_MAILS, BIG_OCTETS = 100_000, 1_024
IDLE_SESSIONS = 500
_ALONE_SESSIONS = 3
_POLLS = {"ours": 6_000, "anchor": 1_000}


def _ready(environment: Environment, kind: str) -> None:
    """Fill the mailboxes of a kind of users on both sides, once."""
    if kind in environment.filled:
        return
    count, octets = {"u": (MAILS, OCTETS), "l": (LARGE_MAILS, LARGE_OCTETS), "big": (BIG_MAILS, BIG_OCTETS)}[kind]
    users = [kind] if kind == "big" else [f"{kind}{number}" for number in range(USERS)]
    for user in users:
        fill_maildir(environment.dovecot.maildir(user), count, octets)
        environment.gateway.fill(f"{user}@{DOMAIN}", (mail(octets, number) for number in range(count)))
    environment.gateway.wait_until_idle()
    _load(environment, "anchor", "retr", kind, count, octets, sessions=len(users), concurrency=min(4, len(users)))
    environment.filled.add(kind)


def _load(environment: Environment, side: str, mode: str, kind: str, mails: int, octets: int, **options: object) -> Run:
    name = "big" if kind == "big" else kind + "{i}"
    load = partial(
        generate,
        "pop3_load",
        mode,
        port=environment.gateway.settings.pop3_port if side == "ours" else environment.dovecot.port,
        user=f"{name}@{DOMAIN}" if side == "ours" else name,
        users=1 if kind == "big" else USERS,
        password=PASSWORD,
        mails=mails,
        octets=octets,
        **options,
    )
    if mode == "login":
        return load()
    return measured(load, environment.gateway.used if side == "ours" else partial(used, environment.dovecot))


def _restart(environment: Environment, side: str, kind: str, logins: int) -> None:
    """Restart a server, and log its users in once."""
    if side == "ours":
        environment.gateway.restart("pop3_out")
    else:
        environment.dovecot.restart()
    _load(environment, side, "login", kind, 0, 0, sessions=logins, concurrency=min(4, logins))


def _read(environment: Environment, kind: str, mails: int, octets: int, side: str, options: dict[str, int]) -> Run:
    _restart(environment, side, kind, options["sessions"])
    return _load(environment, side, "retr", kind, mails, octets, **options)


def retr(environment: Environment, pairs: int) -> list[Line]:
    """Read mails of 10 KB."""
    _ready(environment, "u")
    lines = []
    for work, goal, options in (
        ("1,000 mails of 10 KB each, 16 sessions", 1.25, {"sessions": 16, "concurrency": 16}),
        ("the same, 1 session", 1.25, {"sessions": _ALONE_SESSIONS, "concurrency": 1}),
        ("the same, 16 sessions, 50 RETR pipelined", 1, {"sessions": 16, "concurrency": 16, "pipeline": 50}),
    ):
        read = partial(_read, environment, "u", MAILS, OCTETS, options=options)
        anchor, ours = environment.alternate(pairs, partial(read, "anchor"), partial(read, "ours"))
        lines.append(rate_line(work, ours, anchor, Goal("≥", goal), "mails/s", "Dovecot"))
    return lines


def retr_large(environment: Environment, pairs: int) -> list[Line]:
    """Read mails of 5 MB."""
    _ready(environment, "l")
    read = partial(_read, environment, "l", LARGE_MAILS, LARGE_OCTETS, options={"sessions": 16, "concurrency": 16})
    anchor, ours = environment.alternate(pairs, partial(read, "anchor"), partial(read, "ours"))
    return [throughput_line("RETR of mails of 5 MB, 16 sessions", ours, anchor, Goal("≥", 1), "Dovecot")]


def poll(environment: Environment, pairs: int) -> list[Line]:
    """Poll without new mail, by clients that have polled before."""
    _ready(environment, "u")
    for side in ("ours", "anchor"):
        _restart(environment, side, "u", USERS)

    def work(side: str) -> Run:
        return _load(environment, side, "poll", "u", MAILS, OCTETS, sessions=_POLLS[side], concurrency=16)

    anchor, ours = environment.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
    return [
        rate_line(
            "login, STAT, UIDL, QUIT on 1,000 mails, 16 sessions", ours, anchor, Goal("≥", 3), "polls/s", "Dovecot"
        )
    ]


def poll_large(environment: Environment, pairs: int) -> list[Line]:
    """Poll a large mailbox."""
    _ready(environment, "big")
    for side in ("ours", "anchor"):
        _restart(environment, side, "big", 1)

    def work(side: str) -> Run:
        return _load(environment, side, "poll", "big", BIG_MAILS, BIG_OCTETS, sessions=3)

    anchor, ours = environment.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
    return [
        Line(
            "login, STAT, UIDL, QUIT on 100,000 mails",
            tuple(run.session * 1e3 for run in ours),
            "ms",
            Goal("≤", 0.2),
            tuple(run.session * 1e3 for run in anchor),
            "Dovecot",
            runs=(ours, anchor),
        )
    ]


def idle_sessions(environment: Environment, pairs: int) -> list[Line]:
    """Measure the memory of idle sessions, once, as it hardly varies."""
    _ready(environment, "u")
    ours, anchor = _held(environment, "ours") / 1000, _held(environment, "anchor") / 1000
    return [
        Line(f"{IDLE_SESSIONS} idle sessions, each", (ours,), "kB", Goal("≤", 20, "kB")),
        Line("the same, beside Dovecot", (ours,), "kB", Goal("≤", 1 / 40), (anchor,), "Dovecot"),
    ]


def _held(environment: Environment, side: str) -> float:
    """Return the memory of an idle session in octets, over all processes of the server."""
    _restart(environment, side, "u", USERS)
    root = environment.gateway.pids()["pop3_out"] if side == "ours" else environment.dovecot.pid
    before = memory(tree(root))
    with holding(
        "pop3_load",
        "idle",
        port=environment.gateway.settings.pop3_port if side == "ours" else environment.dovecot.port,
        user="u{i}" + (f"@{DOMAIN}" if side == "ours" else ""),
        users=USERS,
        password=PASSWORD,
        sessions=IDLE_SESSIONS,
    ):
        return (memory(tree(root)) - before) / IDLE_SESSIONS
