"""The form of an external account (manual 4.1): its fields as the accounts file has them, and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from starlette.datastructures import FormData

from services.admin.accounts import export, provider_presets
from services.admin.accounts.errors import AccountProblem
from services.admin.accounts.field_problems import EMPTY
from services.admin.accounts.file_format import PORTS
from services.admin.accounts.labels import EXTERNAL, of_further, translated
from services.admin.accounts.provider_presets import ProviderPreset
from services.admin.web.forms import Form, lines_with_former, shown, typed_address
from services.admin.web.login_methods import PASSWORD, RELAY_SECRETS, RELAYS, method_of, oauth_fields
from shared.languages.translation import gettext, lookup
from shared.model import INBOX, External, FetchProtocol

MARKED = "\\Sent"
"""Stands in the form for the folder that the provider marks for sent mail (RFC 6154)."""
FORM_PORTS: Final = PORTS | dict.fromkeys(RELAYS, PORTS["smtp"])
"""Usual ports by TLS mode, of each server of the form."""
LABELS: Final = EXTERNAL | {
    name.replace("smtp", prefix): of_further(position, label)
    for position, prefix in enumerate(RELAYS)
    for name, label in EXTERNAL.items()
    if position and name.startswith("smtp.")
}
"""Labels of the fields in English, in the order of the page."""
MAIN_FIELDS: Final = ("smtp.host", "smtp.port", "smtp.tls", "smtp.auth")
"""Fields of the first SMTP server that the page always shows."""
_ENDPOINTS = tuple(name for name in EXTERNAL if name.startswith("oauth.issuer."))


def labels() -> dict[str, str]:
    """Return the labels of the fields in the language that applies, in the order of the page."""
    return {name: _label(name, label) for name, label in LABELS.items()}


def _label(name: str, label: str) -> str:
    """Return a label in the language that applies. :param label: in English."""
    prefix, _, field = name.partition(".")
    if prefix not in RELAYS[1:]:
        return lookup(label)
    return translated(EXTERNAL, f"smtp[{RELAYS.index(prefix)}].{field}")


def _server(name: str, host: str = "", port: int | None = None, tls: str = "implicit") -> dict[str, str]:
    """Return the fields of a server. shown_tls: the TLS mode for which the form shows the port."""
    shown_port = str(port or FORM_PORTS[name][tls])
    fields = {"host": host, "port": shown_port, "tls": tls, "shown_tls": tls, "tls_fingerprint": ""}
    return {f"{name}.{field}": value for field, value in fields.items()}


def _relay(prefix: str) -> dict[str, Any]:
    fields = {
        "auth": True,
        "connections": "2",
        "login": "",
        "kept": "",
        "oauth.same_as": "",
        "mails_per_minute": "",
        "recipients_per_day": "",
    }
    return _server(prefix) | {f"{prefix}.{name}": value for name, value in fields.items()}


NEW: dict[str, Any] = {
    "address": "",
    "keep_address": True,
    "enabled": True,
    "login": "",
    "method": PASSWORD,
    "oauth.same_as": "",
    "oauth.client_id": "",
    "oauth.tenant": "",
    **dict.fromkeys(_ENDPOINTS, ""),
    "oauth.kept": "",
    "oauth.kept_key": "",
    "protocol": "pop3",
    **_server("pop3"),
    **_server("imap"),
    "imap.folders": INBOX,
    "imap.answered": False,
    "imap.sent": "",
    **_relay("smtp"),
    **_relay("smtp2"),
    **_relay("smtp3"),
    "poll_seconds": "60",
    "history": "",
    "delete_after_days": "",
    "delete_history": False,
    "reply_to_author": True,
    "answer_notes": False,
    "reply_tag": False,
    "aliases": "",
    "kept": "",
    "found": "",  # mails that the latest test counted at the provider
    "version": "",
}


def account_values(external: External) -> dict[str, Any]:
    """Return the values of the dialog for an account."""
    values = NEW | {"protocol": external.protocol, "version": export.version_of(external)}
    if (provider := provider_presets.preset_for_hosts(external.incoming.host)) is not None:
        values |= _servers_of(provider)  # for a change to the other protocol
    values |= _flat({name: value for name, value in export.external_fields(external).items() if name != "smtp"})
    if external.imap is not None:
        values["imap.sent"] = MARKED if external.imap.sent == "" else external.imap.sent or ""
    for prefix, relay in zip(RELAYS, external.relays, strict=False):
        values |= _flat(export.relay_fields(relay), f"{prefix}.")
    for name in FORM_PORTS:
        values[f"{name}.shown_tls"] = values[f"{name}.tls"]
    return values | {"method": method_of(external.oauth)}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields of the accounts file to the dotted names of the form. Pure."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: shown(value)}
    return values


def chosen_protocol(form: Mapping[str, Any]) -> FetchProtocol:
    """Return the protocol that is chosen in a form; POP3, the manual's, if none is."""
    return "imap" if form.get("protocol") == "imap" else "pop3"


def shown_labels(protocol: str, *values: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the fields that are shown with this protocol, in the order of the page.

    :param values: of forms; a further SMTP server that none of them has is left out.
    """
    hidden = ["pop3." if protocol == "imap" else "imap."]
    hidden += [f"{prefix}." for prefix in RELAYS[1:] if not any(each.get(f"{prefix}.host") for each in values)]
    return {name: label for name, label in labels().items() if not name.startswith(tuple(hidden))}


def account_fields(form: Form, secrets: Mapping[str, str], old: External | None) -> dict[str, Any]:
    """Return the typed values as an entry of the accounts file. secrets: by field, those that the login method has."""
    entry: dict[str, Any] = {
        **typed_address(form, old),
        "enabled": form.flag("enabled"),
        "poll_seconds": form.number("poll_seconds"),
        "delete_after_days": form.number("delete_after_days"),
        "delete_history": form.flag("delete_history"),
        "reply_to_author": form.flag("reply_to_author"),
        "answer_notes": form.flag("answer_notes"),
        "reply_tag": form.flag("reply_tag"),
        "aliases": lines_with_former(form, "aliases", old),
    }
    if history := form.text("history"):
        entry["history"] = history
    if login := form.text("login"):
        entry["login"] = login
    protocol = chosen_protocol({"protocol": form.text("protocol")})
    entry[protocol] = _server_entry(form, protocol)
    relays = [_relay_entry(form, prefix, secrets) for prefix in _filled_relays(form)]
    entry["smtp"] = relays[0] if len(relays) == 1 else relays
    if protocol == "imap" and (folders := form.lines("imap.folders")):
        entry["imap"]["folders"] = folders
    if protocol == "imap":
        if form.flag("imap.answered"):
            entry["imap"]["answered"] = True
        if sent := form.text("imap.sent"):
            entry["imap"]["sent"] = sent == MARKED or sent
    if (oauth := oauth_fields(form, secrets)) is not None:
        entry["oauth"] = oauth
    elif "password" in secrets:
        entry["password"] = secrets["password"]
    return entry


def _server_entry(form: Form, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"host": form.text(f"{name}.host"), "tls": form.text(f"{name}.tls")}
    if (port := form.number(f"{name}.port")) is not None:
        entry["port"] = port
    if fingerprint := form.text(f"{name}.tls_fingerprint"):
        entry["tls_fingerprint"] = fingerprint
    return entry


def _relay_entry(form: Form, prefix: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    entry = _server_entry(form, prefix)
    entry |= {"auth": form.flag(f"{prefix}.auth"), "connections": form.number(f"{prefix}.connections")}
    for name in ("mails_per_minute", "recipients_per_day"):
        if (limit := form.number(f"{prefix}.{name}")) is not None:
            entry[name] = limit
    if login := form.text(f"{prefix}.login"):
        entry["login"] = login
    if tokens_of := form.text(f"{prefix}.oauth.same_as"):
        entry["oauth"] = {"same_as": tokens_of}
    if f"{prefix}.password" in secrets:
        entry["password"] = secrets[f"{prefix}.password"]
    return entry


def _filled_relays(form: Form) -> list[str]:
    """Return the prefixes of the SMTP servers that are given: the first one, and those with a host."""
    return [prefix for prefix in RELAYS if prefix == RELAYS[0] or form.text(f"{prefix}.host")]


def at_fields(problems: Sequence[AccountProblem], form: Form) -> list[AccountProblem]:
    """Return the problems with the form's names of the SMTP servers: smtp2.port for smtp[1].port."""
    filled = _filled_relays(form)
    found = []
    for problem in problems:
        name, *rest = problem.field or ("",)
        if name == "smtp" and rest and isinstance(rest[0], int) and rest[0] < len(filled):
            problem = replace(problem, field=(filled[rest[0]], *rest[1:]))
        found.append(problem)
    return found


def with_trusted_certificate(sent: FormData) -> FormData | dict[str, Any]:
    """Return the form with the certificate that is to be trusted, to test the account again; else as it was sent."""
    server, _, fingerprint = str(sent.get("trust", "")).partition(" ")
    filled = _filled_relays(Form(sent))
    server = {f"smtp[{position}]": prefix for position, prefix in enumerate(filled)}.get(server, server)
    if server not in FORM_PORTS:
        return sent
    return {**sent, f"{server}.tls_fingerprint": fingerprint, "do": "test"}


def with_usual_ports(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form with the usual port of each TLS mode that was chosen since the form was shown, unless the user
    has typed another port than the one that was shown. A script does the same in the browser."""
    form = dict(sent)
    for name, ports in FORM_PORTS.items():
        mode, shown_mode = str(form.get(f"{name}.tls", "")), str(form.get(f"{name}.shown_tls", ""))
        typed = str(form.get(f"{name}.port", "")).strip()
        if mode in ports and mode != shown_mode and typed == str(ports.get(shown_mode)):
            form[f"{name}.port"] = str(ports[mode])
        form[f"{name}.shown_tls"] = mode
    return form | {"protocol": chosen_protocol(form)}


def find_unanswered(form: Form, secrets: Mapping[str, str], old: External | None) -> dict[str, str]:
    """Return the errors of the fields that a new account needs and that have no answer yet."""
    if old is not None:
        return {}
    found = {}
    if not set(secrets) - set(RELAY_SECRETS) and oauth_fields(form, {}) is None:
        found["password"] = EMPTY
    if not form.text("history") and form.text("do") != "test":
        found["history"] = gettext("choose whether it is delivered, or stays at the provider")
    return found


def fill_in_provider(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the typed values with the servers of the chosen provider, or of the provider of the address. Pure."""
    provider = provider_presets.preset_for_key(key) or provider_presets.preset_for_address(values["address"])
    domain = values["address"].rpartition("@")[2]
    if provider is None:
        guess = {f"{name}.host": f"{name}.{domain}" for name in PORTS} if domain else {}
        return values | {name: host for name, host in guess.items() if not values[name]}
    filled = values | _servers_of(provider)
    if provider.pop3 is None:
        filled["protocol"] = "imap"
    if provider.oauth == "microsoft":
        filled["method"] = provider.oauth
    return filled


def _servers_of(provider: ProviderPreset) -> dict[str, str]:
    """Return the fields of a provider's servers."""
    fields: dict[str, str] = {}
    for name, server in (("pop3", provider.pop3), ("imap", provider.imap), ("smtp", provider.smtp)):
        fields |= _server(name) if server is None else _server(name, server.host, server.port, server.tls)
    return fields
