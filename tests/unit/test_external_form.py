"""services/admin/web/external_form.py: the ports that follow the encryption, and the choice of the protocol."""

from __future__ import annotations

from typing import Any

import pytest

from services.admin.accounts.provider_presets import PROVIDERS
from services.admin.web.external_form import NEW, account_fields, account_values, fill_in_provider, with_usual_ports
from services.admin.web.forms import Form
from shared.model import External, ImapServer, Relay, Server

SMTP = Server("smtp.company.com", 465, "implicit")


def stored(pop3: Server | None, imap: ImapServer | None = None) -> External:
    """An account as it is stored."""
    address = "support@company.com"
    return External(1, address, True, "x", b"", pop3, (Relay(SMTP),), 60, "all", None, False, True, (), imap=imap)


def sent(values: dict[str, Any], **typed: str) -> dict[str, Any]:
    """A form as a browser sends it: check boxes that are not ticked are left out."""
    boxes = {name: "on" for name, value in values.items() if value is True}
    return {name: str(value) for name, value in values.items() if not isinstance(value, bool)} | boxes | typed


@pytest.mark.parametrize(
    ("name", "ports"), [("pop3", (995, 110, 110)), ("imap", (993, 143, 143)), ("smtp", (465, 587, 25))]
)
def test_the_usual_port_follows_the_encryption(name: str, ports: tuple[int, int, int]) -> None:
    for mode, port in zip(("implicit", "starttls", "none"), ports, strict=True):
        form = with_usual_ports(sent(NEW, **{f"{name}.tls": mode}))
        assert (form[f"{name}.port"], form[f"{name}.shown_tls"]) == (str(port), mode)


def test_a_port_that_was_typed_stays() -> None:
    # given another port than the one that was shown
    form = with_usual_ports(sent(NEW, **{"pop3.port": "1110", "pop3.tls": "none"}))
    assert form["pop3.port"] == "1110"
    # or one that was typed after the script had shown that of the chosen mode
    form = with_usual_ports(sent(NEW, **{"pop3.port": "995", "pop3.tls": "none", "pop3.shown_tls": "none"}))
    assert form["pop3.port"] == "995"
    # or a form that does not say what was shown
    form = with_usual_ports({"pop3.port": "995", "pop3.tls": "none"})
    assert form["pop3.port"] == "995"


def test_only_the_server_of_the_chosen_protocol_is_saved() -> None:
    typed = {"pop3.host": "pop3.company.com", "imap.host": "imap.company.com", "imap.folders": "INBOX\n\nAufträge\n"}
    entry = account_fields(Form(sent(NEW, protocol="imap", **typed)), {"password": "secret"}, None)
    assert "pop3" not in entry
    folders = ["INBOX", "Aufträge"]
    assert entry["imap"] == {"host": "imap.company.com", "tls": "implicit", "port": 993, "folders": folders}
    entry = account_fields(Form(sent(NEW, **typed)), {"password": "secret"}, None)
    assert "imap" not in entry and entry["pop3"] == {"host": "pop3.company.com", "tls": "implicit", "port": 995}


@pytest.mark.parametrize(("sent_folder", "typed"), [(None, ""), ("", "\\Sent"), ("Gesendet", "Gesendet")])
def test_what_is_filed_at_the_provider_is_typed_and_shown(sent_folder: str | None, typed: str) -> None:
    values = account_values(stored(None, ImapServer("h", 143, "none", answered=True, sent=sent_folder)))
    assert (values["imap.answered"], values["imap.sent"]) == (True, typed)
    form = Form(sent(NEW, protocol="imap", **{"imap.host": "h", "imap.answered": "on", "imap.sent": typed}))
    entry = account_fields(form, {"password": "secret"}, None)["imap"]
    assert (entry["answered"], entry.get("sent")) == (True, {"": None, "\\Sent": True}.get(typed, typed))


def test_a_stored_account_is_shown_with_the_other_server_of_its_provider() -> None:
    values = account_values(stored(Server("pop.gmail.com", 995, "implicit", "ab" * 32)))
    assert (values["protocol"], values["pop3.host"], values["pop3.tls_fingerprint"]) == (
        "pop3",
        "pop.gmail.com",
        "ab" * 32,
    )
    assert (values["imap.host"], values["imap.port"], values["imap.folders"]) == ("imap.gmail.com", "993", "INBOX")
    values = account_values(stored(None, ImapServer("h", 143, "none", folders=("INBOX", "Junk"))))
    assert (values["protocol"], values["imap.port"], values["imap.shown_tls"]) == ("imap", 143, "none")
    assert (values["imap.folders"], values["pop3.host"], values["pop3.port"]) == ("INBOX\nJunk", "", "995")


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda each: each.key)
def test_a_known_provider_fills_in_the_servers_that_it_has(provider: Any) -> None:
    filled = fill_in_provider(dict(NEW), provider.key)
    assert filled["protocol"] == ("imap" if provider.pop3 is None else "pop3")
    assert (filled["imap.host"], filled["imap.port"]) == (provider.imap.host, "993")
    assert (filled["smtp.host"], filled["smtp.port"]) == (provider.smtp.host, str(provider.smtp.port))
    assert filled["smtp.shown_tls"] == provider.smtp.tls


def test_the_hosts_of_an_unknown_provider_are_guessed() -> None:
    filled = fill_in_provider(NEW | {"address": "x@company.com", "smtp.host": "typed.example"}, "")
    hosts = {name: filled[f"{name}.host"] for name in ("pop3", "imap", "smtp")}
    assert hosts == {"pop3": "pop3.company.com", "imap": "imap.company.com", "smtp": "typed.example"}
