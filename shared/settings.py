"""The settings of every process: environment variables with the prefix ``MAILGROUP_``, read once, in main.

``MAILGROUP_NAME_FILE`` names a file with the value of ``MAILGROUP_NAME`` (for secrets). Precedence: flag, environment,
file, and last ``DATA/run.json`` of a running ``up``.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from shared.data_folder import is_up
from shared.errors import SettingsError as SettingsError
from shared.field_errors import describe_error
from shared.languages import translation

PREFIX = "MAILGROUP_"
SERVICES = ("fetcher", "router", "mailbox", "pop3_out", "smtp_in", "sender", "admin", "imap_out")
"""The services in the order of their metrics ports, from METRICS_PORT."""
SECRET_READERS = {
    "secret_key": ("fetcher", "sender", "admin"),
    "admin_password": ("admin",),
    "alert_webhook": ("admin",),
}
"""The secrets that not every service needs, and the services that do. No other service gets them: an attacker
who takes over a service that mail clients reach finds no provider's password there. All services need DATABASE_URL and
BROKER_URL."""
ANYWHERE = ("0.0.0.0", "::")
"""Values of BIND for all addresses."""
HOST = r"^[A-Za-z0-9_.:-]{1,253}$"
"""Pattern of a host name or an IP address, roughly: without characters that are special in other formats."""
EHLO_NAME = r"^([A-Za-z0-9](-*[A-Za-z0-9])*(\.[A-Za-z0-9](-*[A-Za-z0-9])*)+|\[[0-9A-Za-z.:]+\])$"
"""Pattern of a fully qualified host name or an address literal (RFC 5321 section 4.1.2)."""


class _FileSource(PydanticBaseSettingsSource):
    """Reads values from the files that MAILGROUP_<NAME>_FILE name."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        if path is None:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except OSError as error:
            raise SettingsError(f"{PREFIX}{field_name.upper()}_FILE: {path}: {error.strerror}") from error

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class _RunFileSource(PydanticBaseSettingsSource):
    """Reads the values that the running ``up`` of the same data folder stored for other commands."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the whole file is read at once, below

    def __call__(self) -> dict[str, Any]:
        folder = Path(self.current_state.get("data") or Settings.model_fields["data"].default)
        try:
            if not is_up(folder):
                return {}  # a killed ``up`` leaves its file
            settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError):
            return {}
        return {str(name): value for name, value in settings.items()}


def _read_hosts(value: object) -> object:
    """Parse ``no``, ``yes``, or host names with commas between them."""
    if not isinstance(value, str) or value.strip().lower() in _SWITCHES:
        return _SWITCHES.get(value.strip().lower(), value) if isinstance(value, str) else value
    names = frozenset(name.strip().lower() for name in value.split(",") if name.strip())
    if not all(re.fullmatch(r"[a-z0-9._:-]+", name) for name in names):
        raise ValueError("has to be yes, no, or host names with commas between them")
    return names


_SWITCHES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False, "": False}
PrivateHosts = Annotated[
    bool | frozenset[str],
    NoDecode,
    BeforeValidator(_read_hosts),
    PlainSerializer(lambda hosts: hosts if isinstance(hosts, bool) else ",".join(sorted(hosts)), when_used="json"),
]
"""Providers' servers that may have private addresses: all (True), none (False), or these host names."""


class Settings(BaseSettings):
    """The settings from environment, files and flags. Ports are TCP ports; 0 is not allowed."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=False)

    data: Path = Path(__file__).resolve().parent.parent / "data"
    database_url: str | None = None
    database_connections: int = Field(6, ge=3, le=1000)  # limit of each service
    broker_url: str | None = None
    secret_key: str | None = None
    admin_password: str | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    bind: str = "127.0.0.1"
    # Host of a service's metrics port, for commands; {name} is the service, {host} the same with - for _; None: bind.
    service_host: str | None = None
    mail_host: str | None = Field(None, pattern=HOST)  # for mail clients; None: see host_for_clients
    # For mail clients, where IMAP or SMTP has a name of its own; None: the same as mail_host.
    imap_host: str | None = Field(None, pattern=HOST)
    smtp_host: str | None = Field(None, pattern=HOST)
    pop3_port: int = Field(1110, ge=1, le=65535)
    pop3s_port: int = Field(1995, ge=1, le=65535)
    imap_port: int = Field(1143, ge=1, le=65535)
    imaps_port: int = Field(1993, ge=1, le=65535)
    smtp_port: int = Field(1025, ge=1, le=65535)
    submission_port: int = Field(1587, ge=1, le=65535)
    smtps_port: int = Field(1465, ge=1, le=65535)
    admin_bind: str = "127.0.0.1"  # listening address of the console
    admin_port: int = Field(8080, ge=1, le=65535)
    admin_tls: Literal["auto", "yes", "no"] = "auto"  # auto: yes unless admin_bind is a loopback address
    admin_hosts: str = ""  # further names under which browsers reach the console; with commas
    trusted_proxies: str = "127.0.0.1,::1"  # their X-Forwarded-For and -Proto count for the console; with commas
    metrics_bind: str | None = None  # listening address of metrics and health pages; None: bind
    metrics_port: int = Field(9101, ge=1, le=65535 - len(SERVICES))
    allow_plaintext_auth: Literal["auto", "yes", "no"] = "auto"
    allow_private_upstream: PrivateHosts = False
    # The name of this system for providers' SMTP servers; None: the host name if fully qualified, else the address.
    ehlo_name: str | None = Field(None, pattern=EHLO_NAME, max_length=253)
    max_message_bytes: int = Field(52_428_800, ge=1024)
    max_connections_per_address: int = Field(100, ge=1)
    max_connections_per_account: int = Field(50, ge=1)  # for each protocol
    pop3_login_delay: int = Field(0, ge=0)  # seconds between two logins of a client (RFC 2449 section 6.5)
    proxy_from: str = ""  # addresses and networks that send a PROXY header to the mail ports; with commas
    # Fields that mark junk mail, with ; between them: X-Spam-Flag: YES; X-Spam-Status: Yes*
    junk_headers: str = Field("", max_length=2000)
    language: str = translation.SOURCE  # of mails to people who have chosen none
    retention_days: int = Field(14, ge=1)
    alert_to: str | None = None
    alert_webhook: str | None = None
    # Folder with the pages of Prometheus' alerts; a relative one is that of the checkout.
    runbook_url: str = Field("docs/runbooks", pattern=r"^(https?://[^\s\"{}]+|docs/runbooks)$", max_length=500)
    log_format: Literal["json", "console"] = "json"
    sweep_grace_seconds: float = Field(5.0, gt=0)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _FileSource(settings_cls), _RunFileSource(settings_cls)

    @field_validator("proxy_from")
    @classmethod
    def _read_proxies(cls, text: str) -> str:
        try:
            _networks(text)
        except ValueError as error:
            raise ValueError(
                "has to be addresses or networks such as 192.0.2.0/24, with commas between them"
            ) from error
        return text

    def of_service(self, name: str) -> Settings:
        """Return a copy without the secrets of other services."""
        return self.model_copy(update={secret: None for secret in SECRET_READERS if name not in readers_of(secret)})

    @field_validator("admin_hosts")
    @classmethod
    def _read_admin_hosts(cls, text: str) -> str:
        if not all(re.fullmatch(HOST, name) for name in _words(text)):
            raise ValueError("has to be host names or addresses with commas between them, without ports")
        return text

    @field_validator("language")
    @classmethod
    def _read_language(cls, code: str) -> str:
        if code not in translation.codes():
            raise ValueError(f"has to be one of {', '.join(translation.codes())}")
        return code

    @field_validator("junk_headers")
    @classmethod
    def _read_junk_headers(cls, text: str) -> str:
        _junk_rules(text)
        return text

    @property
    def junk_rules(self) -> dict[str, tuple[str, ...]]:
        """The patterns of ``junk_headers``, by the name of the field in lower case."""
        return _junk_rules(self.junk_headers)

    @property
    def further_hosts(self) -> tuple[str, ...]:
        """The names of ``admin_hosts``."""
        return _words(self.admin_hosts)

    @property
    def proxies(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks of ``proxy_from``."""
        return _networks(self.proxy_from)

    @property
    def console_has_tls(self) -> bool:
        """Whether the console serves https: by default no password crosses a network in clear text."""
        return self.admin_tls == "yes" or (self.admin_tls == "auto" and not is_loopback(self.admin_bind))

    @property
    def metrics_host(self) -> str:
        """The listening address of the metrics and health pages."""
        return self.metrics_bind or self.bind

    def metrics_port_of(self, service: str) -> int:
        """Return the port of a service's /metrics, /livez and /readyz."""
        return self.metrics_port + SERVICES.index(service)

    def host_for_clients(self, seen_as: str | None = None) -> str:
        """Return the host name or address for the configuration of mail clients.

        :param seen_as: the host name of the current request. It is used only without ``mail_host`` and if the services
            listen on all addresses, because the clients' address is then unknown.
        """
        if self.mail_host is not None:
            return self.mail_host
        return self.bind if self.bind not in ANYWHERE else seen_as or socket.gethostname()

    def imap_host_for_clients(self, seen_as: str | None = None) -> str:
        """Return the host of the IMAP server for the configuration of mail clients; as ``host_for_clients``."""
        return self.imap_host or self.host_for_clients(seen_as)

    def smtp_host_for_clients(self, seen_as: str | None = None) -> str:
        """Return the host of the SMTP servers for the configuration of mail clients; as ``host_for_clients``."""
        return self.smtp_host or self.host_for_clients(seen_as)


def readers_of(setting: str) -> tuple[str, ...]:
    """Return the services that read a setting."""
    return SECRET_READERS.get(setting, SERVICES)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(word) for word in _words(text))


def _junk_rules(text: str) -> dict[str, tuple[str, ...]]:
    rules: dict[str, tuple[str, ...]] = {}
    for rule in text.split(";"):
        name, colon, pattern = (part.strip() for part in rule.partition(":"))
        if not rule.strip():
            continue
        if not colon or not re.fullmatch(r"[!-9<-~]+", name) or not pattern.strip("*"):
            raise ValueError(
                "has to be header fields with their values such as X-Spam-Flag: YES, with ; between them; * in a value "
                "stands for any text"
            )
        rules[name.lower()] = (*rules.get(name.lower(), ()), " ".join(pattern.split()))
    return rules


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_FORMS = {
    "MAILGROUP_MAIL_HOST": "has to be a host name or an IP address",
    "MAILGROUP_IMAP_HOST": "has to be a host name or an IP address",
    "MAILGROUP_SMTP_HOST": "has to be a host name or an IP address",
    "MAILGROUP_EHLO_NAME": "has to be a full host name such as mail.company.com, or an address such as [192.0.2.1]",
    "MAILGROUP_RUNBOOK_URL": "has to be a URL that begins with https:// or http://",
}
"""What the settings with a pattern have to be."""


def load(**flags: Any) -> Settings:
    """Read the settings; ``flags`` that are not None have precedence.

    :raises SettingsError: the message names the setting, the value and the allowed values.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = PREFIX + "_".join(str(part) for part in problem["loc"]).upper()
            shown = (
                "(secret)"
                if any(word in name for word in ("KEY", "PASSWORD", "URL", "WEBHOOK"))
                else repr(problem["input"])
            )
            of_form = problem["type"] == "string_pattern_mismatch"
            lines.append(f"{name}: {shown}: {_FORMS[name] if of_form else describe_error(problem)}")
        raise SettingsError("; ".join(lines)) from error
