"""Runs Debian's Roundcube with the lines of docs/mail-clients.md, and uses it in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Error, Locator, Page, expect, sync_playwright

from deploy.machine import ports
from tests.e2e.test_console import ARGUMENTS, CHROMIUM
from tests.interop.package_roots import candidate, downloaded, in_root, running
from tests.interop.stand import Account
from tests.interop.work import Desk, WorkProgram
from tests.system import until

_PACKAGES = ("roundcube-core", "roundcube-sqlite3", "php8.2-cli", "php8.2-fpm")
_DOCUMENTATION = Path(__file__).resolve().parent.parent.parent / "docs" / "mail-clients.md"
_MILLISECONDS = 120_000
"""Limit of each wait for the page."""


class _Desk:
    """Roundcube in a browser, signed in."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        self._url = url

    def sign_in(self, account: Account) -> None:
        self._page.goto(self._url)
        self._page.locator("#rcmloginuser").fill(account.user)
        self._page.locator("#rcmloginpwd").fill(account.password)
        self._page.locator("#rcmloginsubmit").click()
        expect(self._page.locator("#messagelist")).to_be_visible()

    def read(self, subject: str) -> str:
        self._open(subject)
        return self._page.frame_locator("#messagecontframe").locator("#messagebody").inner_text()

    def answer(self, subject: str, text: str) -> None:
        self._open(subject)
        self._page.locator("#toolbar-menu a.reply, #messagelist-content a.reply").first.click()
        self._write(text)
        self._page.locator("a.send:visible, button.send:visible").first.click()
        expect(self._page.locator("#messagelist")).to_be_visible()

    def search(self, text: str) -> list[str]:
        self._show_inbox()
        self._page.locator("#mailsearchform").fill(text)
        self._page.locator("#layout-list a.button.options").first.click()
        for box in self._page.locator("#searchmenu input[name='s_mods[]']").all():
            box.set_checked(box.get_attribute("value") == "text")
        self._page.locator(
            "#searchmenu button.search, #searchmenu a.search, #searchmenu .formbuttons button"
        ).first.click()
        expect(self._page.locator("#messagelist tr.message")).to_have_count(1)
        return self._subjects("tr.message")

    def save_draft(self, recipient: str, subject: str, text: str) -> None:
        self._page.goto(f"{self._url}?_task=mail&_action=compose")
        to = self._page.locator("#compose_to input").first
        to.fill(recipient)
        to.press("Enter")
        self._page.locator("#compose-subject").fill(subject)
        self._write(text)
        self._page.locator("a.save.draft, a.draft").first.click()
        expect(self._page.locator("#messagestack")).to_contain_text("saved to Drafts")

    def move(self, subject: str, folder: str) -> None:
        self._open(subject)
        self._page.evaluate("name => rcmail.command('move', name)", folder)
        expect(self._row(subject)).to_be_hidden()

    def delete(self, subject: str) -> None:
        self._open(subject)
        self._page.locator("#toolbar-menu a.delete").first.click()
        expect(self._row(subject)).to_be_hidden()

    def unread(self) -> list[str]:
        self._show_inbox()
        expect(self._page.locator("#messagelist tr.message").first).to_be_visible()
        return self._subjects("tr.message.unread")

    def _show_inbox(self) -> None:
        self._page.goto(f"{self._url}?_task=mail&_mbox=INBOX")
        expect(self._page.locator("#messagelist")).to_be_visible()

    def _row(self, subject: str) -> Locator:
        return self._page.locator("#messagelist tr.message").filter(has_text=subject)

    def _open(self, subject: str) -> None:
        self._show_inbox()
        self._row(subject).click()
        preview = self._page.frame_locator("#messagecontframe")
        expect(preview.locator(".subject")).to_contain_text(subject)

    def _subjects(self, rows: str) -> list[str]:
        found = self._page.locator(f"#messagelist {rows} td.subject span.subject a").all_inner_texts()
        return [each.strip() for each in found]

    def _write(self, text: str) -> None:
        body = self._page.locator("#composebody")
        expect(body).to_be_visible()
        body.press("Control+Home")
        body.press_sequentially(text)


@contextmanager
def _at_work(account: Account, outgoing: Account) -> Iterator[Desk]:
    with _roundcube(account, outgoing) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(_MILLISECONDS)
            expect.set_options(timeout=_MILLISECONDS)
            desk = _Desk(page, url)
            desk.sign_in(account)
            yield desk
        finally:
            browser.close()


@contextmanager
def _roundcube(account: Account, outgoing: Account) -> Iterator[str]:
    """Run Roundcube for the block, and yield its URL."""
    folder = account.folder
    packages = downloaded(folder, _PACKAGES)
    port = ports.choose(1, str(folder), ports.OURS)[0]
    (folder / "config.inc.php").write_text(_configuration(account, outgoing))
    script = f"""\
set -e
mkdir -p {folder}/conf.d {folder}/temp {folder}/logs
# What the packages' scripts do: each extension has a file with its place in the order.
for each in /usr/share/php8.2-*/*/*.ini; do
  order=$(sed -n 's/^; *priority=//p' "$each")
  cp "$each" "{folder}/conf.d/${{order:-20}}-$(basename "$each")"
done
cp {folder}/config.inc.php /etc/roundcube/config.inc.php
export PHP_INI_SCAN_DIR={folder}/conf.d PHP_CLI_SERVER_WORKERS=4
exec php8.2 -S 127.0.0.1:{port} -t /var/lib/roundcube/public_html
"""
    with running("roundcube", in_root(folder, packages, script), folder, {}):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}/"


def _configuration(account: Account, outgoing: Account) -> str:
    """Return the documented lines with this machine's ports, and what every installation chooses for itself."""
    found = re.search(r"\*\*Roundcube\*\*.*?```php\n(.*?)```", _DOCUMENTATION.read_text(encoding="utf-8"), re.S)
    assert found is not None
    lines = found[1].replace("mail.local.com:993", f"{account.host}:{account.port}")
    lines = lines.replace("mail.local.com:465", f"{outgoing.host}:{outgoing.port}")
    trust = f"['ssl' => ['cafile' => '{account.ca_file}', 'verify_peer' => true]]"
    folder = account.folder
    return f"""\
<?php
$config = [];
{lines}
$config['imap_conn_options'] = {trust};
$config['smtp_conn_options'] = {trust};
$config['db_dsnw'] = 'sqlite:///{folder}/roundcube.db?mode=0640';
$config['des_key'] = '{folder.name:x<24.24}';
$config['temp_dir'] = '{folder}/temp';
$config['log_dir'] = '{folder}/logs';
$config['plugins'] = [];
$config['display_next'] = false;
"""


def _wait_for(port: int) -> None:
    until(lambda: not ports.is_free(port))


ROUNDCUBE = WorkProgram("Roundcube", lambda: candidate("roundcube-core"), _at_work, (Error, AssertionError))
