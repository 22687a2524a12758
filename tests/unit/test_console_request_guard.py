"""services/admin/web/request_guard.py: which requests may change something."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploy.machine.supervise import ROOT
from services.admin.web.request_guard import from_our_page
from services.admin.web.sign_in import _local_path
from shared.settings import Settings


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
    assert _local_path(path) == (path if kept else "")


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
