"""POP3: reading mail and polling, beside Dovecot.

Every mail is read for the first time: both servers start anew before each reading, so nothing is left in their memory,
and their users have logged in once since, as mail clients do every few minutes. Both sides' bytes are in the memory of
the kernel, as they are where mail is read soon after it came; Dovecot's index files were made by one pass before.
"""

from __future__ import annotations

from functools import partial

from bench.baselines import PASSWORD, USERS, used
from bench.environment import Environment
from bench.gateway import DOMAIN
from bench.mails import fill_maildir, mail
from bench.processes import Run, generate, holding, measured, memory, tree
from bench.table import Goal, Line, of_runs

MAILS, OCTETS = 1_000, 10_240
LARGE_MAILS, LARGE_OCTETS = 6, 5 * 1024 * 1024
BIG_MAILS, BIG_OCTETS = 100_000, 1_024
IDLE_SESSIONS = 500
_ALONE_SESSIONS = 3
_POLLS = {"ours": 6_000, "anchor": 1_000}


def _ready(stand: Environment, kind: str) -> None:
    """Fill the mailboxes of a kind of users on both sides, once."""
    if kind in stand.filled:
        return
    count, octets = {"u": (MAILS, OCTETS), "l": (LARGE_MAILS, LARGE_OCTETS), "big": (BIG_MAILS, BIG_OCTETS)}[kind]
    users = [kind] if kind == "big" else [f"{kind}{number}" for number in range(USERS)]
    for user in users:
        fill_maildir(stand.dovecot.maildir(user), count, octets)
        stand.gateway.fill(f"{user}@{DOMAIN}", (mail(octets, number) for number in range(count)))
    stand.gateway.settle()
    _load(stand, "anchor", "retr", kind, count, octets, sessions=len(users), concurrency=min(4, len(users)))
    stand.filled.add(kind)


def _load(stand: Environment, side: str, mode: str, kind: str, mails: int, octets: int, **options: object) -> Run:
    name = "big" if kind == "big" else kind + "{i}"
    load = partial(
        generate,
        "pop3_load",
        mode,
        port=stand.gateway.settings.pop3_port if side == "ours" else stand.dovecot.port,
        user=f"{name}@{DOMAIN}" if side == "ours" else name,
        users=1 if kind == "big" else USERS,
        password=PASSWORD,
        mails=mails,
        octets=octets,
        **options,
    )
    if mode == "login":
        return load()
    return measured(load, stand.gateway.used if side == "ours" else partial(used, stand.dovecot))


def _start_anew(stand: Environment, side: str, kind: str, logins: int) -> None:
    """A fresh server, to which its users have logged in once."""
    if side == "ours":
        stand.gateway.restart("pop3_out")
    else:
        stand.dovecot.restart()
    _load(stand, side, "login", kind, 0, 0, sessions=logins, concurrency=min(4, logins))


def _read(stand: Environment, kind: str, mails: int, octets: int, side: str, options: dict[str, int]) -> Run:
    _start_anew(stand, side, kind, options["sessions"])
    return _load(stand, side, "retr", kind, mails, octets, **options)


def retr(stand: Environment, pairs: int) -> list[Line]:
    """Mails of 10 KB."""
    _ready(stand, "u")
    lines = []
    for work, goal, options in (
        ("1,000 mails of 10 KB each, 16 sessions", 1.25, {"sessions": 16, "concurrency": 16}),
        ("the same, 1 session", 1.5, {"sessions": _ALONE_SESSIONS, "concurrency": 1}),
        ("the same, 16 sessions, 50 RETR pipelined", 0.75, {"sessions": 16, "concurrency": 16, "pipeline": 50}),
    ):
        read = partial(_read, stand, "u", MAILS, OCTETS, options=options)
        anchor, ours = stand.alternate(pairs, partial(read, "anchor"), partial(read, "ours"))
        lines.append(of_runs(work, ours, anchor, Goal("≥", goal), "mails/s", "Dovecot"))
    return lines


def retr_large(stand: Environment, pairs: int) -> list[Line]:
    """Mails of 5 MB."""
    _ready(stand, "l")
    read = partial(_read, stand, "l", LARGE_MAILS, LARGE_OCTETS, options={"sessions": 16, "concurrency": 16})
    anchor, ours = stand.alternate(pairs, partial(read, "anchor"), partial(read, "ours"))
    return [
        Line(
            "RETR of mails of 5 MB, 16 sessions",
            tuple(run.octets / run.seconds / 1e6 for run in ours),
            "MB/s",
            Goal("≥", 1),
            tuple(run.octets / run.seconds / 1e6 for run in anchor),
            "Dovecot",
            max(run.cpu or 0 for run in (*ours, *anchor)),
            (ours, anchor),
        )
    ]


def poll(stand: Environment, pairs: int) -> list[Line]:
    """Polls that find nothing new, of clients that polled before."""
    _ready(stand, "u")
    for side in ("ours", "anchor"):
        _start_anew(stand, side, "u", USERS)

    def work(side: str) -> Run:
        return _load(stand, side, "poll", "u", MAILS, OCTETS, sessions=_POLLS[side], concurrency=16)

    anchor, ours = stand.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
    return [
        of_runs("login, STAT, UIDL, QUIT on 1,000 mails, 16 sessions", ours, anchor, Goal("≥", 3), "polls/s", "Dovecot")
    ]


def poll_large(stand: Environment, pairs: int) -> list[Line]:
    """Polls of a large mailbox."""
    _ready(stand, "big")
    for side in ("ours", "anchor"):
        _start_anew(stand, side, "big", 1)

    def work(side: str) -> Run:
        return _load(stand, side, "poll", "big", BIG_MAILS, BIG_OCTETS, sessions=3)

    anchor, ours = stand.alternate(pairs, partial(work, "anchor"), partial(work, "ours"))
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


def idle_sessions(stand: Environment, pairs: int) -> list[Line]:
    """Memory of sessions that are open and silent. It is no matter of speed, so one pair will do."""
    _ready(stand, "u")
    ours, anchor = _held(stand, "ours") / 1000, _held(stand, "anchor") / 1000
    return [
        Line(f"{IDLE_SESSIONS} idle sessions, each", (ours,), "kB", Goal("≤", 20, "kB")),
        Line("the same, beside Dovecot", (ours,), "kB", Goal("≤", 1 / 40), (anchor,), "Dovecot"),
    ]


def _held(stand: Environment, side: str) -> float:
    """Octets that a silent session takes, in all processes of the server."""
    _start_anew(stand, side, "u", USERS)
    root = stand.gateway.pids()["pop3_out"] if side == "ours" else stand.dovecot.pid
    before = memory(tree(root))
    with holding(
        "pop3_load",
        "idle",
        port=stand.gateway.settings.pop3_port if side == "ours" else stand.dovecot.port,
        user="u{i}" + (f"@{DOMAIN}" if side == "ours" else ""),
        users=USERS,
        password=PASSWORD,
        sessions=IDLE_SESSIONS,
    ):
        return (memory(tree(root)) - before) / IDLE_SESSIONS
