"""The fields of an account on the command line: FIELD=VALUE words, as in the accounts file."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from services.admin.accounts.errors import AccountsError
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.password_input import read_password

with lazy_imports():
    from services.admin.accounts import yaml_text

Fields = Annotated[
    list[str] | None,
    typer.Argument(
        help="Fields as in the accounts file, for example pop3.host=pop.company.com aliases=[help@company.com]; "
        "password=- asks for it, or reads it from a pipe.",
        metavar="FIELD=VALUE...",
    ),
]
EXTERNAL_FIELDS = (
    *("address", "enabled", "login", "password", "password_file"),
    *(f"oauth.{name}" for name in ("same_as", "grant", "issuer", "client_id", "client_secret", "client_key")),
    *("oauth.client_key_file", "oauth.tenant"),
    *(f"pop3.{name}" for name in ("host", "port", "tls", "tls_fingerprint")),
    *(f"imap.{name}" for name in ("host", "port", "tls", "tls_fingerprint", "folders", "answered", "sent")),
    *(f"smtp.{name}" for name in ("host", "port", "tls", "tls_fingerprint", "auth", "connections")),
    *(f"smtp.{name}" for name in ("login", "password", "password_file", "oauth.same_as")),
    *(f"smtp.{name}" for name in ("mails_per_minute", "recipients_per_day")),
    *("poll_seconds", "history", "delete_after_days", "delete_history", "reply_to_author", "answer_notes", "hold"),
    *("reply_tag", "aliases"),
)
"""The fields of an external account, for the help. smtp.host is of its first SMTP server, smtp[1].host of the second.
"""
LOCAL_FIELDS = (
    *("address", "enabled", "password", "password_file", "password_hash", "user_name", "aliases", "addresses"),
    *("external", "delegate", "junk", "language"),
)
"""The fields of a local account, for the help."""
_TEXTS = (
    *("address", "password", "password_file", "password_hash", "login", "host", "tls", "tls_fingerprint"),
    *("user_name", "external", "language"),
    *("client_id", "client_secret", "client_key", "client_key_file", "tenant", "same_as", "grant"),
    *("token_url", "scope", "device_url", "authorize_url"),
)
"""Fields whose value is always text, even if YAML would read a number or a list."""


def _steps(name: str) -> list[Any]:
    """Return the names and positions of a field: smtp, 1 and host for smtp[1].host."""
    steps: list[Any] = []
    for part in name.split("."):
        found = re.fullmatch(r"(\w+)\[(\d{1,2})\]", part)
        steps += [part] if found is None else [found[1], int(found[2])]
    return steps


def parse_fields(fields: list[str] | None) -> dict[str, Any]:
    """Parse FIELD=VALUE words into a mapping; pop3.host=x means {"pop3": {"host": "x"}}, and smtp[1].host=x means
    {"smtp": {1: {"host": "x"}}}.

    :raises AccountsError: a word has another form.
    """
    values: dict[Any, Any] = {}
    for word in fields or []:
        name, sign, text = word.partition("=")
        if not sign or not name:
            raise AccountsError([f"{word!r}: fields are given as FIELD=VALUE"])
        if name.endswith("password") and text == "-":
            value: Any = read_password("the account" if name == "password" else name.removesuffix(".password"))
        elif text and name.rpartition(".")[2] in _TEXTS:
            value = text
        else:
            value = yaml_text.load_yaml(text, name) if text else None
        place = values
        *outer, last = _steps(name)
        for step in outer:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise AccountsError([f"{word!r}: {step} is given twice"])
        place[last] = value
    return values
