"""deploy/machine/lan_settings.py: the settings of ``up --lan``."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from deploy.machine import lan_settings
from shared.errors import Permanent
from shared.net import server_tls
from shared.settings import Settings


def test_the_lan_gets_the_ports_of_the_manual_and_metrics_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_settings, "address_of_this_machine", lambda: "192.168.1.1")

    settings = lan_settings.for_the_lan(Settings())

    reading = (settings.imap_port, settings.imaps_port, settings.pop3_port, settings.pop3s_port)
    assert reading == (143, 993, 110, 995)
    assert (settings.smtp_port, settings.submission_port, settings.smtps_port) == (25, 587, 465)
    assert (settings.bind, settings.metrics_host, settings.admin_bind) == ("192.168.1.1", "127.0.0.1", "127.0.0.1")


def test_settings_that_were_edited_stay() -> None:
    settings = lan_settings.for_the_lan(Settings(bind="10.0.0.7", pop3_port=2110, metrics_bind="10.0.0.7"))

    assert (settings.bind, settings.pop3_port, settings.smtp_port) == ("10.0.0.7", 2110, 25)
    assert settings.metrics_host == "10.0.0.7"


def test_the_loopback_address_is_no_lan() -> None:
    with pytest.raises(Permanent, match=r"MAILGROUP_BIND: 127\.0\.0\.1"):
        lan_settings.for_the_lan(Settings(bind="127.0.0.1"))


def test_the_certificate_names_the_lan_address_and_stays_while_that_does(tmp_path: Path) -> None:
    server_tls.self_signed_file(Settings(data=tmp_path))
    settings = lan_settings.for_the_lan(Settings(data=tmp_path, bind="10.0.0.7"))

    server_tls.drop_outdated_self_signed(settings)
    certificate = server_tls.self_signed_file(settings).read_bytes()
    server_tls.drop_outdated_self_signed(settings)

    assert server_tls.self_signed_file(settings).read_bytes() == certificate
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert "10.0.0.7" in [str(name) for name in names.value.get_values_for_type(x509.IPAddress)]
