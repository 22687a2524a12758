"""deploy/machine/dovecot.py: one configuration in the two languages of Dovecot's versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.machine.dovecot import USER, DovecotServer, configuration, version_in
from shared.errors import Permanent

SERVER = DovecotServer(
    run=Path("/run/pop3"),
    log=Path("/log"),
    port=110,
    tls_port=995,
    certificate=Path("/tls/server.pem"),
    passwords=f"/users/{USER}",
    home=f"/mail/{USER}",
    maildir=f"/mail/{USER}/Maildir",
    mail_user="mail",
    connections=7,
    mechanisms="plain login",
    settings=("auth_cache_size = 1M",),
    limits={"auth": {"client_limit": 9}},
    connections_a_process={"pop3-login": None, "pop3": 1000},
)
OLD, NEW = (2, 3), (2, 4)


def lines(server: DovecotServer, version: tuple[int, int]) -> list[str]:
    """Without their indents."""
    return [line.strip() for line in configuration(server, version).splitlines()]


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.3.19.1 (9b53102964)\n", (2, 3)), ("2.4.1-4 (7d8c0e5759)\n", (2, 4)), ("2.10.0\n", (2, 10)), ("3.0", (3, 0))],
)
def test_the_version_is_the_first_two_numbers(text: str, version: tuple[int, int]) -> None:
    assert version_in(text) == version


def test_output_without_a_version_is_an_error() -> None:
    with pytest.raises(Permanent, match="unknown"):
        version_in("unknown")


@pytest.mark.parametrize("version", [NEW, (2, 10), (3, 0)])
def test_the_new_language_begins_with_the_version_it_was_written_for(version: tuple[int, int]) -> None:
    # Dovecot 2.4 reads nothing else; a later one keeps the defaults of this version
    assert lines(SERVER, version)[:2] == ["dovecot_config_version = 2.4.0", "dovecot_storage_version = 2.4.0"]


def test_the_old_language_knows_no_such_version() -> None:
    assert "_version" not in configuration(SERVER, OLD)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["ssl_cert = </tls/server.pem"], ["ssl_server_cert_file = /tls/server.pem"]),
        (["ssl_key = </tls/server.pem"], ["ssl_server_key_file = /tls/server.pem"]),
        (["disable_plaintext_auth = no"], ["auth_allow_cleartext = yes"]),
        (
            ["mail_location = maildir:/mail/%{user}/Maildir"],
            ["mail_driver = maildir", "mail_path = /mail/%{user}/Maildir"],
        ),
        (
            ["passdb {", "driver = passwd-file", "args = username_format=%{user} /users/%{user}", "}"],
            ["passdb passwd-file {", "passwd_file_path = /users/%{user}", "auth_username_format = %{user}", "}"],
        ),
        (
            ["userdb {", "driver = static", "args = uid=mail gid=mail home=/mail/%{user}", "}"],
            ["userdb static {", "fields {", "uid = mail", "gid = mail", "home = /mail/%{user}", "}", "}"],
        ),
        (["service pop3 {", "service_count = 1000", "}"], ["service pop3 {", "restart_request_count = 1000", "}"]),
        (["service_count = 0"], ["restart_request_count = unlimited"]),
    ],
)
def test_each_language_has_its_own_words_for_the_same_thing(old: list[str], new: list[str]) -> None:
    for version, wanted, unwanted in ((OLD, old, new), (NEW, new, old)):
        found = lines(SERVER, version)
        at = found.index(wanted[0])
        assert found[at : at + len(wanted)] == wanted
        assert unwanted[0] not in found or unwanted[0] == wanted[0]


@pytest.mark.parametrize("version", [OLD, NEW])
def test_all_other_settings_are_the_same_in_both(version: tuple[int, int]) -> None:
    found = lines(SERVER, version)
    for wanted in (
        ["base_dir = /run/pop3"],
        ["ssl = yes"],
        ["auth_cache_size = 1M"],
        ["inet_listener pop3 {", "port = 110", "}"],
        ["inet_listener pop3s {", "port = 995", "}"],
        ["service auth {", "unix_listener auth-client {", "mode = 0666", "}", "client_limit = 9", "}"],
        ["protocol pop3 {", "mail_max_userip_connections = 7", "}"],
    ):
        at = found.index(wanted[0])
        assert found[at : at + len(wanted)] == wanted


@pytest.mark.parametrize("version", [OLD, NEW])
def test_without_a_certificate_there_is_no_tls(version: tuple[int, int]) -> None:
    found = lines(replace(SERVER, certificate=None, tls_port=0), version)
    assert [line for line in found if line.startswith("ssl")] == ["ssl = no"]
    at = found.index("inet_listener pop3s {")
    assert found[at + 1] == "port = 0"


@pytest.mark.parametrize("version", [OLD, NEW])
def test_imap_is_served_only_where_it_has_a_port(version: tuple[int, int]) -> None:
    assert "protocols = pop3" in lines(SERVER, version)
    assert not [line for line in lines(SERVER, version) if "imap" in line]
    found = lines(replace(SERVER, imap_port=143, imaps_port=993, connections_a_process={"imap-login": None}), version)
    assert "protocols = pop3 imap" in found
    for wanted in (
        ["service imap-login {", "inet_listener imap {", "port = 143", "}", "inet_listener imaps {", "port = 993", "}"],
        ["protocol imap {", "mail_max_userip_connections = 7", "}"],
    ):
        at = found.index(wanted[0])
        assert found[at : at + len(wanted)] == wanted
