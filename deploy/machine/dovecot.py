"""Writes Dovecot's configuration in both of its syntaxes: up to 2.3 (Debian 12), and from 2.4 (Debian 13).

Dovecot 2.4 refuses a file that does not begin with a version, and has other names for most settings of users, mailboxes
and TLS. Both know the long variable ``%{user}``.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.machine.programs import PATH
from shared.errors import Permanent

USER = "%{user}"
"""Stands for the user's login name in a path."""

_NEW_SYNTAX = (2, 4)
_NEW_SYNTAX_VERSION = "2.4.0"
"""The version that files in the new syntax name: later versions keep its defaults."""


@dataclass(frozen=True, slots=True)
class DovecotServer:
    """A Dovecot server on loopback: POP3 and perhaps IMAP, Maildirs of one system user, cleartext logins.

    It does not delay the answer to a wrong login.
    """

    run: Path  # folder of its sockets and state; Postfix verifies logins at the socket ``auth-client``
    log: Path
    port: int  # of POP3: plain, with STLS if there is a certificate
    passwords: str  # a passwd-file, or one for each user, with ``USER`` in its path
    home: str  # of a user, with ``USER`` in the path
    maildir: str  # of a user, with ``USER`` in the path
    mail_user: str  # owner of all mail
    connections: int  # limit for one user
    tls_port: int = 0  # implicit TLS; 0: none
    imap_port: int = 0  # plain, with STARTTLS if there is a certificate; 0: no IMAP
    imaps_port: int = 0  # implicit TLS; 0: none
    certificate: Path | None = None  # PEM, with its key
    mechanisms: str = "plain"
    settings: Sequence[str] = ()  # more lines, only settings with the same name in both syntaxes
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of processes and clients, by service
    connections_a_process: Mapping[str, int | None] = field(default_factory=dict)  # by service; None: unlimited


def configuration(server: DovecotServer, version: tuple[int, int]) -> str:
    """Return dovecot.conf for this version of Dovecot. Pure."""
    new = version >= _NEW_SYNTAX
    return "\n".join([*(_since_2_4(server) if new else _until_2_3(server)), *_in_both(server, new), ""])


def installed_version() -> tuple[int, int]:
    """Return major and minor version of the installed Dovecot. :raises Permanent: it is not installed."""
    try:
        done = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True, env={"PATH": PATH})
    except (OSError, subprocess.CalledProcessError) as error:
        raise Permanent(f"dovecot --version: {error}; is dovecot-pop3d installed?") from error
    return version_in(done.stdout)


def version_in(text: str) -> tuple[int, int]:
    """Return major and minor version from the output of ``dovecot --version``: ``2.3.19.1 (9b53102964)``.

    :raises Permanent: the output has no version.
    """
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise Permanent(f"dovecot --version says {text!r}")
    return int(match[1]), int(match[2])


def _until_2_3(server: DovecotServer) -> list[str]:
    tls = [f"ssl_cert = <{server.certificate}", f"ssl_key = <{server.certificate}", "ssl_dh ="]
    return [
        *(tls if server.certificate else []),
        "disable_plaintext_auth = no",
        f"mail_location = maildir:{server.maildir}",
        *_block("passdb", "driver = passwd-file", f"args = username_format={USER} {server.passwords}"),
        *_block(
            "userdb", "driver = static", f"args = uid={server.mail_user} gid={server.mail_user} home={server.home}"
        ),
    ]


def _since_2_4(server: DovecotServer) -> list[str]:
    tls = [f"ssl_server_cert_file = {server.certificate}", f"ssl_server_key_file = {server.certificate}"]
    fields = {"uid": server.mail_user, "gid": server.mail_user, "home": server.home}
    return [
        f"dovecot_config_version = {_NEW_SYNTAX_VERSION}",
        f"dovecot_storage_version = {_NEW_SYNTAX_VERSION}",
        *(tls if server.certificate else []),
        "auth_allow_cleartext = yes",
        "mail_driver = maildir",
        f"mail_path = {server.maildir}",
        *_block("passdb passwd-file", f"passwd_file_path = {server.passwords}", f"auth_username_format = {USER}"),
        *_block("userdb static", *_block("fields", *(f"{name} = {value}" for name, value in fields.items()))),
    ]


def _in_both(server: DovecotServer, new: bool) -> list[str]:
    setting, never = ("restart_request_count", "unlimited") if new else ("service_count", 0)
    services: dict[str, list[str]] = {
        "pop3-login": [
            *_block("inet_listener pop3", f"port = {server.port}"),
            *_block("inet_listener pop3s", f"port = {server.tls_port}"),
        ],
        **_imap_logins(server),
        # Otherwise anvil delays an address after wrong passwords, and all clients here have the same address.
        "anvil": _block("unix_listener anvil-auth-penalty", "mode = 0"),
        "auth": _block("unix_listener auth-client", "mode = 0666"),
    }
    for name, count in server.connections_a_process.items():
        services.setdefault(name, []).append(f"{setting} = {never if count is None else count}")
    for name, limits in server.limits.items():
        services.setdefault(name, []).extend(f"{limit} = {value}" for limit, value in limits.items())
    return [
        f"base_dir = {server.run}",
        f"state_dir = {server.run}",
        f"log_path = {server.log}",
        f"protocols = {'pop3 imap' if server.imap_port else 'pop3'}",
        "listen = 127.0.0.1",
        f"ssl = {'yes' if server.certificate else 'no'}",
        f"auth_mechanisms = {server.mechanisms}",
        "auth_failure_delay = 0",
        "first_valid_uid = 1",
        "pop3_no_flag_updates = yes",
        "stats_writer_socket_path =",
        *server.settings,
        *(line for name, lines in services.items() for line in _block(f"service {name}", *lines)),
        *(
            line
            for protocol in (("pop3", "imap") if server.imap_port else ("pop3",))
            for line in _block(f"protocol {protocol}", f"mail_max_userip_connections = {server.connections}")
        ),
    ]


def _imap_logins(server: DovecotServer) -> dict[str, list[str]]:
    if not server.imap_port:
        return {}
    return {
        "imap-login": [
            *_block("inet_listener imap", f"port = {server.imap_port}"),
            *_block("inet_listener imaps", f"port = {server.imaps_port}"),
        ]
    }


def _block(name: str, *lines: str) -> list[str]:
    return [f"{name} {{", *(f"  {line}" for line in lines), "}"]
