"""The plan of a change: the difference between the stored accounts and an accounts file, and what must not be. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from services.admin.accounts.conflicts import find_conflicts
from services.admin.accounts.errors import AccountProblem, AccountsError, Kind
from services.admin.accounts.file_format import AccountsFile, ExternalFields, LocalFields, ServerFields, SmtpFields
from services.admin.accounts.passwords import is_weak
from services.admin.accounts.provider_presets import preset_for_hosts
from services.admin.accounts.renaming import find_renamed, follow_renamed
from services.admin.accounts.token_users import find_token_problems
from services.admin.suggestions import say_unknown
from shared.mime.display_names import normalise
from shared.model import External, ImapServer, Issuer, Local, OAuth, Relay, Server, Tls, compared_host
from shared.net.http_client import place_of
from shared.provider.oauth import known_issuer

Account = TypeVar("Account", External, Local)
NO_PASSWORD = "is missing, and none is stored"
"""What is wrong with a new account without a password."""
_SUGGESTED = 20
"""Limits the wrong addresses for which similar known ones are suggested: addresses."""


@dataclass(frozen=True, slots=True)
class AccountsPlan:
    """The steps of a change, in the order in which they are executed."""

    save_externals: list[tuple[ExternalFields, External | None]]  # with the stored account, if there is one
    remove_locals: list[Local]
    save_locals: list[tuple[LocalFields, Local | None]]  # with the stored account, if there is one
    remove_externals: list[External]

    @property
    def renamed_externals(self) -> dict[str, str]:
        """The new addresses of external accounts, by their folded former ones."""
        return {
            old.address.casefold(): entry.address
            for entry, old in self.save_externals
            if old is not None and old.address.casefold() != entry.address.casefold()
        }


def plan_changes(
    wanted: AccountsFile, externals: Sequence[External], people: Sequence[Local], prune: bool
) -> AccountsPlan:
    """Compare an accounts file with the stored accounts.

    :param prune: remove the stored accounts that the file does not name.
    :raises AccountsError: with all problems: those of the file, and where the accounts together break a rule.
    """
    stored_externals = {external.address.casefold(): external for external in externals}
    stored_locals = {person.address.casefold(): person for person in people}
    renamed_externals, external_problems = find_renamed("external", wanted.external_accounts, stored_externals)
    renamed_locals, local_problems = find_renamed("local", wanted.local_accounts, stored_locals)
    known_externals, known_locals = stored_externals | renamed_externals, stored_locals | renamed_locals
    plan = AccountsPlan(
        [(entry, known_externals.get(entry.address.casefold())) for entry in wanted.external_accounts],
        _not_named(stored_locals, renamed_locals, wanted.local_accounts, wanted.refused["local"]) if prune else [],
        [(entry, known_locals.get(entry.address.casefold())) for entry in wanted.local_accounts],
        _not_named(stored_externals, renamed_externals, wanted.external_accounts, wanted.refused["external"])
        if prune
        else [],
    )
    problems = [
        *wanted.problems,
        *external_problems,
        *local_problems,
        *_find_repeated(wanted),
        *_find_without_password(plan),
        *find_token_problems(expected_accounts(plan, externals, people)[0], *_externals_of(wanted)),
        *_find_unknown_externals(plan, stored_externals, wanted.refused["external"]),
        *_find_unknown_delegates(plan, stored_locals, wanted.refused["local"]),
        *_find_disabled_delegates(plan, people, wanted.refused["local"]),
        *_find_filed_already(wanted.external_accounts),
        *find_conflicts(*expected_accounts(plan, externals, people), _addresses_of(wanted)),
    ]
    if problems:
        raise AccountsError(wanted.locate(problems))
    return plan


def _externals_of(wanted: AccountsFile) -> tuple[set[str], Mapping[str, str]]:
    """Return the folded addresses of the external accounts in the file: the valid ones, and the refused ones."""
    return {entry.address.casefold() for entry in wanted.external_accounts}, wanted.refused["external"]


def _addresses_of(wanted: AccountsFile) -> set[tuple[Kind, str]]:
    externals: set[tuple[Kind, str]] = {("external", entry.address.casefold()) for entry in wanted.external_accounts}
    return externals | {("local", entry.address.casefold()) for entry in wanted.local_accounts}


def expected_accounts(
    plan: AccountsPlan, externals: Sequence[External], people: Sequence[Local]
) -> tuple[list[External], list[Local]]:
    """Return the accounts as the plan will leave them, without secrets; new ones have ids below 0.

    A person whose external account does not exist is left out.
    """
    externals_after = _replace_saved(
        externals,
        plan.remove_externals,
        [
            build_external(entry, old, b"", build_oauth(entry), old.id if old else -1 - position)
            for position, (entry, old) in enumerate(plan.save_externals)
        ],
    )
    externals_after = follow_renamed(externals_after, plan.renamed_externals)
    external_ids = {external.address.casefold(): external.id for external in externals_after}
    people_after = _replace_saved(
        people,
        plan.remove_locals,
        [
            replace(build_local(entry, old, external_ids[entry.external.casefold()], ""), id=old.id if old else -1 - at)
            for at, (entry, old) in enumerate(plan.save_locals)
            if entry.external.casefold() in external_ids
        ],
    )
    ids = {person.address.casefold(): person.id for person in people_after}
    delegates = {entry.address.casefold(): ids.get((entry.delegate or "").casefold()) for entry, _ in plan.save_locals}
    return externals_after, [
        replace(person, delegate_id=delegates.get(person.address.casefold(), person.delegate_id))
        for person in people_after
    ]


def _replace_saved(stored: Iterable[Account], removed: Iterable[Account], saved: Sequence[Account]) -> list[Account]:
    """Return the stored accounts without the removed ones; a saved one replaces that of its id."""
    after = {account.id: account for account in stored}
    for account in removed:
        del after[account.id]
    for account in saved:
        after[account.id] = account
    return list(after.values())


def _not_named(
    stored: Mapping[str, Account],
    renamed: Mapping[str, Account],
    entries: Iterable[ExternalFields | LocalFields],
    refused: Collection[str],
) -> list[Account]:
    named = {entry.address.casefold() for entry in entries} | set(refused)
    named |= {account.address.casefold() for account in renamed.values()}
    return [account for key, account in stored.items() if key not in named]


def _find_repeated(wanted: AccountsFile) -> list[AccountProblem]:
    problems = []
    groups: Sequence[tuple[Kind, Sequence[ExternalFields | LocalFields]]] = (
        ("external", wanted.external_accounts),
        ("local", wanted.local_accounts),
    )
    for kind, entries in groups:
        seen: set[str] = set()
        for entry in entries:
            if entry.address.casefold() in seen:
                problems.append(
                    AccountProblem(
                        "is given twice", kind, address=entry.address, field=("address",), value=repr(entry.address)
                    )
                )
            seen.add(entry.address.casefold())
    return problems


def _find_without_password(plan: AccountsPlan) -> list[AccountProblem]:
    problems = [problem for entry, old in plan.save_externals for problem in find_secret_problems(entry, old)]
    return problems + [
        AccountProblem(NO_PASSWORD, "local", address=person.address, field=("password",))
        for person, old in plan.save_locals
        if old is None and not (person.password or person.password_hash)
    ]


def _find_filed_already(entries: Iterable[ExternalFields]) -> list[AccountProblem]:
    """Find accounts whose provider files sent mail itself: every mail would be there twice, until the copy is found."""
    words = "this provider puts sent mail into its folder itself; leave it off"
    return [
        AccountProblem(words, "external", address=entry.address, field=("imap", "sent"), value=repr(entry.imap.sent))
        for entry in entries
        if entry.imap is not None
        and entry.imap.sent is not False
        and (preset := preset_for_hosts(entry.imap.host, entry.relays[0].host)) is not None
        and preset.files_sent
    ]


def find_secret_problems(wanted: ExternalFields, old: External | None) -> list[AccountProblem]:
    """Return why passwords have to be given, of the account and its relays; nothing if the stored ones may be used."""
    found = [find_password_problem(wanted, old)]
    found += [_find_relay_problem(wanted, position, old) for position in range(len(wanted.relays))]
    return [problem for problem in found if problem is not None]


def _find_relay_problem(wanted: ExternalFields, position: int, old: External | None) -> AccountProblem | None:
    """As ``find_password_problem`` for a relay with a login of its own. SECURITY: likewise."""
    relay = wanted.relays[position]
    if (
        relay.login is None
        or relay.oauth is not None
        or relay.password is not None
        or find_stored_relay(relay, old) is not None
    ):
        return None
    words = on_page = ""
    if old is not None and position < len(old.relays) and old.relays[position].login is not None:
        change = f"{old.relays[position].server.host} -> {relay.host}"
        words = "has to be given again, because the stored one is for another server"
        words, on_page = f"{words} (smtp.host {change})", f"{words} ({change})"
    return AccountProblem(
        words or NO_PASSWORD,
        "external",
        address=wanted.address,
        field=wanted.relay_field(position, "password"),
        on_page=on_page,
    )


def find_stored_relay(wanted: SmtpFields, old: External | None) -> Relay | None:
    """Return the stored relay whose own password may be kept: given for this host, if possible for this login."""
    stored = [
        relay
        for relay in (old.relays if old is not None else ())
        if relay.password is not None and compared_host(relay.server.host) == compared_host(wanted.host)
    ]
    same = [relay for relay in stored if relay.login == wanted.login]
    return next(iter(same or stored), None)


def find_password_problem(wanted: ExternalFields, old: External | None) -> AccountProblem | None:
    """Return why a password has to be given; None if the stored one may be used, or access tokens are.

    SECURITY. A password is sent only to the servers that it was given for: else everyone who may change an account
    could send the password to a server of their own.
    """
    if wanted.password is not None:
        return None
    field = "password"
    if wanted.oauth is not None:
        needs_one = wanted.oauth.same_as is None and wanted.oauth.grant != "authorization"
        if not needs_one or wanted.oauth.client_secret is not None or wanted.oauth.client_key is not None:
            return None
        field = "oauth.client_key" if wanted.oauth.grant == "jwt_bearer" else "oauth.client_secret"
    stored = old is not None and (old.oauth is None if wanted.oauth is None else _has_secret(wanted, old.oauth))
    if old is None or not stored:
        return AccountProblem(NO_PASSWORD, "external", address=wanted.address, field=tuple(field.split(".")))
    changes = changed_hosts(wanted, old) + _changed_endpoint(wanted, old)
    if changes:
        words = "has to be given again, because the stored one is for another server"
        return AccountProblem(
            f"{words} ({', '.join(f'{name} {was} -> {new}' for name, was, new in changes)})",
            "external",
            address=wanted.address,
            field=tuple(field.split(".")),
            on_page=f"{words} ({', '.join(f'{was} -> {new}' for _, was, new in changes)})",
        )
    return None


def _has_secret(wanted: ExternalFields, old: OAuth | None) -> bool:
    """Whether a secret or key of the application is stored that the grant can use: another grant may have had none."""
    return (
        old is not None
        and wanted.oauth is not None
        and (old.grant, old.client_id)
        == (
            wanted.oauth.grant,
            wanted.oauth.client_id,
        )
    )


def _changed_endpoint(wanted: ExternalFields, old: External) -> list[tuple[str, str, str]]:
    """Return the change of the server that gets the application's secret, as ``changed_hosts``."""
    new = build_oauth(wanted)
    if new is None or old.oauth is None or keeps_client(new, old.oauth):
        return []
    return [("token_url", place_of(old.oauth.issuer.token_url), place_of(new.issuer.token_url))]


def keeps_client(new: OAuth, old: OAuth) -> bool:
    """Return whether the stored secret of the application is still for this application and this token endpoint.

    SECURITY. As for a password: another host gets it only if it is given again.
    """
    return new.same_as is old.same_as is None and (new.client_id, place_of(new.issuer.token_url)) == (
        old.client_id,
        place_of(old.issuer.token_url),
    )


def changed_hosts(wanted: ExternalFields, old: External) -> list[tuple[str, str, str]]:
    """Return the servers that the account's password would be sent to, and was not given for: the field, the stored
    host and the new one."""
    hosts = [(f"{wanted.protocol}.host", old.incoming.host, wanted.incoming.host)]
    for position, relay in enumerate(wanted.relays):
        if relay.login is None and compared_host(relay.host) not in old.hosts:
            name = f"smtp[{position}].host" if position else "smtp.host"
            was = old.relays[position].server.host if position < len(old.relays) else "none"
            own = position < len(old.relays) and old.relays[position].login is not None
            hosts.append((name, f"{was}, with another login" if own else was, relay.host))
    return [(name, was, new) for name, was, new in hosts if compared_host(was) != compared_host(new)]


def _find_unknown_externals(
    plan: AccountsPlan, externals: Mapping[str, External], refused: dict[str, str]
) -> list[AccountProblem]:
    leaving = {external.address.casefold() for external in plan.remove_externals} | set(plan.renamed_externals)
    addresses = {key: external.address for key, external in externals.items() if key not in leaving}
    addresses |= refused | {entry.address.casefold(): entry.address for entry, _ in plan.save_externals}
    unknown = [person for person, _ in plan.save_locals if person.external.casefold() not in addresses]
    return [
        _find_unknown(person, "external", person.external, addresses.values(), position)
        for position, person in enumerate(unknown)
    ]


def _find_unknown_delegates(
    plan: AccountsPlan, people: Mapping[str, Local], refused: dict[str, str]
) -> list[AccountProblem]:
    leaving = {person.address.casefold() for person in plan.remove_locals}
    leaving |= {old.address.casefold() for _, old in plan.save_locals if old is not None}  # named by the entries below
    addresses = {key: person.address for key, person in people.items() if key not in leaving}
    addresses |= refused | {entry.address.casefold(): entry.address for entry, _ in plan.save_locals}
    unknown = [
        (person, person.delegate)
        for person, _ in plan.save_locals
        if person.delegate is not None and person.delegate.casefold() not in addresses
    ]
    return [
        _find_unknown(person, "delegate", delegate, addresses.values(), position)
        for position, (person, delegate) in enumerate(unknown)
    ]


def _find_disabled_delegates(
    plan: AccountsPlan, people: Sequence[Local], refused: Collection[str]
) -> list[AccountProblem]:
    """Find new delegates who get no mail. One who was disabled later stays, so that an exported file can be applied."""
    stored = {person.id: person.address.casefold() for person in people}
    disabled = {person.address.casefold() for person in people if not person.enabled}
    disabled -= {*refused, *(person.address.casefold() for person in plan.remove_locals)}
    disabled -= {entry.address.casefold() for entry, _ in plan.save_locals}
    disabled |= {entry.address.casefold() for entry, _ in plan.save_locals if not entry.enabled}
    words = "is disabled and gets no mail; enable it first, or name another colleague"
    return [
        AccountProblem(words, "local", address=entry.address, field=("delegate",), value=repr(entry.delegate))
        for entry, old in plan.save_locals
        if entry.delegate is not None
        and entry.delegate.casefold() in disabled
        and (old is None or stored.get(old.delegate_id or 0) != entry.delegate.casefold())
    ]


def _find_unknown(person: LocalFields, name: str, given: str, known: Collection[str], position: int) -> AccountProblem:
    kind = "external" if name == "external" else "local"
    # Ten thousand wrong addresses would be compared with ten thousand known ones.
    suggestion = say_unknown(given, known) if position < _SUGGESTED else ""
    return AccountProblem(
        f"there is no such {kind} account{suggestion}",
        "local",
        address=person.address,
        field=(name,),
        value=repr(given),
    )


# ---------------------------------------------------------------------------------------------- one account


def build_oauth(wanted: ExternalFields) -> OAuth | None:
    """Return the OAuth settings of the fields; None if there are none."""
    given = wanted.oauth
    if given is None:
        return None
    if given.same_as is not None:
        return OAuth.of_account(given.same_as)
    assert given.issuer is not None and given.client_id is not None, "oauth_rules has checked that"
    if isinstance(given.issuer, str):
        issuer = known_issuer(given.issuer, wanted.protocol, given.grant, given.tenant)
        return OAuth(given.issuer, issuer, given.client_id, given.grant, given.tenant)
    fields = given.issuer
    issuer = Issuer(fields.token_url, fields.scope, fields.device_url, fields.authorize_url)
    return OAuth("", issuer, given.client_id, given.grant)


def build_external(
    wanted: ExternalFields,
    old: External | None,
    secret: bytes,
    oauth: OAuth | None,
    account_id: int,
    relay_secrets: Sequence[bytes] = (),
) -> External:
    """Return the external account with these fields. :param old: as it is stored; ``hold`` is kept if it is not given.

    :param secret: sealed. :param account_id: 0 for a new account. :param relay_secrets: sealed, one for each relay.
    """
    assert wanted.login is not None
    pop3, imap = wanted.pop3, wanted.imap
    return External(
        account_id,
        wanted.address,
        wanted.enabled,
        wanted.login,
        secret,
        None if pop3 is None else Server(*_place_of(pop3)),
        tuple(
            Relay(
                Server(*_place_of(relay)),
                relay.auth,
                relay.connections,
                relay.login,
                None if relay.login is None or relay.oauth is not None else secret,
                None if relay.oauth is None else relay.oauth.same_as,
                relay.mails_per_minute,
                relay.recipients_per_day,
                position,
            )
            for position, (relay, secret) in enumerate(
                zip(wanted.relays, relay_secrets or [b""] * len(wanted.relays), strict=True)
            )
        ),
        wanted.poll_seconds,
        wanted.history,
        wanted.delete_after_days,
        wanted.delete_history,
        wanted.reply_to_author,
        tuple(wanted.aliases),
        oauth,
        answer_notes=wanted.answer_notes,
        reply_tag=wanted.reply_tag,
        hold=wanted.hold if wanted.hold is not None else old is not None and old.hold,
        imap=None
        if imap is None
        else ImapServer(
            *_place_of(imap), folders=tuple(imap.folders), answered=imap.answered, sent=_sent_folder(imap.sent)
        ),
    )


def _sent_folder(given: bool | str) -> str | None:
    """Return ``ImapServer.sent`` for the field of the accounts file."""
    return given if isinstance(given, str) else "" if given else None


def _place_of(server: ServerFields) -> tuple[str, int, Tls, str | None]:
    """Return the fields of a ``Server``."""
    assert server.port is not None, "the model has set the default"
    return server.host, server.port, server.tls, server.tls_fingerprint


def build_local(wanted: LocalFields, old: Local | None, external_id: int, password_hash: str) -> Local:
    """Return the local account with these fields. :param old: as it is stored; its id, delegate and names are kept."""
    former = _former_names(old, wanted.user_name)
    # An exported file lists former names among the aliases, the one that is used again too.
    known = {normalise(name) for name in (wanted.user_name, *former)}
    return Local(
        old.id if old else 0,
        wanted.address,
        wanted.enabled,
        password_hash,
        wanted.user_name,
        tuple(name for name in wanted.aliases if normalise(name) not in known),
        tuple(wanted.addresses),
        external_id,
        old.delegate_id if old else None,
        former,
        _is_weak(wanted, old),
        wanted.junk,
        wanted.language if old is None or "language" in wanted.model_fields_set else old.language,
    )


def _is_weak(wanted: LocalFields, old: Local | None) -> bool:
    """Return whether the password is weak, as far as it is known: a new hash does not show it."""
    if wanted.password is not None:
        return is_weak(wanted.password)
    kept = old is not None and wanted.password_hash in (None, old.password_hash)
    return kept and old is not None and old.weak_password


def _former_names(old: Local | None, user_name: str) -> tuple[str, ...]:
    """Return the earlier names of a person, which customers still write to, without the present one."""
    if old is None:
        return ()
    names = {normalise(name): name for name in (*old.former_names, old.user_name)}
    names.pop(normalise(user_name), None)
    return tuple(names.values())
