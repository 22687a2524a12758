"""The pages of providers: their tables, their lines for the accounts file, and the presets agree."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from services.admin.accounts.file_format import ExternalFields, ServerFields, read_text
from services.admin.accounts.provider_presets import PROVIDERS, ProviderPreset
from shared.model import Server

ROOT = Path(__file__).resolve().parents[2]
OVERVIEW = ROOT / "docs" / "providers.md"
PAGES = sorted((ROOT / "docs" / "providers").glob("*.md"))
WITH_TABLE = [page for page in PAGES if page.stem != "postfix-dovecot"]
PAGE_OF = {
    "gmail": "google",
    "outlook": "microsoft",
    "gmx": "gmx-webde",
    "gmxnet": "gmx-webde",
    "webde": "gmx-webde",
    "zohocom": "zoho",
    "ionosde": "ionos",
}
"""Pages of presets, by the key, where they have another name."""
SECURITY = {"SSL/TLS": "implicit", "STARTTLS": "starttls"}
Row = tuple[str, str, int, str]  # protocol, host, port, TLS mode


def table(text: str) -> set[Row]:
    """Return the servers in the table of a page."""
    rows = re.findall(r"^\| (POP3|IMAP|SMTP)[^|]* \| (\S+) \| (\d+) \| (\S+) \|$", text, re.M)
    return {(protocol, host, int(port), SECURITY[security]) for protocol, host, port, security in rows}


def accounts(page: Path, folder: Path) -> list[ExternalFields]:
    """Return the accounts in the YAML blocks of a page. All of them have to be valid."""
    (folder / "support.password").write_text("secret", encoding="utf-8")
    found = []
    for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        file = read_text(block, page.name, folder)
        assert [str(problem) for problem in file.locate(file.problems)] == []
        found += file.external_accounts
    return found


@pytest.mark.parametrize("preset", PROVIDERS, ids=lambda preset: preset.key)
def test_each_server_of_a_preset_stands_in_its_page(preset: ProviderPreset) -> None:
    page = ROOT / "docs" / "providers" / f"{PAGE_OF.get(preset.key, preset.key)}.md"
    servers = {field.name: getattr(preset, field.name) for field in fields(preset)}
    shown = {
        (name.upper(), server.host, server.port, server.tls)
        for name, server in servers.items()
        if isinstance(server, Server)
    }
    assert shown <= table(page.read_text(encoding="utf-8"))


def test_the_overview_says_which_providers_are_filled_in() -> None:
    rows = re.findall(r"^\| \[.*\]\(providers/(\S+)\.md\) \|.*\| (yes|no) \|$", OVERVIEW.read_text("utf-8"), re.M)
    assert {page for page, _ in rows} == {page.stem for page in WITH_TABLE}
    assert {page for page, filled_in in rows if filled_in == "yes"} == {
        PAGE_OF.get(preset.key, preset.key) for preset in PROVIDERS
    }


@pytest.mark.parametrize("page", WITH_TABLE, ids=lambda page: page.stem)
def test_the_lines_of_a_page_name_servers_of_its_table(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    servers = table(text)
    assert {"SMTP"} < {protocol for protocol, *_ in servers}
    for account in accounts(page, tmp_path):
        for field in type(account).model_fields:
            if isinstance(server := getattr(account, field), ServerFields):
                assert (field.upper(), server.host, server.port, server.tls) in servers


@pytest.mark.parametrize("page", [OVERVIEW, *PAGES], ids=lambda page: page.stem)
def test_the_lines_of_every_page_are_accepted(page: Path, tmp_path: Path) -> None:
    assert accounts(page, tmp_path)


@pytest.mark.parametrize("page", WITH_TABLE, ids=lambda page: page.stem)
def test_a_page_says_when_and_where_it_was_looked_up(page: Path) -> None:
    sources = page.read_text(encoding="utf-8").partition("## Sources")[2]
    assert re.search(r"Looked up on 20\d\d-\d\d-\d\d: ", sources)
    assert f"(providers/{page.name})" in OVERVIEW.read_text(encoding="utf-8")
