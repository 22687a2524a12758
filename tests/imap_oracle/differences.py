"""Where the answers of the two servers may differ, with the verdict of the RFC. Everything else is the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.imap_oracle.answers import Answer


@dataclass(frozen=True, slots=True)
class Allowed:
    """A difference. command: of which commands, in upper case. verdict: section and sentence.

    weaken: returns what of an answer is compared all the same.
    """

    command: str
    verdict: str
    weaken: Callable[[Answer], Answer]


def _without_code(answer: Answer) -> Answer:
    required = answer.kind == "OK" or answer.code == "TRYCREATE"
    return answer if required else replace(answer, code="", values=None)


def _only_kind(answer: Answer) -> Answer:
    return Answer(answer.kind)


def _without_children(answer: Answer) -> Answer:
    listed = answer.data.get("LIST")
    if not isinstance(listed, list):
        return answer
    children = {b"\\haschildren", b"\\hasnochildren"}
    kept = [(sorted(set(attributes) - children), *rest) for attributes, *rest in listed]
    return replace(answer, data=answer.data | {"LIST": sorted(kept, key=repr)})


def _unless_nothing_was_done(answer: Answer) -> Answer:
    done = answer.values is not None
    return answer if done or answer.kind == "BAD" else Answer("nothing done")


def _as_set(answer: Answer) -> Answer:
    found = answer.data.get("SORT")
    return replace(answer, data={"SORT": sorted(found)}) if isinstance(found, list) else answer


def _without_highest(answer: Answer) -> Answer:
    return replace(answer, code="") if answer.code == "HIGHESTMODSEQ" else answer


def _without(*kinds: str) -> Callable[[Answer], Answer]:
    def weaken(answer: Answer) -> Answer:
        return replace(answer, data={kind: value for kind, value in answer.data.items() if kind not in kinds})

    return weaken


ALLOWED: tuple[Allowed, ...] = (
    Allowed(
        "",
        "RFC 5530 section 3: response codes of a refusal are the server's choice; RFC 3501 requires TRYCREATE alone.",
        _without_code,
    ),
    Allowed(
        "STATUS ",
        "RFC 3501 section 6.3.10: STATUS of the selected mailbox should not be sent; Dovecot says so by a code.",
        lambda answer: replace(answer, code=""),
    ),
    Allowed(
        "LIST .*\\(",
        "RFC 5258 section 4: without RETURN (CHILDREN) a server need not say whether there are children; ours does.",
        _without_children,
    ),
    Allowed(
        "UID (COPY|MOVE) ",
        "RFC 3501 section 6.4.8: UIDs without a mail are no error; section 6.4.7: a mailbox that is missing is one. Of"
        " both at once, ours answers the second, Dovecot the first.",
        _unless_nothing_was_done,
    ),
    Allowed(
        "",
        "RFC 7162 section 3.2.7: HIGHESTMODSEQ is required if a mail was expunged; ours sends it after each EXPUNGE and"
        " MOVE, Dovecot after other commands, too.",
        _without_highest,
    ),
    Allowed(
        "UNSUBSCRIBE ",
        "RFC 3501 section 6.3.7: NO says that the name cannot be unsubscribed; ours never says it, as a client may end"
        " a subscription after DELETE or RENAME.",
        lambda answer: Answer(""),
    ),
    Allowed(
        "(UID )?STORE ",
        "RFC 3501 section 6.4.6: FETCH responses follow for each mail; ours sends them, Dovecot where flags changed."
        " The flags are compared by the next check.",
        _without("FETCH"),
    ),
    Allowed(
        "(UID )?SORT .*REVERSE",
        "RFC 5256 section 3: equal mails keep the order of the mailbox, as with ours; Dovecot reverses them, too.",
        _as_set,
    ),
    Allowed(
        "LSUB |LIST .*SUBSCRIBED",
        "RFC 3501 section 6.3.6 does not say whether a new mailbox is subscribed: ours is, since some clients show no"
        " other; with Dovecot it is not.",
        _only_kind,
    ),
)
AVOIDED: tuple[tuple[str, str], ...] = (
    (
        "STORE, MOVE and EXPUNGE after EXAMINE",
        "RFC 3501 section 6.3.2: no changes are permitted; ours says NO [READ-ONLY], Dovecot OK, and moves.",
    ),
    (
        "a range of message numbers such as 5:* of four mails",
        "RFC 3501 section 9, seq-number: a number that no mail has is BAD; Dovecot takes the last mail.",
    ),
    ("OLD, NEW and RECENT", "RFC 9051 appendix E: there is no \\Recent any more; ours has never a recent mail."),
    (
        "SENTBEFORE of a mail without a Date field",
        "RFC 3501 section 6.4.4: the Date field is compared; Dovecot takes a missing one for one of 1970.",
    ),
    (
        "CHANGEDSINCE and UNCHANGEDSINCE in a session without ENABLE",
        "RFC 7162 section 3.1: Dovecot counts mod-sequences only from the first command on that wants them.",
    ),
    (
        "BINARY of a part with parts",
        "RFC 3516 section 4.2 speaks of decoded content, which such a part has not: ours is empty.",
    ),
    (
        "DELETE and RENAME of a mailbox that a session has selected",
        "RFC 3501 section 6.3.4 does not say what becomes of sessions: ours refuses its own and ends others with BYE.",
    ),
)
"""What no stream does, because the two servers would part for good, with the verdict of the RFC."""


def weakened(command: bytes, answer: Answer) -> Answer:
    """Return the part of an answer that both servers have in common. :param command: as sent, or the kind of a step."""
    text = command.decode("utf-8", "replace").upper()
    for allowed in ALLOWED:
        if re.match(allowed.command, text):
            answer = allowed.weaken(answer)
    return answer
