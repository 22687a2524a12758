"""Dovecot's configuration file, in both of its languages: the one up to 2.3 (Debian 12), the one from 2.4 (Debian 13).

2.4 refuses a file that does not begin with the version it was written for, and has other names for most settings of
users, mailboxes and TLS. The long variable ``%{user}`` is known to both.
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
"""In a path: the name that a user logs in with."""

_NEW_LANGUAGE = (2, 4)
_NEW_LANGUAGE_VERSION = "2.4.0"
"""The version that files in the new language are written for: settings keep the defaults of it in later versions."""


@dataclass(frozen=True, slots=True)
class Pop3Server:
    """One Dovecot: POP3 on loopback, Maildirs of one system user, logins in the clear, no delay after a wrong password.

    run: for its sockets and state; ``auth-client`` in it answers Postfix about logins.
    port: plain, and STLS if there is a certificate. tls_port: implicit TLS; 0: none.
    certificate: PEM, with its key.
    passwords: a passwd-file, or one of each user, with ``USER`` in its path.
    home, maildir: of a user, with ``USER`` in the path. mail_user: the owner of all mail.
    connections: of one user, at once: a limit.
    settings: lines with more settings, of those that have one name in both languages.
    limits: by service, settings of its processes and clients that have one name in both languages.
    connections_a_process: by service, after how many connections a new process replaces the old one; None: never.
    """

    run: Path
    log: Path
    port: int
    passwords: str
    home: str
    maildir: str
    mail_user: str
    connections: int
    tls_port: int = 0
    certificate: Path | None = None
    mechanisms: str = "plain"
    settings: Sequence[str] = ()
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    connections_a_process: Mapping[str, int | None] = field(default_factory=dict)


def configuration(server: Pop3Server, version: tuple[int, int]) -> str:
    """dovecot.conf for a Dovecot of this version. A pure function."""
    new = version >= _NEW_LANGUAGE
    return "\n".join([*(_since_2_4(server) if new else _until_2_3(server)), *_in_both(server, new), ""])


def installed_version() -> tuple[int, int]:
    """Major and minor version of the Dovecot on this machine. :raises Permanent: there is none."""
    try:
        done = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True, env={"PATH": PATH})
    except (OSError, subprocess.CalledProcessError) as error:
        raise Permanent(f"dovecot --version: {error}; is dovecot-pop3d installed?") from error
    return version_in(done.stdout)


def version_in(text: str) -> tuple[int, int]:
    """Major and minor version in what ``dovecot --version`` prints: ``2.3.19.1 (9b53102964)``.

    :raises Permanent: there is none.
    """
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise Permanent(f"dovecot --version says {text!r}")
    return int(found[1]), int(found[2])


def _until_2_3(server: Pop3Server) -> list[str]:
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


def _since_2_4(server: Pop3Server) -> list[str]:
    tls = [f"ssl_server_cert_file = {server.certificate}", f"ssl_server_key_file = {server.certificate}"]
    fields = {"uid": server.mail_user, "gid": server.mail_user, "home": server.home}
    return [
        f"dovecot_config_version = {_NEW_LANGUAGE_VERSION}",
        f"dovecot_storage_version = {_NEW_LANGUAGE_VERSION}",
        *(tls if server.certificate else []),
        "auth_allow_cleartext = yes",
        "mail_driver = maildir",
        f"mail_path = {server.maildir}",
        *_block("passdb passwd-file", f"passwd_file_path = {server.passwords}", f"auth_username_format = {USER}"),
        *_block("userdb static", *_block("fields", *(f"{name} = {value}" for name, value in fields.items()))),
    ]


def _in_both(server: Pop3Server, new: bool) -> list[str]:
    setting, never = ("restart_request_count", "unlimited") if new else ("service_count", 0)
    services: dict[str, list[str]] = {
        "pop3-login": [
            *_block("inet_listener pop3", f"port = {server.port}"),
            *_block("inet_listener pop3s", f"port = {server.tls_port}"),
        ],
        # Otherwise it makes an address that has sent wrong passwords wait, and every client here has the same one.
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
        "protocols = pop3",
        "listen = 127.0.0.1",
        f"ssl = {'yes' if server.certificate else 'no'}",
        f"auth_mechanisms = {server.mechanisms}",
        "auth_failure_delay = 0",
        "first_valid_uid = 1",
        "pop3_no_flag_updates = yes",
        "stats_writer_socket_path =",
        *server.settings,
        *(line for name, lines in services.items() for line in _block(f"service {name}", *lines)),
        *_block("protocol pop3", f"mail_max_userip_connections = {server.connections}"),
    ]


def _block(name: str, *lines: str) -> list[str]:
    return [f"{name} {{", *(f"  {line}" for line in lines), "}"]
