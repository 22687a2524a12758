"""Accounts in the form of the accounts file, without passwords: to export, to show, and to change single fields."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from ruamel.yaml import YAML

from services.admin.accounts.errors import Kind
from services.admin.suggestions import say_unknown
from shared.db.database import Connection
from shared.errors import Permanent
from shared.model import External, Local, OAuth, Relay, Server
from shared.store import accounts


async def build_document(connection: Connection) -> dict[str, Any]:
    """Return the accounts file of all accounts, without passwords."""
    externals = await accounts.load_externals(connection)
    people = await accounts.load_locals(connection)
    return {
        "external_accounts": [external_fields(account) for account in externals],
        "local_accounts": [local_fields(person, externals, people) for person in people],
    }


def external_fields(account: External) -> dict[str, Any]:
    """Return an external account as in the accounts file, without its password."""
    servers: dict[str, dict[str, Any]] = {account.protocol: _server_fields(account.incoming)}
    if account.imap is not None:
        servers["imap"]["folders"] = list(account.imap.folders)
        if account.imap.answered:
            servers["imap"]["answered"] = True
        if account.imap.sent is not None:
            servers["imap"]["sent"] = account.imap.sent or True
    sent_by = [relay_fields(relay) for relay in account.relays]
    return {
        "address": account.address,
        "enabled": account.enabled,
        "login": account.login,
        **({"oauth": _oauth_fields(account.oauth)} if account.oauth else {}),
        **servers,
        "smtp": sent_by[0] if len(sent_by) == 1 else sent_by,
        "poll_seconds": account.poll_seconds,
        "history": account.history,
        "delete_after_days": account.delete_after_days,
        "delete_history": account.delete_history,
        "reply_to_author": account.reply_to_author,
        "answer_notes": account.answer_notes,
        "reply_tag": account.reply_tag,
        "hold": account.hold,
        "aliases": list(account.aliases),
    }


def relay_fields(relay: Relay) -> dict[str, Any]:
    """Return an SMTP server as in the accounts file, without its password."""
    optional = {
        "login": relay.login,
        "oauth": None if relay.tokens_of is None else {"same_as": relay.tokens_of},
        "mails_per_minute": relay.mails_per_minute,
        "recipients_per_day": relay.recipients_per_day,
    }
    return {
        **_server_fields(relay.server),
        "auth": relay.auth,
        "connections": relay.connections,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _server_fields(server: Server) -> dict[str, Any]:
    return {
        "host": server.host,
        "port": server.port,
        "tls": server.tls,
        **({"tls_fingerprint": server.tls_fingerprint} if server.tls_fingerprint else {}),
    }


def _oauth_fields(oauth: OAuth) -> dict[str, Any]:
    if oauth.same_as is not None:
        return {"same_as": oauth.same_as}
    endpoints = {name: value for name, value in asdict(oauth.issuer).items() if value is not None}
    return {
        **({"grant": oauth.grant} if not oauth.needs_consent else {}),
        "issuer": oauth.name or endpoints,
        "client_id": oauth.client_id,
        **({"tenant": oauth.tenant} if oauth.tenant else {}),
    }


def local_fields(person: Local, externals: list[External], people: list[Local]) -> dict[str, Any]:
    """Return a local account as in the accounts file, without its password."""
    return {
        "address": person.address,
        "enabled": person.enabled,
        "user_name": person.user_name,
        "aliases": [*person.aliases, *person.former_names],
        "addresses": list(person.addresses),
        "external": next((e.address for e in externals if e.id == person.external_id), None),
        "delegate": next((p.address for p in people if p.id == person.delegate_id), None),
        "junk": person.junk,
        "language": person.language,
    }


def version_of(account: External | Local) -> str:
    """Return a text that differs for each state of an account that a person can set. Pure.

    Renewed refresh tokens and learnt limits of the provider's server change nothing.
    """
    fields = asdict(account)
    if isinstance(account, External):
        if account.oauth:
            del fields["password"]
        for relay in fields["relays"]:
            for name in ("size", "refused", "position"):
                del relay[name]
    return hashlib.sha256(json.dumps(fields, default=bytes.hex).encode()).hexdigest()[:24]


def as_yaml(document: Any) -> str:
    """Format a document as YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None in the library
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``old`` with the fields of ``new``; nested fields are merged, too."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


async def find_entry(connection: Connection, kind: Kind, address: str) -> dict[str, Any]:
    """Return the entry of an account. :raises Permanent: no account has this address."""
    entries = (await build_document(connection))[f"{kind}_accounts"]
    for entry in entries:
        if entry["address"].casefold() == address.casefold():
            return dict(entry)
    raise Permanent(say_no_account(kind, address, [entry["address"] for entry in entries]))


async def find_external(connection: Connection, address: str) -> External:
    """Return an external account. :raises Permanent: none has this address."""
    externals = await accounts.load_externals(connection)
    for external in externals:
        if external.address.casefold() == address.casefold():
            return external
    raise Permanent(say_no_account("external", address, [external.address for external in externals]))


def say_no_account(kind: Kind, address: str, known: Collection[str]) -> str:
    """Return the error for an address that no account has. :param known: the addresses of all accounts of the kind."""
    return f"{address}: there is no such {kind} account{say_unknown(address, known)}"
