"""Every error that a page may show, and every text of the audit, has a form: ``stored_texts.shown`` translates it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from services.admin.access import audit
from shared.errors import Permanent, Temporary
from shared.languages import stored_texts
from shared.languages.translation import in_language
from shared.provider.imap_folders import UNFIT, FolderUnavailable
from shared.provider.oauth import MEANINGS, MEANINGS_WITHOUT_PERSON
from tests.marked_language import untranslated

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "shared/net",
    "shared/provider",
    "shared/auth",
    "services/sender",
    "services/fetcher",
    "services/admin/access",
    "services/admin/accounts",
    "services/admin/mail",
)
"""Code whose errors are stored and shown on pages, or shown at once."""
ERRORS = (Temporary, Permanent, FolderUnavailable)
OF_COMMANDS = re.compile(
    "(MAILGROUP_[A-Z_]+|InvalidProtocol"  # settings, when a process starts; a reason for programs
    "|.* account is there already; change it with '.* set').*"  # a page says it beside the field
)
"""Errors that no page shows."""
IDENTIFIER = re.compile("[A-Z]{2,}")
VALUE = "7"


def errors_of(file: Path) -> Iterator[str]:
    """The texts of the errors that a module makes, with a value for each place."""
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    module = importlib.import_module(name)
    for call in ast.walk(ast.parse(file.read_text())):
        if isinstance(call, ast.Call) and call.args:
            made = _found(call.func, module)
            if isinstance(made, type) and issubclass(made, ERRORS):
                yield from _texts(call.args[0], module)


def entries_of(file: Path) -> Iterator[str]:
    """The texts that a module records in the audit: what was done, and details."""
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    module = importlib.import_module(name)
    for call in ast.walk(ast.parse(file.read_text())):
        if isinstance(call, ast.Call) and _found(call.func, module) in (audit.record_change, audit.record_mails):
            for node in (*call.args[2:3], *call.args[4:5], *(each.value for each in call.keywords)):
                yield from _texts(node.args[0] if isinstance(node, ast.Call) and node.args else node, module)


def _found(node: ast.expr, module: ModuleType) -> object:
    if isinstance(node, ast.Name):
        return getattr(module, node.id, None)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return getattr(getattr(module, node.value.id, None), node.attr, None)
    return None


def _texts(node: ast.expr, module: ModuleType) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        text = ""
        for each in node.values:
            if isinstance(each, ast.Constant):
                text += str(each.value)
            elif isinstance(each, ast.FormattedValue) and not text[-1:].isalnum():  # else it may be empty
                text += VALUE if each.conversion == -1 else repr(VALUE)
        yield text
        return
    constant = node.value if isinstance(node, ast.Constant) else _found(node, module)
    if isinstance(constant, str):
        yield constant


def left(texts: Iterator[str] | list[str]) -> list[str]:
    with in_language("eo"):
        shown = [(text, untranslated(stored_texts.shown(text))) for text in texts]
    return [text for text, words in shown if any(not IDENTIFIER.fullmatch(word.strip(":")) for word in words)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_error_of_the_code_is_translated(folder: str, marked_language: None) -> None:
    found = [text for file in sorted((ROOT / folder).glob("*.py")) for text in errors_of(file)]
    assert left([text for text in found if not OF_COMMANDS.fullmatch(text)]) == []


def test_each_text_of_the_audit_is_translated(marked_language: None) -> None:
    found = [text for file in sorted((ROOT / "services/admin").rglob("*.py")) for text in entries_of(file)]
    values = {"changed 7": "changed local account", "removed 7 account": "removed local account"}
    values |= {"7 to 7": "7 mails to 7", "7, days: 7": "observer, days: 7"}
    values |= {"7 mails not fetched": "acknowledged mails not fetched"}
    assert len(found) > 30 and left([values.get(text, text) for text in found]) == []


def test_each_error_of_the_code_is_found() -> None:
    found = [text for file in sorted((ROOT / "shared/provider").glob("*.py")) for text in errors_of(file)]
    assert len(found) > 60 and "7: no answer within 7 s" in found and "there is no folder '7'" in found


def test_the_place_and_the_reason_of_an_error_are_translated(marked_language: None) -> None:
    whole = [
        "pop.x.example:995: greeting: no answer within 20 s",
        "imap.x.example:993: FETCH of mail 5: the server ended the connection",
        "pop.x.example:995: RETR behind mail 12: no answer within 60 s",
        "pop.x.example:995: TOP of one mail: another reply",
        "fetching: imap.x.example:993: LIST: a reply line of more than 8192 octets (paused: one try an hour)",
        "relaying: smtp.x.example: smtp.x.example:587: the server did not answer within 60 s",
        "smtp.x.example:587: no answer while the mail was sent",
        "smtp.x.example:587: the connection was lost after the mail was sent, before the reply",
        "x.example: no token now (HTTP status 503)",
        "there is no folder 'Old'; the folder 'New' cannot be opened: 5",
        "imap.x.example:993: there is no folder 'Sent' for sent mail; name the folder in imap.sent",
        "imap.x.example:993: the provider marks no folder as \\Sent; name the folder in imap.sent",
        *(f"the folder 'Old' is not fetched: the provider marks it as {mark}, {why}" for mark, why in UNFIT.items()),
        *(f"x.example: no token is given ({code}: {MEANINGS[code]})" for code in MEANINGS),
        *MEANINGS_WITHOUT_PERSON.values(),
    ]
    names = re.compile(r"\S+\.example\S*|[A-Z]{2,}|'\w+'|[a-z]+_[a-z_]+:?|\\\w+")
    with in_language("eo"):
        shown = [untranslated(stored_texts.shown(text)) for text in whole]
    assert [words for words in shown if any(not names.fullmatch(word) for word in words)] == []
