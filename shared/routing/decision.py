"""Decides by the five rules who gets a mail, from its facts (``facts.py``). Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shared.mime.display_names import normalise
from shared.mime.provider_ids import sent_key
from shared.mime.reply_tags import author_of
from shared.model import External, FoundBy, Local, Sent
from shared.routing.facts import AddressedNames, HeaderFacts

SHOWN = 60
"""Characters of an untrusted text in a reason."""


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
    held: bool = False  # no user is enabled, or the account is not started
    found_by: FoundBy | None = None  # None: the mail is no answer
    own_copy: bool = False  # a copy of a mail that we sent: only its author gets it, as deleted mail


@dataclass(frozen=True, slots=True)
class _Choice:
    """The result of one rule. people: the chosen accounts, with the reason.

    besides: additional recipients. If one of them is disabled, only the delegate replaces this account: the mail has
    other readers.
    """

    rule: int
    people: tuple[tuple[Local, str], ...]
    besides: tuple[tuple[Local, str], ...] = ()
    found_by: FoundBy | None = None


def decide(
    facts: HeaderFacts,
    external: External,
    sharers: Sequence[Local],
    known: Mapping[str, Sequence[Sent]],
    source: str = "fetched",
    author_id: int | None = None,
    tag_keys: Sequence[bytes] = (),
) -> Decision:
    """Decide who gets a mail that is no own copy, and by which rule.

    :param sharers: the local accounts that share ``external``, enabled or not.
    :param known: the mails that we sent, by the ids of ``referenced_ids``, the earliest first.
    :param source: inbound.source: fetched, submitted or notice.
    :param author_id: the local account that wrote a submitted mail. :param tag_keys: verify reply tags.

    An account that is not started (``hold``) holds every mail: its first user is not to get what is for the others.
    """
    writer = author_id if source == "submitted" else None
    choice = _choose(facts, external, sharers, known, writer, tag_keys)
    everyone = _everyone(sharers, writer)
    if choice is None:
        why = _why_everyone(facts, external) + (
            ", so everyone else who shares it gets it"
            if any(local.id == writer for local in sharers) and all(local.id != writer for local in everyone)
            else ", so everyone who shares it gets it"
        )
        choice = _Choice(5, tuple((local, why) for local in everyone), found_by="nobody" if _answers(facts) else None)
    else:
        why = _join([reason for _, reason in (*choice.people, *choice.besides)])
    if external.hold:
        return Decision((), choice.rule, f"held: {external.address} is not started yet", held=True)
    recipients = _recipients(choice, sharers, everyone)
    if not recipients:
        return Decision((), choice.rule, f"held: nobody who shares {external.address} is enabled", held=True)
    return Decision(recipients, choice.rule, why, found_by=choice.found_by)


def _answers(facts: HeaderFacts) -> bool:
    """Whether a mail without a known name is an answer to some mail, or a notice about one."""
    return facts.is_notice or bool(facts.in_reply_to or facts.references)


def _choose(
    facts: HeaderFacts,
    external: External,
    sharers: Sequence[Local],
    known: Mapping[str, Sequence[Sent]],
    writer: int | None,
    tag_keys: Sequence[bytes],
) -> _Choice | None:
    """Return the choice of the first rule, 1 to 4, that applies; None for rule 5.

    :param writer: the author of a submitted mail, who does not count as the author of the mails that it answers.
    """

    if facts.problem:
        return None

    def author(ids: Iterable[str]) -> Local | None:
        return _author(ids, external, sharers, known, writer)

    tagged = answered = None
    if external.reply_to_author:
        tagged = _tagged(facts, external, sharers, writer, tag_keys)
        answered = tagged or author([*facts.in_reply_to, *reversed(facts.references)])
    named = _named(facts.to, "To", sharers)
    if named:
        also = _named(facts.cc, "Cc", sharers)
        people = {local.id: (local, reason) for local, reason in (*also, *named)}  # the reason from To has precedence
        extra = (
            ((answered, _why_tagged(answered) if tagged else f"{answered.user_name} wrote the mail that it answers"),)
            if answered and answered.id not in people
            else ()
        )
        return _Choice(1, tuple(people.values()), extra, "name")
    if not facts.to.found and (named := _named(facts.cc, "Cc", sharers)):
        return _Choice(2, named, found_by="name")
    if answered:
        why = _why_tagged(answered) if tagged else f"it answers a mail that {answered.user_name} wrote"
        return _Choice(3, ((answered, why),), found_by="tag" if tagged else "reference")
    if facts.is_notice and (subject := author([*facts.reported, *facts.in_reply_to, *reversed(facts.references)])):
        return _Choice(4, ((subject, f"it reports on a mail that {subject.user_name} wrote"),), found_by="report")
    return None


def _named(addressed: AddressedNames, field: str, sharers: Sequence[Local]) -> tuple[tuple[Local, str], ...]:
    """Return the sharers whom the names of a field mean, each once, in the order of the sharers."""
    if not addressed.names:
        return ()
    known = _names_of(sharers)
    written = {name.meant(known): name.written for name in addressed.names}
    named = []
    for local in sharers:
        names = [normalise(name) for name in local.names]
        match = next((name for name in names if name and name in written), None)
        if match is not None:
            former = "" if match == names[0] else f" as {_shown(written[match])}"
            named.append((local, f"{field} names {local.user_name}{former}"))
    return tuple(named)


def _names_of(sharers: Sequence[Local]) -> set[str]:
    return {normalise(name) for local in sharers for name in local.names}


def _tagged(
    facts: HeaderFacts,
    external: External,
    sharers: Sequence[Local],
    writer: int | None,
    keys: Sequence[bytes],
) -> Local | None:
    """Return the person whom the first valid reply tag names; a person who shares the account now."""
    people = {local.id: local for local in sharers if local.id != writer}
    for tag in (*facts.to.tags, *facts.cc.tags):
        if (person := people.get(author_of(tag, external.id, keys) or 0)) is not None:
            return person
    return None


def _why_tagged(person: Local) -> str:
    return f"it is addressed to the reply tag of {person.user_name}"


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
        sent = known.get(sent_key(message_id), ())
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


# ---------------------------------------------------------------------------------------------- reasons


def _why_everyone(facts: HeaderFacts, external: External) -> str:
    if facts.problem:
        return facts.problem
    for field, addressed in (("To", facts.to), ("Cc", facts.cc)):
        if addressed.found:
            unknown = [name.written for name in addressed.names if not name.repeats_address]
            if unknown:
                return f"{field} names {_shown(unknown[0])}, which is nobody's name here"
            return f"{field} names nobody"
    return f"{external.address} is in neither To nor Cc"


def unknown_names(facts: HeaderFacts, sharers: Sequence[Local]) -> list[str]:
    """Return the names at the account's address in To and Cc that no sharer has; as written, each once."""
    known = _names_of(sharers)
    unknown: dict[str, str] = {}
    for name in (*facts.to.names, *facts.cc.names):
        meant = name.meant(known)
        if meant and meant not in known and not name.repeats_address:
            unknown[meant] = name.written
    return list(unknown.values())


def _shown(text: str) -> str:
    """Quote an untrusted text for a reason: printable and short."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 10 * SHOWN]).split())
    return f'"{text[:SHOWN]}{"…" if len(text) > SHOWN else ""}"'


def _join(reasons: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(reasons))
