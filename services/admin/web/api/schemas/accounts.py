"""Schemas of accounts: external and local ones, and their providers."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.admin.accounts.file_format import Address, LocalFields, Name
from services.admin.web.api.schemas.common import ChangeLines, ResponseModel
from services.admin.web.api.schemas.users import SessionEntry


class ExternalAccount(ResponseModel):
    """An external account as in the accounts file, without its password or key. It has one of ``pop3`` and ``imap``.

    oauth: missing for an account that logs in with a password. smtp: a list, if there are several SMTP servers.
    """

    address: str = Field(examples=["support@company.com"])
    enabled: bool
    login: str = Field(examples=["support@company.com"])
    oauth: dict[str, Any] | None = Field(
        None,
        examples=[{"grant": "client_credentials", "issuer": "microsoft", "client_id": "us", "tenant": "company.com"}],
    )
    pop3: dict[str, Any] | None = Field(None, examples=[{"host": "pop3.company.com", "port": 995, "tls": "implicit"}])
    imap: dict[str, Any] | None = Field(
        None, examples=[{"host": "imap.company.com", "port": 993, "tls": "implicit", "folders": ["INBOX"]}]
    )
    smtp: dict[str, Any] | list[dict[str, Any]] = Field(
        examples=[{"host": "smtp.company.com", "port": 465, "tls": "implicit", "auth": True}]
    )
    poll_seconds: int = Field(examples=[60])
    history: Literal["all", "from_now"]
    delete_after_days: int | None
    delete_history: bool
    reply_to_author: bool
    answer_notes: bool
    reply_tag: bool
    hold: bool
    aliases: list[str]


class LocalAccount(ResponseModel):
    """A local account as in the accounts file, without its password."""

    address: str = Field(examples=["alex@local.com"])
    enabled: bool
    user_name: str = Field(examples=["Alex"])
    aliases: list[str]
    addresses: list[str]
    external: str | None = Field(examples=["support@company.com"])
    delegate: str | None
    junk: bool
    language: str | None = Field(examples=["de"], description="Of notices to the person; null: the setting LANGUAGE.")


class SkippedMailEntry(BaseModel):
    """A skipped mail, which stays at the provider. next_try_at: null: only an operator retries it."""

    id: int
    uidl: str
    octets: int | None
    reason: str
    tries: int
    since: datetime.datetime
    next_try_at: datetime.datetime | None
    acknowledged_at: datetime.datetime | None


class FoundAuthors(BaseModel):
    """How the answers of the last ``days`` found their authors: mails, by the way.

    reference: In-Reply-To or References; report: a notice about a mail of ours; nobody: they went to everybody.
    """

    days: int = Field(examples=[30])
    name: int
    tag: int
    reference: int
    report: int
    nobody: int


class TagProbeState(BaseModel):
    """The latest probe mail for reply tags. result: null until it comes back. text: for people.

    arrived: with its tag; untagged: without it; refused: the provider delivers no mail to such an address; failed: the
    mail did not leave. reply: why, of the provider.
    """

    sent_at: datetime.datetime | None
    result: Literal["arrived", "untagged", "refused", "failed"] | None
    result_at: datetime.datetime | None
    reply: str
    text: str = Field(examples=["No probe mail was sent yet"])


class LastLoginEntry(BaseModel):
    """The last login of a mail client. peer: its IP address."""

    protocol: Literal["imap", "pop3", "smtp"]
    at: datetime.datetime
    peer: str = Field(examples=["192.168.0.17"])


class AccountLogins(BaseModel):
    """Logins of a local account. last: of mail clients, written every few minutes; sessions: of the console."""

    last: list[LastLoginEntry]
    sessions: list[SessionEntry]


class LocalRequest(LocalFields):
    """A local account as in the accounts file. generate_password: set a random password, and return it."""

    generate_password: bool = False


class LocalChange(ChangeLines):
    """The changes, one line each. password: the generated one; missing if none was asked for."""

    password: str | None = Field(None, examples=["kPqzv7Rm4wXcNdha"])


class RefusedCertificate(BaseModel):
    """A certificate that is not trusted, or not the pinned one. fingerprint: SHA-256; names: that it is for."""

    server: Literal["pop3", "imap", "smtp", "smtp[1]", "smtp[2]"]
    fingerprint: str
    subject: str
    issuer: str
    names: list[str]
    valid_from: datetime.datetime | None = None  # missing if the certificate cannot be read
    valid_until: datetime.datetime | None = None


class ConnectionCheckStep(BaseModel):
    """A step of the test of an account. mails: at the provider, of the step that counts them."""

    step: str = Field(examples=["POP3: log in"])
    ok: bool
    result: str = Field(examples=["as support@company.com"])
    seconds: float
    mails: int | None = None
    certificate: RefusedCertificate | None = None


class AuthorizationState(BaseModel):
    """The state of an OAuth authorization. flow, url and user_code are set while it waits for the user's consent.

    flow `device`: the user types the code at the page (RFC 8628). flow `browser`: the provider redirects the browser;
    if that page is unreachable, pass its address to `answer`. words: why the authorization or the latest poll failed.
    """

    state: Literal["waits", "authorized", "failed"]
    flow: Literal["device", "browser"] | None
    url: str = Field(examples=["https://microsoft.com/devicelogin"])
    user_code: str = Field(examples=["ABCD-EFGH"])
    words: str
    begun_by: str = Field(examples=["token script"])
    begun_at: datetime.datetime
    ends_at: datetime.datetime


class RedirectAddress(BaseModel):
    """The redirect address to which the provider sent the browser."""

    model_config = ConfigDict(extra="forbid")
    url: Annotated[
        str,
        Field(max_length=8000, pattern=r"^[^\x00]*$", examples=["http://127.0.0.1:8080/authorized?state=x&code=y"]),
    ]


class RetirementRequest(BaseModel):
    """What becomes of a person's mail and account.

    mailbox_to: gets a copy of every mail. delegate: gets future mail. then: what becomes of the account.
    """

    model_config = ConfigDict(extra="forbid")
    mailbox_to: Address | None = Field(None, examples=["jim@local.com"])
    delegate: Address | None = Field(None, examples=["jim@local.com"])
    then: Literal["disable", "remove", "keep"] = "disable"


class NewName(BaseModel):
    """A further name of a local account."""

    model_config = ConfigDict(extra="forbid")
    name: Name = Field(examples=["Alexander"])


class Colleague(BaseModel):
    """The local account that gets the mail of another one."""

    model_config = ConfigDict(extra="forbid")
    to: Address = Field(examples=["jim@local.com"])


class RemovedAccount(BaseModel):
    """A removed local account that can be restored."""

    address: str = Field(examples=["alex@local.com"])
    user_name: str = Field(examples=["Alex"])
    removed_at: datetime.datetime


class HistoryProgress(BaseModel):
    """How much of the mail that was at the provider at the first contact is fetched: mails.

    total: null before the first contact. wanted: `history` is `all`. done: nothing of it is left to fetch.
    """

    wanted: bool
    fetched: int
    total: int | None
    done: bool
