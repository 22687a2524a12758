"""Puts mails into threads: THREAD=REFERENCES and THREAD=ORDEREDSUBJECT (RFC 5256 section 3).

No step recurses, and a thread has a limited depth, so a chain of 100,000 mails costs no more than others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.imap_out.search.base_subject import base_subject
from services.imap_out.search.mail_texts import sent_date
from shared.mime import headers

MAX_REFERENCES = 100
"""References of a mail that are followed: the last ones."""
MAX_DEPTH = 200
"""Mails above a mail that are compared before another is put below it; with more it begins a thread of its own."""


class ThreadFacts(NamedTuple):
    """What THREAD needs to know of a mail."""

    number: int  # message number or UID, as the answer has it
    sent: float  # seconds since 1970 in UTC; the arrival if there is no date
    message_id: str = ""
    references: tuple[str, ...] = ()
    subject: str = ""  # base subject
    is_reply: bool = False


@dataclass(slots=True, eq=False)
class ThreadNode:
    """A mail with the mails below it; without a mail it stands for one that is not there."""

    mail: ThreadFacts | None = None
    parent: ThreadNode | None = None
    children: list[ThreadNode] = field(default_factory=list)


def read_thread_facts(header: bytes, number: int, arrival: float) -> ThreadFacts:
    """Return what THREAD needs. :param header: raw. :param arrival: INTERNALDATE, seconds since 1970."""
    known = headers.by_name(header)
    ids = [headers.message_ids(value, 1) for value in known.get("message-id", [])[:1]]
    references = [one for value in known.get("references", [])[:1] for one in headers.message_ids(value)]
    if not references:
        references = [one for value in known.get("in-reply-to", [])[:1] for one in headers.message_ids(value, 1)]
    moment = sent_date(header)
    subject = base_subject(known["subject"][0]) if "subject" in known else None
    return ThreadFacts(
        number,
        arrival if moment is None else moment.timestamp(),
        ids[0][0] if ids and ids[0] else "",
        tuple(references[-MAX_REFERENCES:]),
        subject.text if subject else "",
        subject is not None and subject.is_reply,
    )


def thread_by_references(mails: Sequence[ThreadFacts]) -> list[ThreadNode]:
    """Return the threads of the algorithm REFERENCES. :param mails: in the order of the mailbox."""
    roots = _pruned(_linked(mails))
    roots.sort(key=_sent)
    roots = _joined_by_subject(roots)
    for node in _every(roots):
        node.children.sort(key=_sent)
    roots.sort(key=_sent)
    return roots


def thread_by_subject(mails: Sequence[ThreadFacts]) -> list[ThreadNode]:
    """Return the threads of the algorithm ORDEREDSUBJECT: the first mail of a subject has all others below it."""
    by_subject: dict[str, ThreadNode] = {}
    for mail in sorted(mails, key=lambda mail: mail.sent):
        first = by_subject.get(mail.subject)
        if first is None:
            by_subject[mail.subject] = ThreadNode(mail)
        else:
            first.children.append(ThreadNode(mail))
    return list(by_subject.values())


def _linked(mails: Sequence[ThreadFacts]) -> list[ThreadNode]:
    """Link mails by their references (step 1). Return the nodes without a parent (step 2)."""
    nodes: dict[str, ThreadNode] = {}
    every: list[ThreadNode] = []

    def node_of(message_id: str) -> ThreadNode:
        if message_id not in nodes:
            nodes[message_id] = ThreadNode()
            every.append(nodes[message_id])
        return nodes[message_id]

    for mail in mails:
        own = node_of(mail.message_id) if mail.message_id else ThreadNode()
        if not mail.message_id or own.mail is not None:  # a second mail with this id is a thread of its own
            own = ThreadNode()
            every.append(own)
        own.mail = mail
        above: ThreadNode | None = None
        for reference in mail.references:
            node = node_of(reference)
            if above is not None and node.parent is None:
                _link(above, node)
            above = node
        if above is not None:
            _link(above, own)
    for node in every:
        if node.parent is not None:
            node.parent.children.append(node)
    return [node for node in every if node.parent is None]


def _link(parent: ThreadNode, child: ThreadNode) -> None:
    """Put one node below another, unless that made a loop, or too deep a thread."""
    above: ThreadNode | None = parent
    for _ in range(MAX_DEPTH):
        if above is None:
            break
        if above is child:
            return
        above = above.parent
    if above is None:
        child.parent = parent


def _pruned(roots: Sequence[ThreadNode]) -> list[ThreadNode]:
    """Remove nodes without a mail (step 3): their children take their place, but only one of them at the top."""
    for node in reversed(list(_every(roots))):  # those below come first
        node.children = [
            kept for child in node.children for kept in ([child] if child.mail is not None else child.children)
        ]
    kept = []
    for root in roots:
        if root.mail is not None or len(root.children) > 1:
            kept.append(root)
        else:
            kept += root.children
    return kept


def _joined_by_subject(roots: Sequence[ThreadNode]) -> list[ThreadNode]:
    """Join threads with one subject (step 5). :param roots: by date."""
    table: dict[str, ThreadNode] = {}
    for root in roots:
        subject = _first(root).subject
        known = table.get(subject)
        if subject and (
            known is None
            or (root.mail is None and known.mail is not None)
            or (known.mail is not None and known.mail.is_reply and root.mail is not None and not root.mail.is_reply)
        ):
            table[subject] = root
    left: dict[int, ThreadNode] = {id(root): root for root in roots}
    for root in roots:
        known = table.get(_first(root).subject)
        if known is None or known is root or id(root) not in left:
            continue
        del left[id(root)]
        if known.mail is None:
            known.children += root.children if root.mail is None else [root]
        elif root.mail is not None and root.mail.is_reply and not known.mail.is_reply:
            known.children.append(root)
        else:
            joined = ThreadNode(children=[known, root])
            left[id(joined)] = joined
            left.pop(id(known), None)
            table[_first(root).subject] = joined
    return list(left.values())


def _first(node: ThreadNode) -> ThreadFacts:
    """Return the mail of a node, or of its first child, which has one."""
    mail = node.mail if node.mail is not None else node.children[0].mail
    assert mail is not None
    return mail


def _sent(node: ThreadNode) -> tuple[float, int]:
    if node.mail is None:
        return min((child.mail.sent, child.mail.number) for child in node.children if child.mail is not None)
    return node.mail.sent, node.mail.number


def _every(roots: Sequence[ThreadNode]) -> Iterator[ThreadNode]:
    """Yield all nodes, each before those below it."""
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children


def format_threads(roots: Sequence[ThreadNode]) -> bytes:
    """Format the THREAD response (RFC 5256 section 4): ``* THREAD (2)(3 6 (4 23)(44 7 96))``."""
    words: list[str] = []
    waiting: list[ThreadNode | str] = [item for root in reversed(roots) for item in (")", root, "(")]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            words.append(item)
            continue
        if item.mail is not None:
            words.append(str(item.mail.number))
        if item.children and item.mail is not None:
            words.append(" ")
        if len(item.children) == 1:
            waiting.append(item.children[0])
        else:
            waiting += [each for child in reversed(item.children) for each in (")", child, "(")]
    text = "".join(words)
    return b"* THREAD" + (b" " + text.encode("ascii") if text else b"") + b"\r\n"
