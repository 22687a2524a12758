"""What the environment may say."""

from __future__ import annotations

import pytest

from deploy.machine.instance import _environment
from shared.settings import load


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
