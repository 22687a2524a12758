"""services/admin/web/request_guard.py: which requests may change something."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploy.machine.supervise import ROOT
from services.admin.web.page_context import local_path
from services.admin.web.request_guard import OwnHosts, from_our_page
from shared.settings import Settings, SettingsError, load


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8080", "origin": "http://127.0.0.1:8080"}, True),
        ({"host": "mail.company.com", "origin": "https://mail.company.com"}, True),  # behind a proxy that has TLS
        ({"host": "127.0.0.1:8080", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:8080", "origin": "http://127.0.0.1:8081"}, False),
        ({"host": "127.0.0.1:8080", "origin": "null"}, False),
        ({"origin": ""}, False),
        ({"host": "a", "sec-fetch-site": "same-origin", "cookie": "x"}, True),
        ({"host": "a", "sec-fetch-site": "cross-site"}, False),
        ({"host": "a", "sec-fetch-site": "same-site"}, False),
        ({"host": "a", "referer": "http://a/page", "cookie": "x"}, True),
        ({"host": "a", "referer": "http://b/page"}, False),
        ({"host": "a", "cookie": "x"}, False),
        ({"host": "a"}, True),  # a program, not a browser
    ],
)
def test_only_a_page_of_ours_or_a_program_changes_something(headers: dict[str, str], allowed: bool) -> None:
    assert from_our_page(headers) is allowed


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/external/support@company.com?x=1", True),
        ("//evil.example", False),
        ("/\\evil.example", False),
        ("https://evil.example", False),
        ("javascript:alert(1)", False),
        ("/\n/evil.example", False),
    ],
)
def test_after_signing_in_nobody_is_sent_to_another_site(path: str, kept: bool) -> None:
    assert local_path(path) == (path if kept else "")


@pytest.mark.parametrize(
    ("values", "tls"),
    [
        ({}, False),
        ({"admin_bind": "::1"}, False),
        ({"admin_bind": "192.168.1.1"}, True),
        ({"admin_bind": "0.0.0.0"}, True),
        ({"admin_bind": "0.0.0.0", "admin_tls": "no"}, False),
        ({"admin_tls": "yes"}, True),
    ],
)
def test_passwords_leave_the_machine_only_by_tls(values: dict[str, str], tls: bool) -> None:
    assert Settings(**values).console_has_tls is tls  # type: ignore[arg-type]  # of several types


def test_the_command_line_does_not_import_the_web_server() -> None:
    names = "('fastapi', 'uvicorn', 'jinja2')"
    script = f"import sys, services.admin.cli.app; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("header", "own"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("LOCALHOST.:8080", True),
        ("[::1]:8080", True),
        ("192.168.1.7:8080", True),  # the address that it listens on
        ("10.0.0.9", True),  # the address to which this connection came
        ("mail.company.com", True),
        ("Console.Company.com:443", True),
        ("192.168.1.8:8080", True),
        ("attacker.example:8080", False),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("10.0.0.8", False),
        ("", False),
        ("localhost:8080@attacker.example", False),
        ("localhost attacker.example", False),
        ("[attacker.example]", False),
    ],
)
def test_the_console_knows_its_own_names_and_no_other(header: str, own: bool) -> None:
    hosts = "console.company.com, 192.168.1.8"
    settings = Settings(admin_bind="192.168.1.7", mail_host="mail.company.com", admin_hosts=hosts)
    assert OwnHosts(settings).include(header, "10.0.0.9") is own


@pytest.mark.parametrize("hosts", ["a b", "https://a", "a,b/c", "*"])
def test_a_name_of_the_console_is_a_host_name(hosts: str) -> None:
    with pytest.raises(SettingsError, match=r"MAILGROUP_ADMIN_HOSTS: .* has to be host names"):
        load(admin_hosts=hosts)
