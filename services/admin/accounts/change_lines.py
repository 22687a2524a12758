"""The lines about a change of accounts: with the field names of the accounts file for programs and the audit, with the
labels of the console's page for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest

from services.admin.accounts import labels
from services.admin.accounts.errors import Kind
from shared.languages import stored_texts
from shared.languages.translation import gettext
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


def _in_language(value: str) -> str:
    """Return a shown value in the language that applies."""
    return gettext("none") if value == "none" else value


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
