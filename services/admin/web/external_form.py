"""The form of an external account (manual 4.1): its fields as the accounts file has them, and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import FormData

from services.admin.accounts import export, provider_presets
from services.admin.accounts.field_problems import EMPTY
from services.admin.accounts.file_format import PORTS
from services.admin.accounts.labels import EXTERNAL
from services.admin.accounts.provider_presets import ProviderPreset
from services.admin.web.forms import Form, shown
from services.admin.web.login_methods import PASSWORD, method_of, oauth_fields
from shared.model import INBOX, External, FetchProtocol

MARKED = "\\Sent"
"""Stands in the form for the folder that the provider marks for sent mail (RFC 6154)."""
_ENDPOINTS = tuple(name for name in EXTERNAL if name.startswith("oauth.issuer."))


def _server(name: str, host: str = "", port: int | None = None, tls: str = "implicit") -> dict[str, str]:
    """Return the fields of a server. shown_tls: the TLS mode for which the form shows the port."""
    shown_port = str(port or PORTS[name][tls])
    fields = {"host": host, "port": shown_port, "tls": tls, "shown_tls": tls, "tls_fingerprint": ""}
    return {f"{name}.{field}": value for field, value in fields.items()}


NEW: dict[str, Any] = {
    "address": "",
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
    **_server("smtp"),
    "smtp.auth": True,
    "smtp.connections": "2",
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
    values |= _flat(export.external_fields(external))
    if external.imap is not None:
        values["imap.sent"] = MARKED if external.imap.sent == "" else external.imap.sent or ""
    for name in PORTS:
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


def shown_labels(protocol: str) -> dict[str, str]:
    """Return the labels of the fields that are shown with this protocol, in the order of the page."""
    hidden = "pop3." if protocol == "imap" else "imap."
    return {name: label for name, label in EXTERNAL.items() if not name.startswith(hidden)}


def account_fields(form: Form, secrets: Mapping[str, str], old: External | None) -> dict[str, Any]:
    """Return the typed values as an entry of the accounts file. secrets: by field, those that the login method has."""
    entry: dict[str, Any] = {
        "address": form.text("address") if old is None else old.address,
        "enabled": form.flag("enabled"),
        "poll_seconds": form.number("poll_seconds"),
        "delete_after_days": form.number("delete_after_days"),
        "delete_history": form.flag("delete_history"),
        "reply_to_author": form.flag("reply_to_author"),
        "answer_notes": form.flag("answer_notes"),
        "reply_tag": form.flag("reply_tag"),
        "aliases": form.lines("aliases"),
    }
    if history := form.text("history"):
        entry["history"] = history
    if login := form.text("login"):
        entry["login"] = login
    protocol = chosen_protocol({"protocol": form.text("protocol")})
    for name in (protocol, "smtp"):
        entry[name] = {"host": form.text(f"{name}.host"), "tls": form.text(f"{name}.tls")}
        if (port := form.number(f"{name}.port")) is not None:
            entry[name]["port"] = port
        if fingerprint := form.text(f"{name}.tls_fingerprint"):
            entry[name]["tls_fingerprint"] = fingerprint
    if protocol == "imap" and (folders := form.lines("imap.folders")):
        entry["imap"]["folders"] = folders
    if protocol == "imap":
        if form.flag("imap.answered"):
            entry["imap"]["answered"] = True
        if sent := form.text("imap.sent"):
            entry["imap"]["sent"] = sent == MARKED or sent
    entry["smtp"] |= {"auth": form.flag("smtp.auth"), "connections": form.number("smtp.connections")}
    if (oauth := oauth_fields(form, secrets)) is not None:
        entry["oauth"] = oauth
    elif "password" in secrets:
        entry["password"] = secrets["password"]
    return entry


def with_trusted_certificate(sent: FormData) -> FormData | dict[str, Any]:
    """Return the form with the certificate that is to be trusted, to test the account again; else as it was sent."""
    server, _, fingerprint = str(sent.get("trust", "")).partition(" ")
    if server not in PORTS:
        return sent
    return {**sent, f"{server}.tls_fingerprint": fingerprint, "do": "test"}


def with_usual_ports(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form with the usual port of each TLS mode that was chosen since the form was shown, unless the user
    has typed another port than the one that was shown. A script does the same in the browser."""
    form = dict(sent)
    for name, ports in PORTS.items():
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
    if not secrets and oauth_fields(form, {}) is None:
        found["password"] = EMPTY
    if not form.text("history") and form.text("do") != "test":
        found["history"] = "choose whether it is delivered, or stays at the provider"
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
