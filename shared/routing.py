"""Decides who gets a mail of an external account (the manual's chapter 3). Pure functions.

``read_facts`` extracts from the header all that the rules need, ``referenced_ids`` names the mails whose authors are
needed, ``decide`` applies the five rules. A mail with an unreadable header goes to everyone. A mail is held only if no
user who shares the account is enabled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shared.mime import bounces
from shared.mime.addresses import fold_address
from shared.mime.display_names import normalise
from shared.mime.headers import Mailbox, by_name, mailboxes, message_ids
from shared.model import External, Local, Sent

HEAD_OCTETS = 256 * 1024
"""Octets of a mail that are read."""
ADDRESS_OCTETS = 64 * 1024
"""Longest From, To and Cc together: octets, some 1,000 mailboxes; with more, everyone gets the mail."""
NEWEST_REFERENCES = 200
"""Message-IDs of References that are used: the newest."""
IDS = 20
"""Message-IDs that are used of each other field."""
SHOWN = 60
"""Characters of an untrusted text in a reason."""


# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """The facts about a mail that the rules need. Message-IDs are without angle brackets."""

    readable: bool = True  # False if parsing failed; all other fields are then empty
    to: tuple[Mailbox, ...] = ()
    cc: tuple[Mailbox, ...] = ()
    from_: tuple[Mailbox, ...] = ()
    message_id: str | None = None
    original_ids: tuple[str, ...] = ()  # Google and Microsoft keep them here when they replace the Message-ID
    in_reply_to: tuple[str, ...] = ()
    references: tuple[str, ...] = ()  # oldest first
    is_notice: bool = False
    reported: tuple[str, ...] = ()  # the mails that a notice refers to
    has_transit: bool = False  # a field shows a delivery, a forwarding or a mailing list
    hops: int = 0  # servers that have relayed the mail (RFC 5321 section 6.3)


def read_facts(head: bytes) -> HeaderFacts:
    """Read the facts from the first 256 KiB of a mail. Never raises; the time is proportional to the length."""
    try:
        return _read(head[:HEAD_OCTETS])
    except Exception:  # untrusted input: with any error in the header, everyone gets the mail
        return HeaderFacts(readable=False)


def _read(head: bytes) -> HeaderFacts:
    header = by_name(head)

    if sum(len(value) for name in ("from", "to", "cc") for value in header.get(name, [])) > ADDRESS_OCTETS:
        raise ValueError("too many addresses")

    def people(name: str) -> tuple[Mailbox, ...]:
        return tuple(mailbox for value in header.get(name, []) for mailbox in mailboxes(value))

    def ids(*names: str) -> tuple[str, ...]:
        return tuple(found for name in names for value in header.get(name, []) for found in message_ids(value))

    is_notice = bounces.is_notice(header)
    return HeaderFacts(
        to=people("to"),
        cc=people("cc"),
        from_=people("from"),
        message_id=next(iter(ids("message-id")), None),
        original_ids=ids("x-google-original-message-id", "x-microsoft-original-message-id")[:IDS],
        in_reply_to=ids("in-reply-to")[:IDS],
        references=ids("references")[-NEWEST_REFERENCES:],
        is_notice=is_notice,
        reported=tuple(bounces.reported_ids(head)) if is_notice else (),
        has_transit=any(name == "delivered-to" or name.startswith(("list-", "resent-")) for name in header),
        hops=len(header.get("received", [])),
    )


def referenced_ids(facts: HeaderFacts) -> set[str]:
    """Return the Message-IDs whose authors ``decide`` needs, at most a few hundred."""
    own = {facts.message_id} if facts.message_id else set()
    return own | {*facts.original_ids, *facts.in_reply_to, *facts.references, *facts.reported}


# ---------------------------------------------------------------------------------------------- deciding


@dataclass(frozen=True, slots=True)
class RoutedRecipient:
    """A local account that gets a copy. reason: an English sentence without full stop. rule: 1 to 5."""

    local_id: int
    reason: str
    rule: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The recipients of a mail, and the rule that chose them."""

    recipients: tuple[RoutedRecipient, ...]
    rule: int
    reason: str
    held: bool = False  # no user is enabled
    own_copy: bool = False  # a copy of a mail that we sent: only its author gets it, as deleted mail
    copy_of: str | None = None  # the Message-ID by which we know that mail
    further_id: str | None = None  # a new Message-ID from the provider, to be recorded for that author


@dataclass(frozen=True, slots=True)
class _Choice:
    """The result of one rule. people: the chosen accounts, with the reason.

    besides: additional recipients. If one of them is disabled, only the delegate replaces this account: the mail has
    other readers.
    """

    rule: int
    people: tuple[tuple[Local, str], ...]
    besides: tuple[tuple[Local, str], ...] = ()


def decide(
    facts: HeaderFacts,
    external: External,
    sharers: Sequence[Local],
    known: Mapping[str, Sequence[Sent]],
    source: str = "fetched",
    author_id: int | None = None,
) -> Decision:
    """Decide who gets a mail, and by which rule.

    :param sharers: the local accounts that share ``external``, enabled or not.
    :param known: the mails that we sent, by the ids of ``referenced_ids``, the earliest first.
    :param source: inbound.source: fetched, submitted or notice.
    :param author_id: the local account that wrote a submitted mail.
    """
    if source == "fetched" and (own_copy := _own_copy(facts, external, sharers, known)):
        return own_copy
    writer = author_id if source == "submitted" else None
    choice = _choose(facts, external, sharers, known, writer)
    everyone = _everyone(sharers, writer)
    if choice is None:
        why = _why_everyone(facts, external) + (
            ", so everyone else who shares it gets it"
            if any(local.id == writer for local in sharers) and all(local.id != writer for local in everyone)
            else ", so everyone who shares it gets it"
        )
        choice = _Choice(5, tuple((local, why) for local in everyone))
    else:
        why = _join([reason for _, reason in (*choice.people, *choice.besides)])
    recipients = _recipients(choice, sharers, everyone)
    if not recipients:
        return Decision((), choice.rule, f"held: nobody who shares {external.address} is enabled", held=True)
    return Decision(recipients, choice.rule, why)


def _choose(
    facts: HeaderFacts,
    external: External,
    sharers: Sequence[Local],
    known: Mapping[str, Sequence[Sent]],
    writer: int | None,
) -> _Choice | None:
    """Return the choice of the first rule, 1 to 4, that applies; None for rule 5.

    :param writer: the author of a submitted mail, who does not count as the author of the mails that it answers.
    """

    def author(ids: Iterable[str]) -> Local | None:
        return _author(ids, external, sharers, known, writer)

    answered: Local | None = None
    if external.reply_to_author:
        answered = author([*facts.in_reply_to, *reversed(facts.references)])
    to, cc = _candidates(facts.to, external), _candidates(facts.cc, external)
    named = _named(to, "To", sharers)
    if named:
        also = _named(cc, "Cc", sharers)
        people = {local.id: (local, reason) for local, reason in (*also, *named)}  # the reason from To has precedence
        extra = (
            ((answered, f"{answered.user_name} wrote the mail that it answers"),)
            if (answered and answered.id not in people)
            else ()
        )
        return _Choice(1, tuple(people.values()), extra)
    if not to and (named := _named(cc, "Cc", sharers)):
        return _Choice(2, named)
    if answered:
        return _Choice(3, ((answered, f"it answers a mail that {answered.user_name} wrote"),))
    if facts.is_notice and (subject := author([*facts.reported, *facts.in_reply_to, *reversed(facts.references)])):
        return _Choice(4, ((subject, f"it reports on a mail that {subject.user_name} wrote"),))
    return None


def _candidates(people: Sequence[Mailbox], external: External) -> list[Mailbox]:
    """Return the mailboxes with the account's address or an alias; a ``+tag`` is tolerated."""
    is_own = _matcher(external)
    return [mailbox for mailbox in people if is_own(mailbox.address)]


def _matcher(external: External) -> Callable[[str], bool]:
    own = _folded((external.address, *external.aliases))

    def is_own(address: str) -> bool:
        local, _, domain = fold_address(address).rpartition("@")
        return any(
            domain == own_domain and (local == own_local or local.startswith(own_local + "+"))
            for own_local, _, own_domain in own
        )

    return is_own


@lru_cache(2000)
def _folded(addresses: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Split the folded addresses of an account; cached, because every mail needs them several times."""
    return [fold_address(address).rpartition("@") for address in addresses]


def _named(candidates: Sequence[Mailbox], field: str, sharers: Sequence[Local]) -> tuple[tuple[Local, str], ...]:
    """Return the sharers that these mailboxes name, each once, in the order of the sharers."""
    written = {normalise(mailbox.name): mailbox.name for mailbox in reversed(candidates) if mailbox.name}
    if not written:
        return ()
    named = []
    for local in sharers:
        names = [normalise(name) for name in local.names]
        match = next((name for name in names if name and name in written), None)
        if match is not None:
            former = "" if match == names[0] else f" as {_shown(written[match])}"
            named.append((local, f"{field} names {local.user_name}{former}"))
    return tuple(named)


def _author(
    ids: Iterable[str],
    external: External,
    sharers: Sequence[Local],
    known: Mapping[str, Sequence[Sent]],
    writer: int | None,
) -> Local | None:
    """Return the author of the first of these mails whose author shares the account now.

    An id belongs to its first author: of the mails sent through this account, otherwise through any account.
    """
    people = {local.id: local for local in sharers if local.id != writer}
    for message_id in ids:
        sent = known.get(message_id, ())
        first = next((mail for mail in sent if mail.external_id == external.id), sent[0] if sent else None)
        if first and first.author_id in people:
            return people[first.author_id]
    return None


def _everyone(sharers: Sequence[Local], writer: int | None) -> list[Local]:
    """Return all enabled sharers except the author of a submitted mail; the author if there is no other."""
    enabled = [local for local in sharers if local.enabled]
    return [local for local in enabled if local.id != writer] or enabled


def _recipients(choice: _Choice, sharers: Sequence[Local], everyone: Sequence[Local]) -> tuple[RoutedRecipient, ...]:
    """Return the enabled accounts of a choice, each once.

    A disabled account is replaced by its delegate (enabled, shares the account; one hop), otherwise by all other
    sharers. A reason of an account's own has precedence.
    """
    people = {local.id: local for local in sharers}
    reasons = {local.id: why for local, why in (*choice.people, *choice.besides) if local.enabled}
    for local, why in (*choice.people, *choice.besides):
        if local.enabled:
            continue
        delegate = people.get(local.delegate_id or 0)
        if delegate and delegate.enabled:
            reasons.setdefault(delegate.id, f"{why}; {local.user_name} is disabled, the delegate gets it")
        elif (local, why) in choice.people:
            for other in everyone:
                reasons.setdefault(
                    other.id, f"{why}; {local.user_name} is disabled and has no delegate, so the others get it"
                )
    return tuple(RoutedRecipient(local.id, reasons[local.id], choice.rule) for local in sharers if local.id in reasons)


def _own_copy(
    facts: HeaderFacts, external: External, sharers: Sequence[Local], known: Mapping[str, Sequence[Sent]]
) -> Decision | None:
    """Decide about a mail that we relayed and its provider lists again (Gmail's ``recent:`` mode); None for others.

    Any sign that the mail was sent to this account makes it an ordinary mail.
    """
    is_own = _matcher(external)
    if not facts.from_ or not all(is_own(mailbox.address) for mailbox in facts.from_):
        return None
    if facts.has_transit or any(is_own(mailbox.address) for mailbox in (*facts.to, *facts.cc)):
        return None
    people = {local.id: local for local in sharers}
    for message_id in ([facts.message_id] if facts.message_id else []) + [*facts.original_ids]:
        sent = [mail for mail in known.get(message_id, ()) if mail.external_id == external.id]
        if not sent or sent[0].author_id not in people:
            continue
        if any(is_own(address) for mail in sent for address in mail.recipients):
            return None
        author = people[sent[0].author_id]
        further = facts.message_id if facts.message_id and facts.message_id not in known else None
        reason = f"it is a copy of what {author.user_name} sent through {external.address}; kept as deleted mail"
        return Decision(
            (RoutedRecipient(author.id, reason, 3),), 3, reason, own_copy=True, copy_of=message_id, further_id=further
        )
    return None


# ---------------------------------------------------------------------------------------------- reasons


def _why_everyone(facts: HeaderFacts, external: External) -> str:
    if not facts.readable:
        return "the header cannot be read"
    for field, people in (("To", facts.to), ("Cc", facts.cc)):
        candidates = _candidates(people, external)
        if candidates:
            unknown = [mailbox.name for mailbox in candidates if mailbox.name and not _is_address(mailbox, external)]
            if unknown:
                return f"{field} names {_shown(unknown[0])}, which is nobody's name here"
            return f"{field} names nobody"
    return f"{external.address} is in neither To nor Cc"


def unknown_names(facts: HeaderFacts, external: External, sharers: Sequence[Local]) -> list[str]:
    """Return the names at the account's address in To and Cc that no sharer has; as written, each once."""
    known = {normalise(name) for person in sharers for name in person.names}
    unknown: dict[str, str] = {}
    for mailbox in _candidates((*facts.to, *facts.cc), external):
        name = normalise(mailbox.name or "")
        if name and name not in known and not _is_address(mailbox, external):
            unknown[name] = mailbox.name or ""
    return list(unknown.values())


def _is_address(mailbox: Mailbox, external: External) -> bool:
    """Whether the name only repeats the address or its local part."""
    name = normalise(mailbox.name or "").strip("<>").removeprefix("mailto:")
    addresses = [normalise(address) for address in (mailbox.address, external.address, *external.aliases)]
    return name in addresses or name in [address.rpartition("@")[0] for address in addresses]


def _shown(text: str) -> str:
    """Quote an untrusted text for a reason: printable and short."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 10 * SHOWN]).split())
    return f'"{text[:SHOWN]}{"…" if len(text) > SHOWN else ""}"'


def _join(reasons: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(reasons))
