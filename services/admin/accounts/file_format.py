"""The accounts file (YAML 1.2, so JSON too): its fields with defaults and limits, and the texts of its errors.

This module checks all that needs no database; ``services.admin.accounts.plan`` checks the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.yaml_text import MAX_OCTETS, load_yaml
from shared.errors import Permanent
from shared.mime.display_names import normalise
from shared.net.http_client import server_of

PORTS = {
    "pop3": {"none": 110, "starttls": 110, "implicit": 995},
    "smtp": {"none": 25, "starttls": 587, "implicit": 465},
}
_LETTER = r"[^\s@<>()\[\],;:\\\"\x00-\x1f\x7f]"
_LABEL = _LETTER.replace("x7f]", "x7f.]") + "+"
_ADDRESS = re.compile(rf"{_LETTER}+@{_LABEL}(\.{_LABEL})*")
_HOST = re.compile(r"[A-Za-z0-9._:\-]+|\[[0-9A-Fa-f:.]+\]")


def _address(value: str) -> str:
    if not _ADDRESS.fullmatch(value) or ".." in value or len(value.encode()) > 200:
        raise ValueError("an address has the form name@domain and at most 200 octets")
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value) or len(value) > 253:
        raise ValueError("a host is a name or an IP address")
    return value


def _name(value: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value) or not normalise(value):
        raise ValueError("a name has at least one visible letter and no control characters")
    return " ".join(value.split())


def _fingerprint(value: str) -> str:
    digits = value.replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ValueError("a fingerprint is the SHA-256 of the certificate: 64 hex digits")
    return digits


def _hash(value: str) -> str:
    if not re.fullmatch(r"\$argon2id\$v=19\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+", value):
        raise ValueError("a password hash is argon2id in PHC form")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        server_of(value)
    except (ValueError, Permanent):
        parts = None
    if parts is None or parts.username is not None or parts.password is not None or len(value) > 1000:
        raise ValueError("an endpoint is an https URL without a user name (http: on private addresses only)")
    return value


Address = Annotated[str, AfterValidator(_address)]
Host = Annotated[str, AfterValidator(_host)]
Name = Annotated[str, Field(max_length=100), AfterValidator(_name)]
Port = Annotated[int, Field(ge=1, le=65535)]
Url = Annotated[str, AfterValidator(_url)]
Secret = Annotated[str, Field(min_length=1, max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ServerFields(_Strict):
    """A provider's server. port: default of the TLS mode if left out."""

    host: Host
    port: Port | None = None
    tls: Literal["none", "starttls", "implicit"] = "implicit"
    tls_fingerprint: Annotated[str, AfterValidator(_fingerprint)] | None = None


class SmtpFields(ServerFields):
    """The provider's SMTP server. connections: limit of parallel connections."""

    auth: bool = True
    connections: int = Field(2, ge=1, le=100)


class IssuerFields(_Strict):
    """The endpoints of a provider that is not known by name."""

    token_url: Url
    scope: Annotated[str, Field(min_length=1, max_length=1000)]
    device_url: Url | None = None
    authorize_url: Url | None = None


class OAuthFields(_Strict):
    """Access tokens instead of a password. client_id and client_secret: of the application registered there."""

    issuer: Annotated[
        Annotated[Literal["google", "microsoft"], Tag("known")] | Annotated[IssuerFields, Tag("endpoints")],
        Discriminator(lambda given: "endpoints" if isinstance(given, dict | IssuerFields) else "known"),
    ]
    client_id: Annotated[str, Field(min_length=1, max_length=1000)]
    client_secret: Secret | None = None


class ExternalFields(_Strict):
    """An external account (manual 4.1)."""

    address: Address
    enabled: bool = True
    login: Annotated[str, Field(min_length=1, max_length=320)] | None = None
    password: Secret | None = None
    password_file: str | None = None
    oauth: OAuthFields | None = None
    pop3: ServerFields
    smtp: SmtpFields
    poll_seconds: int = Field(60, ge=1, le=86_400)
    history: Literal["all", "from_now"] = "all"
    delete_after_days: int | None = Field(None, ge=0, le=36_500)
    delete_history: bool = False
    reply_to_author: bool = True
    answer_notes: bool = False
    aliases: list[Address] = []

    @model_validator(mode="after")
    def _complete(self) -> ExternalFields:
        _one_of(self, "password", "password_file", "oauth")
        self.login = self.login or self.address
        for field, kind in ((self.pop3, "pop3"), (self.smtp, "smtp")):
            field.port = field.port or PORTS[kind][field.tls]
        return self


class LocalFields(_Strict):
    """A local account (manual 4.2). external: address of an external account. delegate: address of a sharer."""

    address: Address
    enabled: bool = True
    password: Secret | None = None
    password_file: str | None = None
    password_hash: Annotated[str, AfterValidator(_hash)] | None = None
    user_name: Name
    aliases: list[Name] = []
    addresses: list[Address] = []
    external: Address
    delegate: Address | None = None

    @model_validator(mode="after")
    def _complete(self) -> LocalFields:
        _one_of(self, "password", "password_file", "password_hash")
        return self


class AccountsFile(_Strict):
    """The whole file."""

    external_accounts: list[ExternalFields] = []
    local_accounts: list[LocalFields] = []


def _one_of(fields: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(fields, name) is not None]
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(names)} may be given, not {' and '.join(given)}")


def read_file(path: Path) -> AccountsFile:
    """Read and check an accounts file; paths of password files are relative to it.

    :raises AccountsError: all errors, a line each.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_OCTETS + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise AccountsError([f"{path}: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}"]) from error
    return read_text(text, str(path), path.parent)


def read_text(text: str, where: str, folder: Path | None) -> AccountsFile:
    """Do the same for a text. :param where: the start of each error line. :param folder: as ``check``."""
    data = load_yaml(text, where)
    return check(data if data is not None else {}, where, folder)


def check(data: Any, where: str, folder: Path | None = None) -> AccountsFile:
    """Check the data of a file, a command or a request, and read the password files.

    :param folder: of the password files; None: no file of this machine is allowed.
    :raises AccountsError: all errors, a line each; each line starts with ``where``.
    """
    try:
        accounts = AccountsFile.model_validate(data)
    except ValidationError as error:
        raise AccountsError([f"{where}: {line}" for line in _lines(error, data)]) from error
    problems = []
    for group in ("external_accounts", "local_accounts"):
        for position, fields in enumerate(getattr(accounts, group)):
            if fields.password_file is not None and folder is None:
                problems.append(
                    f"{where}: {group}[{position}].password_file: is for a file beside the accounts file; give the "
                    "password itself"
                )
            elif fields.password_file is not None:
                try:
                    fields.password = (
                        ((folder or Path()) / fields.password_file).read_text(encoding="utf-8").rstrip("\r\n")
                    )
                except (OSError, UnicodeDecodeError) as error:
                    problems.append(
                        f"{where}: {group}[{position}].password_file: {fields.password_file}: "
                        f"{getattr(error, 'strerror', None) or error}"
                    )
                else:
                    if not fields.password:
                        problems.append(f"{where}: {group}[{position}].password_file: {fields.password_file}: is empty")
    if problems:
        raise AccountsError(problems)
    return accounts


_SECRET = re.compile("^password|^client_secret|_url$")
"""Fields whose value no error shows; the path or query of a URL may be a key."""
_WORDS = {
    "bool_type": "has to be true or false",
    "int_type": "has to be a whole number, without quotes",
    "list_type": "has to be a list, for example [one, two]",
    "string_type": "has to be text; put it in quotes",
}


def _lines(error: ValidationError, data: Any) -> Iterator[str]:
    for problem in error.errors():
        path = ""
        location = tuple(part for part in problem["loc"] if part not in ("known", "endpoints"))
        for part in location:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        who = _owner(data, location)
        if problem["type"] == "extra_forbidden":
            yield f"{path}{who}: there is no such field; allowed here are {', '.join(_allowed(problem['loc']))}"
        elif problem["type"] == "missing":
            yield f"{path}{who}: is missing"
        elif problem["type"] == "model_type":
            yield f"{path or 'it'}{who}: is made of the fields {', '.join(_allowed((*problem['loc'], '')))}"
        else:
            secret = any(_SECRET.search(str(part)) for part in location)
            shown = "" if isinstance(problem["input"], dict | list) or secret else f"{problem['input']!r}: "
            words = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
            yield f"{path}{who}: {shown}{words}"


def _owner(data: Any, location: tuple[int | str, ...]) -> str:
    """Return the address of the account that an error is in, for people."""
    try:
        address = data[location[0]][location[1]]["address"]
    except (LookupError, TypeError):
        return ""
    return f" ({address})" if isinstance(address, str) and len(location) > 2 else ""


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = AccountsFile
    steps: dict[str, type[BaseModel]] = {
        "external_accounts": ExternalFields,
        "local_accounts": LocalFields,
        "pop3": ServerFields,
        "smtp": SmtpFields,
        "oauth": OAuthFields,
        "issuer": IssuerFields,
    }
    for part in location[:-1]:
        model = steps.get(str(part), model)
    return list(model.model_fields)
