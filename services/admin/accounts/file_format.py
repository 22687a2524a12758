"""The accounts file (YAML 1.2, so JSON too): its fields with defaults and limits.

This module checks all that needs no database; ``services.admin.accounts.plan`` checks the rest.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.admin.accounts.errors import AccountProblem, AccountsError, Kind
from services.admin.accounts.field_problems import find_problems, find_unknown_name, show_value
from services.admin.accounts.oauth_rules import MAX_KEY_OCTETS, check_field, check_tenant_name, read_key_file
from services.admin.accounts.yaml_text import MAX_OCTETS, find_places, load_yaml
from shared.errors import Permanent
from shared.languages import translation
from shared.mime.display_names import normalise
from shared.model import INBOX, FetchProtocol, GrantType, compared_host
from shared.net.http_client import server_of

PORTS = {
    "pop3": {"none": 110, "starttls": 110, "implicit": 995},
    "imap": {"none": 143, "starttls": 143, "implicit": 993},
    "smtp": {"none": 25, "starttls": 587, "implicit": 465},
}
MAX_RELAYS = 3
"""Limit of the SMTP servers of one account: servers; each has fields of its own on the console's page."""
MAX_FOLDERS = 20
"""Limit of the folders that are fetched from one account: folders; each is opened in turn by every poll."""
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


def _folder(value: str) -> str:
    """Return the name in Net-Unicode (RFC 5198), which IMAP wants (RFC 9051 section 5.1)."""
    name = unicodedata.normalize("NFC", value)
    if not name.strip() or any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
        raise ValueError("a folder is named by at least one visible character, without control characters")
    return INBOX if name.upper() == INBOX else name


def _folders(value: list[str]) -> list[str]:
    if not 1 <= len(value) <= MAX_FOLDERS:
        raise ValueError(f"from 1 to {MAX_FOLDERS} folders are allowed")
    if twice := [name for number, name in enumerate(value) if name in value[:number]]:
        raise ValueError(f"{show_value(twice[0])} is named twice")
    return value


def _sent(value: bool | str) -> bool | str:
    if value == INBOX:
        raise ValueError("sent mail is not put into the INBOX; name another folder, or true for the provider's")
    return value


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
Folder = Annotated[str, Field(max_length=200), AfterValidator(_folder)]
Port = Annotated[int, Field(ge=1, le=65535)]
Url = Annotated[str, AfterValidator(_url)]
Secret = Annotated[str, Field(min_length=1, max_length=1000)]
Tenant = Annotated[str, AfterValidator(check_tenant_name)]
Login = Annotated[str, Field(min_length=1, max_length=320)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ServerFields(_Strict):
    """A provider's server. port: default of the TLS mode if left out."""

    host: Host
    port: Port | None = None
    tls: Literal["none", "starttls", "implicit"] = "implicit"
    tls_fingerprint: Annotated[str, AfterValidator(_fingerprint)] | None = None


class ImapFields(ServerFields):
    """The provider's IMAP server. folders: their mail is fetched; names as people write them.

    answered: mark what was answered. sent: file a copy of sent mail; true: in the folder that is marked for it.
    """

    folders: Annotated[list[Folder], AfterValidator(_folders)] = [INBOX]
    answered: bool = False
    sent: Annotated[bool | Folder, AfterValidator(_sent)] = False


class RelayTokenFields(_Strict):
    """Access tokens for a login of its own. same_as: address of the external account that has them."""

    same_as: Address


class SmtpFields(ServerFields):
    """An SMTP server of the provider, or of another one. connections: limit of parallel connections.

    login, password, oauth: where they differ from the account's. mails_per_minute, recipients_per_day: limits of the
    provider.
    """

    auth: bool = True
    connections: int = Field(2, ge=1, le=100)
    login: Login | None = None
    password: Secret | None = None
    password_file: str | None = None
    oauth: RelayTokenFields | None = None
    mails_per_minute: int | None = Field(None, ge=1, le=100_000)
    recipients_per_day: int | None = Field(None, ge=1, le=10_000_000)

    @field_validator("login")
    @classmethod
    def _needs_auth(cls, login: str | None, info: ValidationInfo) -> str | None:
        if login is not None and info.data.get("auth") is False:
            raise ValueError("auth is false, so nobody logs in; leave one of them out")
        return login

    @field_validator("password", "password_file", "oauth")
    @classmethod
    def _needs_login(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("login", "") is None:
            raise ValueError("login is missing beside it; without both, the account's login and password are used")
        return value

    @model_validator(mode="after")
    def _complete(self) -> SmtpFields:
        _one_of(self, "password", "password_file", "oauth")
        self.port = self.port or PORTS["smtp"][self.tls]
        return self

    @property
    def place(self) -> tuple[str, int | None, str | None]:
        """What distinguishes it from the account's other servers."""
        return compared_host(self.host), self.port, self.login


def _relays(value: list[SmtpFields]) -> list[SmtpFields]:
    if not 1 <= len(value) <= MAX_RELAYS:
        raise ValueError(f"from 1 to {MAX_RELAYS} SMTP servers are allowed")
    places = [relay.place for relay in value]
    if twice := [relay for number, relay in enumerate(value) if relay.place in places[:number]]:
        raise ValueError(f"{twice[0].host}, port {twice[0].port}, is named twice")
    return value


class IssuerFields(_Strict):
    """The endpoints of a provider that is not known by name."""

    token_url: Url
    scope: Annotated[str, Field(min_length=1, max_length=1000)]
    device_url: Url | None = None
    authorize_url: Url | None = None


class OAuthFields(_Strict):
    """Access tokens instead of a password. client_id, client_secret, client_key: of the application registered there.

    same_as: address of another account, whose tokens are used; without the other fields. The rules of the others are in
    ``oauth_rules``. client_key: PEM, after the check.
    """

    same_as: Address | None = None
    grant: GrantType = "authorization"
    issuer: Annotated[
        Annotated[
            Annotated[Literal["google", "microsoft"], Tag("known")] | Annotated[IssuerFields, Tag("endpoints")],
            Discriminator(lambda given: "endpoints" if isinstance(given, dict | IssuerFields) else "known"),
        ]
        | None,
        Field(validate_default=True),
    ] = None
    client_id: Annotated[Annotated[str, Field(min_length=1, max_length=1000)] | None, Field(validate_default=True)] = (
        None
    )
    client_secret: Secret | None = None
    client_key: Annotated[str, Field(min_length=1, max_length=MAX_KEY_OCTETS)] | None = None
    client_key_file: str | None = None
    tenant: Annotated[Tenant | None, Field(validate_default=True)] = None

    @field_validator("grant", "issuer", "client_id", "client_secret", "client_key", "client_key_file", "tenant")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        return check_field(str(info.field_name), value, info.data)


class ExternalFields(_Strict):
    """An external account (manual 4.1). Mail is fetched from one of the servers ``imap`` and ``pop3``.

    smtp: the server through which it sends, or several: each is used while those before it do not work, or are full.
    renamed_from: the address that the account had until now.
    """

    address: Address
    renamed_from: Address | None = None
    enabled: bool = True
    login: Login | None = None
    password: Secret | None = None
    password_file: str | None = None
    oauth: OAuthFields | None = None
    imap: ImapFields | None = None
    pop3: Annotated[ServerFields | None, Field(validate_default=True)] = None
    smtp: Annotated[
        Annotated[SmtpFields, Tag("one")] | Annotated[list[SmtpFields], AfterValidator(_relays), Tag("several")],
        Discriminator(lambda given: "several" if isinstance(given, list) else "one"),
    ]
    poll_seconds: int = Field(60, ge=1, le=86_400)
    history: Literal["all", "from_now"] = "all"
    delete_after_days: int | None = Field(None, ge=0, le=36_500)
    delete_history: bool = False
    reply_to_author: bool = True
    answer_notes: bool = False
    reply_tag: bool = False
    hold: bool | None = None  # None: as it is stored; false for a new account
    aliases: list[Address] = []

    @field_validator("pop3")
    @classmethod
    def _one_protocol(cls, pop3: ServerFields | None, info: ValidationInfo) -> ServerFields | None:
        if "imap" not in info.data:  # it is given, with a problem of its own
            return pop3
        imap = info.data["imap"]
        if pop3 is None and imap is None:
            raise ValueError("is missing, and imap, too: one of them names the server from which mail is fetched")
        if pop3 is not None and imap is not None:
            raise ValueError("imap is given, too; mail is fetched from one of them")
        return pop3

    @model_validator(mode="after")
    def _complete(self) -> ExternalFields:
        _one_of(self, "password", "password_file", "oauth")
        self.login = self.login or self.address
        for server, kind in ((self.pop3, "pop3"), (self.imap, "imap")):
            if server is not None:
                server.port = server.port or PORTS[kind][server.tls]
        return self

    @property
    def protocol(self) -> FetchProtocol:
        """The protocol by which mail is fetched."""
        return "pop3" if self.imap is None else "imap"

    @property
    def incoming(self) -> ServerFields:
        """The server from which mail is fetched."""
        server = self.imap or self.pop3
        assert server is not None, "_one_protocol has checked that"
        return server

    @property
    def relays(self) -> list[SmtpFields]:
        """The SMTP servers, in their order."""
        return self.smtp if isinstance(self.smtp, list) else [self.smtp]

    def relay_field(self, position: int, name: str) -> tuple[str | int, ...]:
        """Return a field of an SMTP server as the path of a problem."""
        return ("smtp", position, name) if isinstance(self.smtp, list) else ("smtp", name)


class LocalFields(_Strict):
    """A local account (manual 4.2). external: address of an external account. delegate: address of a sharer.

    junk: junk mail goes into the folder Junk. language: of mails that mailgroup writes to the person; null: the
    setting LANGUAGE. An entry without it keeps the stored one, which the person may have chosen. renamed_from: the
    address that the account had until now.
    """

    address: Address
    renamed_from: Address | None = None
    enabled: bool = True
    password: Secret | None = None
    password_file: str | None = None
    password_hash: Annotated[str, AfterValidator(_hash)] | None = None
    user_name: Name
    aliases: list[Name] = []
    addresses: list[Address] = []
    external: Address
    delegate: Address | None = None
    junk: bool = False
    language: Annotated[str, AfterValidator(translation.check_code)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> LocalFields:
        _one_of(self, "password", "password_file", "password_hash")
        return self


@dataclass(slots=True)
class AccountsFile:
    """The whole file. ``services.admin.accounts.apply`` refuses one with problems, and reports its own with them."""

    external_accounts: list[ExternalFields] = field(default_factory=list)
    local_accounts: list[LocalFields] = field(default_factory=list)
    indexes: dict[tuple[Kind, str], int] = field(default_factory=dict)  # of each entry, by its folded address
    problems: list[AccountProblem] = field(default_factory=list)  # their entries are in neither list
    refused: dict[Kind, dict[str, str]] = field(default_factory=lambda: {"external": {}, "local": {}})
    # the addresses of those entries, by the folded ones
    name: str = ""  # of the file, for errors; "" for fields of a command, a form or a request
    text: str | None = None  # of the file: gives problems their lines

    def locate(self, problems: Sequence[AccountProblem]) -> list[AccountProblem]:
        """Return the problems with their places in the file, in its order."""
        found = [
            replace(each, index=self.indexes.get((each.kind, each.address.casefold())))
            if each.kind is not None and each.index is None
            else each
            for each in problems
        ]
        places = find_places(self.text, found) if self.text else [""] * len(found)
        located = [
            replace(each, where=": ".join(part for part in (self.name, place) if part))
            for each, place in zip(found, places, strict=True)
        ]
        order = sorted(range(len(located)), key=lambda i: [int(digits) for digits in re.findall(r"\d+", places[i])])
        return [located[i] for i in order]

    def require_valid(self) -> AccountsFile:
        """Return the file. :raises AccountsError: it has problems."""
        if self.problems:
            raise AccountsError(self.locate(self.problems))
        return self


def _one_of(fields: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(fields, name) is not None]
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(names)} may be given, not {' and '.join(given)}")


def read_file(path: Path) -> AccountsFile:
    """Read an accounts file; paths of password files are relative to it. The problems of fields are in the result.

    :raises AccountsError: it cannot be read, or is not YAML.
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
    found = _read(data if data is not None else {}, folder)
    found.name, found.text = where, text
    return found


def check(data: Any, where: str = "", folder: Path | None = None) -> AccountsFile:
    """Check the data of a command, a form or a request, and read the password files.

    :param where: the start of each error line. :param folder: of the password files; None: no file of this machine is
        allowed.
    :raises AccountsError: with all problems.
    """
    found = _read(data, folder)
    found.name = where
    return found.require_valid()


def _read(data: Any, folder: Path | None) -> AccountsFile:
    found = AccountsFile()
    groups: tuple[tuple[Kind, type[ExternalFields] | type[LocalFields], list[Any]], ...] = (
        ("external", ExternalFields, found.external_accounts),
        ("local", LocalFields, found.local_accounts),
    )
    names = [f"{kind}_accounts" for kind, _, _ in groups]
    if not isinstance(data, dict):
        found.problems.append(AccountProblem(f"is made of the fields {', '.join(names)}"))
        return found
    found.problems += [find_unknown_name(name, names) for name in data if name not in names]
    for kind, model, accepted in groups:
        entries = data.get(f"{kind}_accounts", [])
        if not isinstance(entries, list):
            found.problems.append(
                AccountProblem("is not a list of accounts", field=(f"{kind}_accounts",), value=show_value(entries))
            )
            continue
        for index, entry in enumerate(entries):
            problems = _read_entry(kind, model, index, entry, folder, accepted)
            found.problems += problems
            address = entry.get("address") if isinstance(entry, dict) else None
            if isinstance(address, str):
                found.indexes[kind, address.casefold()] = index
                if problems:
                    found.refused[kind][address.casefold()] = address
    return found


def _read_entry(
    kind: Kind,
    model: type[ExternalFields] | type[LocalFields],
    index: int,
    entry: Any,
    folder: Path | None,
    accepted: list[Any],
) -> list[AccountProblem]:
    """Check one account, and add it to ``accepted`` unless it has problems. :return: the problems."""
    try:
        fields = model.model_validate(entry)
    except ValidationError as error:
        return find_problems(error, model, kind, index, entry)
    secrets: list[tuple[ExternalFields | LocalFields | SmtpFields, tuple[str | int, ...]]] = [
        (fields, ("password_file",))
    ]
    if isinstance(fields, ExternalFields):
        secrets += [(relay, fields.relay_field(at, "password_file")) for at, relay in enumerate(fields.relays)]
    for owner, path in secrets:
        if why := _read_password_file(owner, folder):
            return [AccountProblem(why, kind, index, fields.address, path, owner.password_file or "")]
    if isinstance(fields, ExternalFields) and fields.oauth is not None and (name := fields.oauth.client_key_file):
        try:
            fields.oauth.client_key = read_key_file(folder, name, fields.oauth.client_id)
        except ValueError as error:
            return [AccountProblem(str(error), kind, index, fields.address, ("oauth", "client_key_file"), name)]
    accepted.append(fields)
    return []


def _read_password_file(fields: ExternalFields | LocalFields | SmtpFields, folder: Path | None) -> str | None:
    """Set the password to the content of the password file. :return: why that is not possible."""
    if fields.password_file is None:
        return None
    if folder is None:
        return "is for a file beside the accounts file; give the password itself"
    try:
        fields.password = (folder / fields.password_file).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    return None if fields.password else "is empty"
