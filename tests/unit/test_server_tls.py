"""shared/net/server_tls.py: certificates of the listeners."""

from __future__ import annotations

import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from shared.net import server_tls
from shared.settings import Settings, SettingsError, load


def settings(data: Path, **more: str | Path) -> Settings:
    """Settings with this data folder."""
    return load(data=data, **more)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str | None:
    """Shake hands over a pair of sockets; the version that both speak."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(ours, server_side=True).close()
        except (ssl.SSLError, OSError):
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=name) as connection:
            return connection.version()
    finally:
        theirs.close()
        thread.join()


def test_a_first_start_s_certificate_verifies_by_name_and_address(tmp_path: Path) -> None:
    context = server_tls.server_context(settings(tmp_path / "data", bind="192.0.2.7"))

    path = tmp_path / "data" / "tls" / "self-signed.pem"
    trusting = ssl.create_default_context(cafile=str(path))
    for name in ("localhost", "127.0.0.1", "192.0.2.7", socket.gethostname()):
        assert shake_hands(context, trusting, name) in ("TLSv1.2", "TLSv1.3")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(context, trusting, "elsewhere.example")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_certificate_is_for_the_host_that_clients_are_set_up_with(tmp_path: Path) -> None:
    for number, host in enumerate(("mail.local.com", "192.0.2.8")):
        data = tmp_path / str(number)
        context = server_tls.server_context(settings(data, bind="0.0.0.0", mail_host=host))

        trusting = ssl.create_default_context(cafile=str(data / "tls" / "self-signed.pem"))
        assert shake_hands(context, trusting, host) in ("TLSv1.2", "TLSv1.3")


def test_the_certificate_is_for_all_hosts_if_imap_and_smtp_have_theirs(tmp_path: Path) -> None:
    server_tls.self_signed_file(settings(tmp_path, mail_host="pop3.local.com"))
    named = settings(tmp_path, mail_host="pop3.local.com", imap_host="imap.local.com", smtp_host="smtp.local.com")
    server_tls.drop_outdated_self_signed(named)
    context = server_tls.server_context(named)

    trusting = ssl.create_default_context(cafile=str(tmp_path / "tls" / "self-signed.pem"))
    for host in ("pop3.local.com", "imap.local.com", "smtp.local.com"):
        assert shake_hands(context, trusting, host) in ("TLSv1.2", "TLSv1.3")


def test_a_host_name_set_later_makes_another_certificate_once(tmp_path: Path) -> None:
    before = server_tls.self_signed_file(settings(tmp_path)).read_bytes()
    named = settings(tmp_path, mail_host="mail.local.com")

    server_tls.drop_outdated_self_signed(named)
    after = server_tls.self_signed_file(named).read_bytes()
    server_tls.drop_outdated_self_signed(named)

    assert after != before
    assert server_tls.self_signed_file(named).read_bytes() == after
    trusting = ssl.create_default_context(cafile=str(server_tls.self_signed_file(named)))
    assert shake_hands(server_tls.server_context(named), trusting, "mail.local.com") in ("TLSv1.2", "TLSv1.3")


def test_services_that_start_together_share_one_certificate(tmp_path: Path) -> None:
    def start(_: int) -> bytes:
        server_tls.server_context(settings(tmp_path))
        return (tmp_path / "tls" / "self-signed.pem").read_bytes()

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(start, range(8)))

    assert len(made) == 1
    x509.load_pem_x509_certificate(made.pop())
    assert [path.name for path in (tmp_path / "tls").iterdir()] == ["self-signed.pem"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of asking for an old version
def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    context = server_tls.server_context(settings(tmp_path))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1

    with pytest.raises((ssl.SSLError, OSError)):
        shake_hands(context, old, "localhost")


def test_the_operators_certificate_is_used(tmp_path: Path) -> None:
    server_tls.self_signed_file(settings(tmp_path / "operator"))
    theirs = tmp_path / "operator" / "tls" / "self-signed.pem"

    context = server_tls.server_context(settings(tmp_path / "data", tls_cert_file=theirs, tls_key_file=theirs))

    assert shake_hands(context, ssl.create_default_context(cafile=str(theirs)), "localhost")
    assert not (tmp_path / "data").exists()


def test_a_bad_certificate_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("nonsense")
    for wrong, said in (
        ({"tls_cert_file": tmp_path / "missing"}, "missing"),
        ({"tls_cert_file": tmp_path / "file"}, "file"),
        ({"tls_key_file": tmp_path / "file"}, "MAILGROUP_TLS_CERT_FILE"),
        ({"data": tmp_path / "file" / "data"}, "MAILGROUP_DATA"),
    ):
        with pytest.raises(SettingsError, match=said):
            server_tls.server_context(settings(wrong.pop("data", tmp_path), **wrong))


def shown(certificate: server_tls.Certificate) -> bytes:
    """Return the certificate that a client receives, in DER."""
    ours, theirs = socket.socketpair()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(certificate.context.wrap_socket, ours, server_side=True)
        with client.wrap_socket(theirs) as connection:
            found = connection.getpeercert(binary_form=True)
        serving.result().close()
    assert found is not None
    return found


def look_twice(certificate: server_tls.Certificate) -> None:
    for _ in range(2):
        certificate.reload_if_changed()


def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(tmp_path: Path) -> None:
    # given a certificate in two files
    made = [server_tls.self_signed_file(settings(tmp_path / name)).read_bytes() for name in ("a", "b", "c")]
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"

    def write(keys: bytes, chains: bytes) -> None:
        for path, text in ((chain, chains), (key, keys)):
            (tmp_path / "new").write_bytes(text)
            (tmp_path / "new").replace(path)

    write(made[0], made[0])
    certificate = server_tls.Certificate(settings(tmp_path, tls_cert_file=chain, tls_key_file=key))
    [first, second, third] = [
        ssl.PEM_cert_to_DER_cert(text[text.index(b"-----BEGIN CERT") :].decode()) for text in made
    ]
    assert shown(certificate) == first
    assert server_tls.EXPIRES._value.get() == x509.load_der_x509_certificate(first).not_valid_after_utc.timestamp()
    # when it is renewed: the second check finds it unchanged
    write(made[1], made[1])
    certificate.reload_if_changed()
    assert shown(certificate) == first
    certificate.reload_if_changed()
    assert shown(certificate) == second and server_tls.REFUSED._value.get() == 0
    # when the new pair does not match, is invalid or missing, then the old certificate stays, with a warning
    for broken in ((made[0], made[2]), (made[2], b"nonsense"), (b"", b"")):
        write(*broken)
        look_twice(certificate)
        assert shown(certificate) == second and server_tls.REFUSED._value.get() == 1
    chain.unlink()
    look_twice(certificate)
    assert shown(certificate) == second and server_tls.REFUSED._value.get() == 1
    # and when the pair is valid again, it is used
    write(made[2], made[2])
    look_twice(certificate)
    assert shown(certificate) == third and server_tls.REFUSED._value.get() == 0
