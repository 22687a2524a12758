"""The settings of every process: environment variables with the prefix ``MAILGROUP_``, read once, in main.

``MAILGROUP_NAME_FILE`` names a file that holds the value of ``MAILGROUP_NAME`` (for secrets). A flag goes before the
environment, the environment before the file, the file before what a running ``up`` wrote into ``DATA/run.json``.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "MAILGROUP_"
SERVICES = ("fetcher", "router", "mailbox", "pop3_out", "smtp_in", "sender", "admin")
"""In the order of their metrics ports, counted from METRICS_PORT."""
ANYWHERE = ("0.0.0.0", "::")
"""Values of BIND that name no address but all of them."""
HOST = r"^[A-Za-z0-9_.:-]{1,253}$"
"""A host name or an IP address, roughly: nothing that has a meaning elsewhere."""


class SettingsError(ValueError):
    """A setting has a value that is not allowed. The message names the setting, the value and what is allowed."""


class _FileSource(PydanticBaseSettingsSource):
    """Values from the files that MAILGROUP_<NAME>_FILE name, for any setting that is no file name itself."""

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
    """What the running ``up`` of the same data folder wrote down for other commands."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the whole file is read at once, below

    def __call__(self) -> dict[str, Any]:
        folder = Path(self.current_state.get("data") or Settings.model_fields["data"].default)
        try:
            if not is_up(folder):
                return {}  # a killed ``up`` leaves its file behind
            settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError):
            return {}
        return {str(name): value for name, value in settings.items()}


def is_up(folder: Path) -> bool:
    """Whether an ``up`` runs on this data folder: it holds the lock on ``up.lock`` as long as it lives."""
    try:
        with (folder / "up.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read_hosts(value: object) -> object:
    """``no``, ``yes``, or host names with commas between them."""
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
"""Which providers' servers may stand on private addresses: all (True), none (False), or those of these names."""


class Settings(BaseSettings):
    """What the environment, files and flags set. Ports are TCP ports; 0 is not allowed.

    service_host: where commands find a service's metrics port, with its name for ``{name}``, or for ``{host}`` (the
    same with ``-`` for ``_``, which host names do not have); None: at ``bind``.
    max_connections_per_account: for each protocol. pop3_login_delay: seconds that a mail client has to wait between two
    logins (RFC 2449 section 6.5); 0: none.
    metrics_bind: where the pages of metrics and health are served; None: at ``bind``.
    proxy_from: addresses and networks, with commas between, whose connections to the mail ports begin with a header of
    the PROXY protocol.
    admin_bind: where the console listens. admin_tls: auto is yes unless that is a loopback address.
    trusted_proxies: addresses whose X-Forwarded-For and X-Forwarded-Proto the console believes, with commas between.
    mail_host: the host name or address by which mail clients reach the mail ports; None: see ``host_for_clients``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=False)

    data: Path = Path(__file__).resolve().parent.parent / "data"
    database_url: str | None = None
    broker_url: str | None = None
    secret_key: str | None = None
    admin_password: str | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    bind: str = "127.0.0.1"
    service_host: str | None = None
    mail_host: str | None = Field(None, pattern=HOST)
    pop3_port: int = Field(1110, ge=1, le=65535)
    pop3s_port: int = Field(1995, ge=1, le=65535)
    smtp_port: int = Field(1025, ge=1, le=65535)
    submission_port: int = Field(1587, ge=1, le=65535)
    smtps_port: int = Field(1465, ge=1, le=65535)
    admin_bind: str = "127.0.0.1"
    admin_port: int = Field(8080, ge=1, le=65535)
    admin_tls: Literal["auto", "yes", "no"] = "auto"
    trusted_proxies: str = "127.0.0.1,::1"
    metrics_bind: str | None = None
    metrics_port: int = Field(9101, ge=1, le=65535 - len(SERVICES))
    allow_plaintext_auth: Literal["auto", "yes", "no"] = "auto"
    allow_private_upstream: PrivateHosts = False
    max_message_bytes: int = Field(52_428_800, ge=1024)
    max_connections_per_address: int = Field(100, ge=1)
    max_connections_per_account: int = Field(50, ge=1)
    pop3_login_delay: int = Field(0, ge=0)
    proxy_from: str = ""
    retention_days: int = Field(14, ge=1)
    alert_to: str | None = None
    alert_webhook: str | None = None
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
        _networks(text)
        return text

    @property
    def proxies(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """What ``proxy_from`` names."""
        return _networks(self.proxy_from)

    @property
    def console_has_tls(self) -> bool:
        """Whether the console speaks https by itself: passwords cross no network in clear unless somebody says so."""
        return self.admin_tls == "yes" or (self.admin_tls == "auto" and not is_loopback(self.admin_bind))

    @property
    def metrics_host(self) -> str:
        """Where the pages of metrics and health are served."""
        return self.metrics_bind or self.bind

    def metrics_port_of(self, service: str) -> int:
        """The port of a service's /metrics, /livez and /readyz."""
        return self.metrics_port + SERVICES.index(service)

    def host_for_clients(self, seen_as: str | None = None) -> str:
        """The host name or address to write into a mail client.

        :param seen_as: by which name somebody reached this machine just now. It counts only where nobody has said one:
            a service that listens on every address cannot know which of them the clients use.
        """
        if self.mail_host is not None:
            return self.mail_host
        return self.bind if self.bind not in ANYWHERE else seen_as or socket.gethostname()


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(word.strip()) for word in text.split(",") if word.strip())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_WORDS = {
    "bool_parsing": "has to be yes or no",
    "int_parsing": "has to be a whole number",
    "float_parsing": "has to be a number",
}


def load(**flags: Any) -> Settings:
    """Read the settings; ``flags`` (None left out) go before everything else.

    :raises SettingsError: naming the setting, the value and what is allowed.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = PREFIX + "_".join(str(part) for part in problem["loc"]).upper()
            shown = "(secret)" if any(word in name for word in ("KEY", "PASSWORD", "URL")) else repr(problem["input"])
            lines.append(
                f"{name}: {shown}: {_WORDS.get(problem['type'], problem['msg'].removeprefix('Value error, '))}"
            )
        raise SettingsError("; ".join(lines)) from error
