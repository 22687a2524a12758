"""The addresses of a provider that may be contacted, and the certificates that are trusted."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.machine.certificates import make_authority
from shared.model import Server
from shared.net import dial
from shared.net.dial import (
    AddressNotAllowed,
    ConnectTimeout,
    TlsError,
    Unreachable,
    connect_socket,
    is_private,
    why_forbidden,
)
from shared.provider.credentials import Credential
from shared.provider.pop3_client import open_session
from shared.settings import PrivateHosts
from tests.scripted_pop3 import ScriptedPop3


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
    ],
)
def test_inner_addresses_are_private_in_every_disguise(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_not_private(address: str) -> None:
    assert not is_private(address)


@pytest.mark.parametrize(
    ("port", "address", "allow_private", "word"),
    [
        (995, "8.8.8.8", False, None),
        (993, "8.8.8.8", False, None),
        (143, "8.8.8.8", False, None),
        (2525, "8.8.8.8", True, None),
        (6379, "8.8.8.8", True, "port 6379 is not allowed"),
        (6379, "10.0.0.1", True, None),
        (110, "10.0.0.1", False, "MAILGROUP_ALLOW_PRIVATE_UPSTREAM"),
        (110, "10.0.0.1", frozenset({"other.test"}), "MAILGROUP_ALLOW_PRIVATE_UPSTREAM"),
        (110, "10.0.0.1", frozenset({"mail.test"}), None),
    ],
)
def test_private_hosts_need_permission_and_public_ones_a_mail_port(
    port: int, address: str, allow_private: PrivateHosts, word: str | None
) -> None:
    verdict = why_forbidden(Server("mail.test", port, "none"), address, allow_private)
    assert verdict is None if word is None else verdict is not None and word in verdict and "mail.test" in verdict


async def test_a_name_of_a_private_host_is_refused_before_anything_is_sent() -> None:
    async with ScriptedPop3().running() as script:
        with pytest.raises(AddressNotAllowed, match="private address"):
            await connect_socket(Server("localhost", script.port, "none"), False, 5)
        assert script.sessions == 0


async def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a name that resolves to another address each time
    answers = iter(["127.0.0.1", "8.8.8.8", "8.8.8.8"])

    def resolve(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with ScriptedPop3().running() as script:
        connection = await connect_socket(Server("rebinding.test", script.port, "none"), True, 5)
        with connection:
            assert connection.getpeername() == ("127.0.0.1", script.port)
    assert next(answers) == "8.8.8.8"


async def test_an_allowed_address_is_used_when_a_name_has_forbidden_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedPop3().running() as script:
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, port, **_: [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("8.8.8.8", "127.0.0.1")
            ],
        )
        connection = await connect_socket(Server("two.test", script.port, "none"), True, 5)
        with connection:
            assert connection.getpeername()[0] == "127.0.0.1"


async def test_an_unknown_name_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"nowhere\.invalid:110: no such host"):
        await connect_socket(Server("nowhere.invalid", 110, "none"), True, 10)


async def test_a_resolver_that_hangs_delays_a_connection_only_until_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        release.wait(5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        with pytest.raises(ConnectTimeout, match=r"slow\.test:110: no connection within 0\.2 s"):
            await connect_socket(Server("slow.test", 110, "none"), True, 0.2)
    finally:
        release.set()


# ---------------------------------------------------------------------------------------------- certificates


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, ssl.SSLContext, str]:
    """The authority's file, a server's context for localhost, and the fingerprint of its certificate."""
    ca, server = make_authority(["localhost"], [])
    (tmp_path / "ca.pem").write_text(ca)
    (tmp_path / "server.pem").write_text(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    pem = server[server.index("-----BEGIN CERTIFICATE") :]
    return tmp_path / "ca.pem", context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def trust(monkeypatch: pytest.MonkeyPatch, ca_file: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    dial._context.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_contexts() -> Iterator[None]:
    dial._context.cache_clear()
    yield
    dial._context.cache_clear()


async def log_in(script: ScriptedPop3, server: Server) -> None:
    async with script.running():
        where = Server(server.host, script.port, server.tls, server.tls_fingerprint)
        async with open_session(where, True) as client:
            await client.login(Credential("u", "secret"))
            await client.fetch_list()


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_of_a_trusted_authority_for_this_name_is_accepted(
    tls: str, authority: tuple[Path, ssl.SSLContext, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority[0])
    script = ScriptedPop3(context=authority[1], implicit=tls == "implicit")
    await log_in(script, Server("localhost", 0, tls))  # type: ignore[arg-type]  # parametrised
    assert "PASS secret" in script.commands


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_an_unknown_authority_is_refused_before_the_password(
    tls: str, authority: tuple[Path, ssl.SSLContext, str]
) -> None:
    script = ScriptedPop3(context=authority[1], implicit=tls == "implicit")
    with pytest.raises(TlsError, match=r"localhost:[0-9]+: the certificate is not trusted.*tls_fingerprint"):
        await log_in(script, Server("localhost", 0, tls))  # type: ignore[arg-type]  # parametrised
    assert not [line for line in script.commands if line.startswith(("USER", "PASS"))]


async def test_a_certificate_for_another_name_is_refused(
    authority: tuple[Path, ssl.SSLContext, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority[0])
    with pytest.raises(TlsError, match=r"127\.0\.0\.1:[0-9]+: the certificate is not trusted"):
        await log_in(ScriptedPop3(context=authority[1], implicit=True), Server("127.0.0.1", 0, "implicit"))


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_pinned_certificate_is_accepted_whatever_its_name_and_authority(
    tls: str, authority: tuple[Path, ssl.SSLContext, str]
) -> None:
    written = ":".join(authority[2][at : at + 2] for at in range(0, 64, 2)).upper()
    script = ScriptedPop3(context=authority[1], implicit=tls == "implicit")
    await log_in(script, Server("127.0.0.1", 0, tls, written))  # type: ignore[arg-type]  # parametrised
    assert "PASS secret" in script.commands


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_other_than_the_pinned_one_is_refused_though_trusted(
    tls: str, authority: tuple[Path, ssl.SSLContext, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority[0])
    script = ScriptedPop3(context=authority[1], implicit=tls == "implicit")
    with pytest.raises(TlsError, match=f"not the pinned one.*{authority[2]}"):
        await log_in(script, Server("localhost", 0, tls, "ab" * 32))  # type: ignore[arg-type]  # parametrised
    assert not [line for line in script.commands if line.startswith(("USER", "PASS"))]


async def test_tls_older_than_1_2_is_refused(
    authority: tuple[Path, ssl.SSLContext, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        authority[1].minimum_version = ssl.TLSVersion.TLSv1
        authority[1].maximum_version = ssl.TLSVersion.TLSv1_1
    authority[1].set_ciphers("ALL:@SECLEVEL=0")
    assert dial.client_context(Server("localhost", 0, "implicit")).minimum_version == ssl.TLSVersion.TLSv1_2
    with pytest.raises(TlsError, match=r"TLS 1\.2 or newer"):
        await log_in(ScriptedPop3(context=authority[1], implicit=True), Server("localhost", 0, "implicit"))


async def test_a_tls_server_that_says_nothing_ends_with_the_deadline() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        with pytest.raises(TlsError, match="during the TLS handshake"):
            async with open_session(Server("127.0.0.1", port, "implicit"), True, connect_seconds=0.3):
                pass
    finally:
        listener.close()


# ---------------------------------------------------------------------------------------------- what a port speaks


async def test_a_port_speaks_tls_only_if_it_answers_a_handshake(authority: tuple[Path, ssl.SSLContext, str]) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    for implicit, answer in ((True, True), (False, False)):
        script = ScriptedPop3(context=authority[1], implicit=implicit)
        async with script.running():
            assert await dial.speaks_tls(script.server(), True, 10) is answer
    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        assert await dial.speaks_tls(Server("127.0.0.1", port, "none"), True, 0.3) is False
    finally:
        listener.close()
    assert await dial.speaks_tls(Server("127.0.0.1", port, "none"), True, 0.3) is False  # nobody listens
    assert await dial.speaks_tls(Server("127.0.0.1", 1, "none"), False, 0.3) is False  # not allowed
