"""The lines about a change of accounts: with the field names of the accounts file for programs and the audit, with the
labels of the console's page for people. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import zip_longest
from typing import Final

from services.admin.accounts import labels
from services.admin.accounts.errors import Kind
from shared.languages import stored_texts
from shared.languages.translation import lookup, marked
from shared.model import External, ImapServer, Local, OAuth, Relay, Server
from shared.net.http_client import place_of

_OF_NO_FILE = ("former_names",)
"""Names that no accounts file has: they follow from other fields."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field with another value."""

    name: str  # in the accounts file
    before: str = ""  # as shown; "" if it is not shown
    now: str = ""  # as shown; "" for a secret


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """What was done to an account, or as a consequence of changes. ``str`` is the line for programs and the audit."""

    words: str  # without the fields: "local account alex@local.com: changed"
    kind: Kind = "external"  # of the account, for the labels
    fields: tuple[FieldChange, ...] = ()

    def __str__(self) -> str:
        """Return the line with the field names of the accounts file: changed user_name Alex -> Sam."""
        shown = [" ".join(filter(None, (f.name, f.before, f.now and f"-> {f.now}"))) for f in self.fields]
        return " ".join(filter(None, (self.words, ", ".join(shown))))

    @property
    def on_page(self) -> str:
        """The line with the labels of the console's page, in the language that applies: User name: Alex -> Sam."""
        return self._labelled(keys=False)

    @property
    def in_command(self) -> str:
        """The line with the labels, and the names that have to be typed: changed User name (user_name): Alex -> Sam."""
        return self._labelled(keys=True)

    def _labelled(self, keys: bool) -> str:
        known = labels.EXTERNAL if self.kind == "external" else labels.LOCAL
        shown = []
        for field in self.fields:
            label = labels.translated(known, field.name)
            name = f"{label} ({field.name})" if keys and field.name not in _OF_NO_FILE else label
            values = " -> ".join(map(_in_language, filter(None, (field.before, field.now))))
            shown.append(": ".join(filter(None, (name, values))))
        return " ".join(filter(None, (stored_texts.shown(self.words), "; ".join(shown))))


@cache
def _names_in_detail(kind: Kind) -> re.Pattern[str]:
    """Return the pattern of a field's name in the stored detail of a change: at its start, or behind another field."""
    known = labels.EXTERNAL if kind == "external" else labels.LOCAL
    names = sorted((re.escape(name) for name in (*known, *labels.IN_CHANGES)), reverse=True)  # smtp.port before smtp
    further = "|".join(names).replace("smtp", r"smtp(?:\[\d\])?")
    return re.compile(rf"(?:^|, )({further})(?= |, |$)")


def detail_on_page(did: str, detail: str) -> str:
    """Return the detail of an entry of the audit with the labels of the console's page, in the language that applies.

    :param did: what was done; a change of an account has the fields of its kind.
    """
    kind: Kind = "local" if did.endswith("local account") else "external"
    start, *named = _names_in_detail(kind).split(detail.removeprefix("changed "))
    if start or not named or not detail.startswith("changed "):
        return stored_texts.shown(detail)
    values = (each.strip().partition("-> ") for each in named[1::2])
    found = (FieldChange(name, before.strip(), now) for name, (before, _, now) in zip(named[::2], values, strict=True))
    return ChangeLine("", kind, tuple(found)).on_page


def describe_change(
    old: External | Local | None, new: External | Local, external: str = "", delegates: tuple[str, str] = ("", "")
) -> ChangeLine:
    """Describe the change of an account.

    :param old: as it was stored; None: the account is new. :param external: address of a person's new external account.
    :param delegates: a person's delegate before and now, as shown.
    """
    kind: Kind = "external" if isinstance(new, External) else "local"
    account = f"{kind} account {new.address}"
    if old is None:
        held = isinstance(new, External) and new.hold
        return ChangeLine(f"{account}: added{'; its mail is on hold until it is started' if held else ''}", kind)
    found = dict[str, FieldChange]()
    for each in fields(new):
        before, now = getattr(old, each.name), getattr(new, each.name)
        if each.name == "id" or not each.compare or before == now:
            continue
        if each.name == "relays":
            found |= {change.name: change for change in _relay_changes(before, now)}
            continue
        name = _NAMES.get(each.name, each.name)
        if name == "password":
            found[name] = FieldChange(name)
        elif name == "external":
            found[name] = FieldChange(name, now=external)
        else:
            found[name] = FieldChange(name, *(delegates if name == "delegate" else (_shown(before), _shown(now))))
    return ChangeLine(f"{account}: changed", kind, tuple(found.values()))


_NAMES = {
    "password_hash": "password",
    "weak_password": "password",
    "external_id": "external",
    "delegate_id": "delegate",
}
"""Names in the accounts file of the fields that are stored under another name."""


def _imap_shown(server: Server) -> str:
    if not isinstance(server, ImapServer):
        return ""
    answered = "; marks what was answered" if server.answered else ""
    sent = "" if server.sent is None else f"; sent mail in {server.sent or 'the folder marked for it'}"
    return f" ({', '.join(server.folders)}{answered}{sent})"


_OF_RELAY = {
    name: name for name in ("auth", "connections", "login", "password", "mails_per_minute", "recipients_per_day")
} | {"tokens_of": "oauth.same_as"}
"""Fields of a relay beside its server, and their names in the accounts file."""


def _relay_changes(before: Sequence[Relay], now: Sequence[Relay]) -> list[FieldChange]:
    """Return the changes of an account's relays, each by its position."""
    found = []
    for position, (old, new) in enumerate(zip_longest(before, now)):
        name = f"smtp[{position}]" if position else "smtp"
        if old is None or new is None:
            found.append(FieldChange(name, *(_shown(each.server) if each else "none" for each in (old, new))))
            continue
        if old.server != new.server:
            found.append(FieldChange(name, _shown(old.server), _shown(new.server)))
        for each, shown_name in _OF_RELAY.items():
            was, given = getattr(old, each), getattr(new, each)
            if was != given:
                shown = () if each == "password" else (_shown(was), _shown(given))
                found.append(FieldChange(f"{name}.{shown_name}", *shown))
    return found


_VALUES: Final = (marked("none"), marked("true"), marked("false"))
"""Values that are shown by a word."""


def _in_language(value: str) -> str:
    """Return a shown value in the language that applies."""
    return lookup(value) if value in _VALUES else value


def _shown(value: object) -> str:
    if isinstance(value, Server):
        pinned = f" (certificate {value.tls_fingerprint[:8]}…)" if value.tls_fingerprint else ""
        return f"{value.host}:{value.port}/{value.tls}{pinned}{_imap_shown(value)}"
    if isinstance(value, OAuth):
        if value.same_as is not None:
            return f"the access tokens of {value.same_as}"
        grant = "" if value.needs_consent else f", {value.grant}"
        tenant = f", tenant {value.tenant}" if value.tenant else ""
        return f"{value.name or place_of(value.issuer.token_url)} (client {value.client_id}{grant}{tenant})"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
