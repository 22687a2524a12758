"""shared/settings.py: the settings in the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.machine.instance import _environment
from shared.settings import PREFIX, Settings, SettingsError, load

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_for_operators(name: str) -> None:
    assert f"{PREFIX}{name.upper()}" in PAGES


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("no", False),
        ("Yes", True),
        ("", False),
        ("mail.lan", frozenset({"mail.lan"})),
        ("Mail.LAN, other.lan,", frozenset({"mail.lan", "other.lan"})),
    ],
)
def test_private_hosts_are_all_none_or_some_and_services_read_what_up_read(
    monkeypatch: pytest.MonkeyPatch, written: str, read: object
) -> None:
    monkeypatch.setenv("MAILGROUP_ALLOW_PRIVATE_UPSTREAM", written)
    settings = load()
    assert settings.allow_private_upstream == read
    monkeypatch.setenv("MAILGROUP_ALLOW_PRIVATE_UPSTREAM", _environment(settings)["MAILGROUP_ALLOW_PRIVATE_UPSTREAM"])
    assert load().allow_private_upstream == read


@pytest.mark.parametrize("name", ["mail.company.com", "a.b-c.example", "[192.0.2.1]", "[IPv6:2001:db8::1]"])
def test_the_ehlo_name_is_a_full_name_or_an_address_literal(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MAILGROUP_EHLO_NAME", name)
    assert load().ehlo_name == name


@pytest.mark.parametrize(
    "name", ["mail", "mail company.com", "-a.example", "a..example", "192.0.2.1]", "a.b\r\nRSET", ""]
)
def test_another_ehlo_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MAILGROUP_EHLO_NAME", name)
    with pytest.raises(SettingsError, match="MAILGROUP_EHLO_NAME"):
        load()
