"""services/admin/accounts/client_autoconfig.py: each answer holds what its client needs, as that client reads it."""

from __future__ import annotations

import plistlib
import re
from typing import Literal
from xml.etree import ElementTree

import pytest

from services.admin.accounts import client_autoconfig
from services.admin.accounts.client_autoconfig import (
    REQUEST_SCHEMA,
    RESPONSE_SCHEMA,
    ClientServer,
    ClientServers,
    Endpoint,
    Unanswerable,
)
from shared.settings import Settings, SettingsError, load

SERVERS = ClientServers(
    ClientServer("IMAP", "imap.local.com", (Endpoint(993, "implicit"), Endpoint(143, "starttls"))),
    ClientServer("POP3", "mail.local.com", (Endpoint(995, "implicit"), Endpoint(110, "starttls"))),
    ClientServer("SMTP", "smtp.local.com", (Endpoint(465, "implicit"), Endpoint(587, "starttls"))),
)
HOSTS = {"imap": "imap.local.com", "pop3": "mail.local.com", "smtp": "smtp.local.com"}
ALEX = "alex+sales&co@local.com"


# ------------------------------------------------------------------------------------------- host and ports


@pytest.mark.parametrize(
    ("flags", "seen_as", "host"),
    [
        ({}, None, "127.0.0.1"),
        ({"bind": "192.168.1.1"}, "elsewhere", "192.168.1.1"),
        ({"bind": "0.0.0.0"}, "mail.lan", "mail.lan"),
        ({"bind": "192.168.1.1", "mail_host": "mail.local.com"}, "elsewhere", "mail.local.com"),
    ],
)
def test_clients_are_sent_to_the_host_that_the_operator_named(
    flags: dict[str, str], seen_as: str | None, host: str
) -> None:
    found = client_autoconfig.servers(load(**flags), seen_as)
    assert [server.host for server in found.all] == [host] * 3
    named = client_autoconfig.servers(load(**flags, smtp_host="smtp.local.com"), seen_as)
    assert [server.host for server in named.all] == [host, host, "smtp.local.com"]
    named = client_autoconfig.servers(load(**flags, imap_host="imap.local.com"), seen_as)
    assert [server.host for server in named.all] == ["imap.local.com", host, host]


@pytest.mark.parametrize("host", ["mail host", "<b>", "a/b", ""])
def test_an_invalid_host_name_is_refused_as_a_host_for_clients(host: str) -> None:
    with pytest.raises(SettingsError, match="MAILGROUP_MAIL_HOST"):
        load(mail_host=host)
    with pytest.raises(SettingsError, match=r"MAILGROUP_IMAP_HOST: .*: has to be a host name or an IP address"):
        load(imap_host=host)
    with pytest.raises(SettingsError, match="MAILGROUP_SMTP_HOST"):
        load(smtp_host=host)


def test_ports_are_the_settings_ones_and_in_clear_only_if_it_is_allowed() -> None:
    found = client_autoconfig.servers(load(pop3s_port=995, smtp_port=25, imap_port=143))

    assert [server.endpoints for server in found.all] == [
        (Endpoint(1993, "implicit"), Endpoint(143, "starttls")),
        (Endpoint(995, "implicit"), Endpoint(1110, "starttls")),
        (Endpoint(1465, "implicit"), Endpoint(1587, "starttls")),
    ]
    assert [server.in_clear for server in found.all] == [(Endpoint(port, "none"),) for port in (143, 1110, 25)]
    strict = client_autoconfig.servers(load(allow_plaintext_auth="no"))
    assert [server.in_clear for server in strict.all] == [()] * 3


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("Alex@Local.COM", "local.com"),
        (ALEX, "local.com"),
        ("älex@lokal.example", "lokal.example"),
        ("alex", None),
        ("@local.com", None),
        ("alex@", None),
        ("alex@local.com\x00", None),
        ("alex@local.com\r\nX: y", None),
        ('"a b"@local.com', None),
        ("a@b,c@local.com", None),
        ("<alex@local.com>", None),
        ("\ud800@local.com", None),
        ("x" * 200 + "@local.com", None),
    ],
)
def test_only_a_plain_address_has_a_domain(address: str, domain: str | None) -> None:
    assert client_autoconfig.domain_of(address) == domain


# --------------------------------------------------------------------------------------------- Thunderbird


def test_thunderbird_gets_imap_first_then_pop3_the_best_way_first() -> None:
    root = ElementTree.fromstring(client_autoconfig.mozilla_autoconfig(SERVERS, ["local.com", "lokal.example"]))

    assert (root.tag, root.get("version")) == ("clientConfig", "1.1")
    [provider] = root
    assert (provider.tag, provider.get("id")) == ("emailProvider", "local.com")
    assert [domain.text for domain in provider.findall("domain")] == ["local.com", "lokal.example"]
    assert provider.findtext("displayName") and provider.findtext("displayShortName")
    for tag, kinds, ports in (
        ("incomingServer", ["imap", "imap", "pop3", "pop3"], ["993", "143", "995", "110"]),
        ("outgoingServer", ["smtp", "smtp"], ["465", "587"]),
    ):
        found = provider.findall(tag)
        assert [server.get("type") for server in found] == kinds
        assert [server.findtext("port") for server in found] == ports
        assert [server.findtext("socketType") for server in found] == ["SSL", "STARTTLS"] * (len(found) // 2)
        for server in found:
            assert server.findtext("hostname") == HOSTS[str(server.get("type"))]
            assert server.findtext("username") == "%EMAILADDRESS%"
            assert server.findtext("authentication") == "password-cleartext"


# ------------------------------------------------------------------------------------------------- Outlook


def outlook_request(address: str = ALEX, schema: str = RESPONSE_SCHEMA) -> bytes:
    """The request of Outlook."""
    escaped = address.replace("&", "&amp;")
    return (
        f'<?xml version="1.0" encoding="utf-8"?><Autodiscover xmlns="{REQUEST_SCHEMA}"><Request>'
        f"<EMailAddress>{escaped}</EMailAddress>"
        f"<AcceptableResponseSchema>{schema}</AcceptableResponseSchema></Request></Autodiscover>"
    ).encode()


def test_outlook_gets_a_reply_in_its_schema() -> None:
    answer = client_autoconfig.autodiscover(SERVERS, client_autoconfig.autodiscover_address(outlook_request()))

    root = ElementTree.fromstring(answer)
    assert root.tag == "{http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006}Autodiscover"
    space = {"a": RESPONSE_SCHEMA}
    account = root.find("a:Response/a:Account", space)
    assert account is not None
    assert account.findtext("a:AccountType", "", space) == "email"
    assert account.findtext("a:Action", "", space) == "settings"
    found = [
        {item.tag.partition("}")[2]: item.text for item in protocol}
        for protocol in account.findall("a:Protocol", space)
    ]
    both = {"LoginName": ALEX, "SSL": "on", "Encryption": "SSL", "AuthRequired": "on"}
    both |= {"SPA": "off", "DomainRequired": "off"}
    assert found == [
        {"Type": "IMAP", "Server": "imap.local.com", "Port": "993"} | both,
        {"Type": "POP3", "Server": "mail.local.com", "Port": "995"} | both,
        {"Type": "SMTP", "Server": "smtp.local.com", "Port": "465", "UsePOPAuth": "on", "SMTPLast": "off"} | both,
    ]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"", "600"),
        (b"<Autodiscover/>", "600"),
        (b"\xff\xfe\x00", "600"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', "600"),
        (b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>" + outlook_request(), "600"),
        (
            outlook_request(schema="http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006"),
            "601",
        ),
    ],
)
def test_an_invalid_request_of_outlook_gets_the_error_of_its_protocol(request_: bytes, code: str) -> None:
    with pytest.raises(Unanswerable) as caught:
        client_autoconfig.autodiscover_address(request_)

    root = ElementTree.fromstring(client_autoconfig.autodiscover_error(caught.value.code, caught.value.message))
    texts = {item.tag.partition("}")[2]: item.text for item in root.iter()}
    assert texts["ErrorCode"] == code
    assert texts["Message"]


def test_outlooks_second_version_points_to_the_first() -> None:
    url = "https://mail.local.com/autodiscover/autodiscover.xml"

    assert client_autoconfig.autodiscover_v2("AutoDiscoverV1", url) == {"Protocol": "AutodiscoverV1", "Url": url}
    with pytest.raises(Unanswerable) as caught:
        client_autoconfig.autodiscover_v2("ActiveSync", url)
    assert caught.value.code == "InvalidProtocol"


# --------------------------------------------------------------------------------------------------- Apple


@pytest.mark.parametrize(
    ("protocol", "kind", "host", "port"),
    [("IMAP", "EmailTypeIMAP", "imap.local.com", 993), ("POP3", "EmailTypePOP", "mail.local.com", 995)],
)
def test_apples_profile_sets_up_both_servers_with_tls_and_no_password(
    protocol: Literal["IMAP", "POP3"], kind: str, host: str, port: int
) -> None:
    profile = plistlib.loads(client_autoconfig.mobileconfig(SERVERS, ALEX, protocol=protocol))

    assert profile["PayloadType"] == "Configuration"
    [account] = profile["PayloadContent"]
    assert account["PayloadType"] == "com.apple.mail.managed"
    assert account["EmailAccountType"] == kind
    assert account["EmailAddress"] == ALEX
    for side, wanted in (("Incoming", (host, port)), ("Outgoing", ("smtp.local.com", 465))):
        assert (account[f"{side}MailServerHostName"], account[f"{side}MailServerPortNumber"]) == wanted
        assert account[f"{side}MailServerUseSSL"] is True
        assert account[f"{side}MailServerUsername"] == ALEX
        assert account[f"{side}MailServerAuthentication"] == "EmailAuthPassword"
        assert f"{side}Password" not in account
    assert account["OutgoingPasswordSameAsIncomingPassword"] is True
    assert "EmailAccountName" not in account
    for payload in (profile, account):
        assert payload["PayloadVersion"] == 1
        assert payload["PayloadIdentifier"] and payload["PayloadDisplayName"]


def test_apples_profile_replaces_itself_and_no_other() -> None:
    first = client_autoconfig.mobileconfig(SERVERS, ALEX)

    def ids(profile: bytes) -> set[str]:
        read = plistlib.loads(profile)
        return {
            payload[key] for payload in (read, *read["PayloadContent"]) for key in ("PayloadUUID", "PayloadIdentifier")
        }

    assert client_autoconfig.mobileconfig(SERVERS, ALEX) == first
    assert len(ids(first)) == 4
    assert ids(client_autoconfig.mobileconfig(SERVERS, ALEX.upper())) == ids(first)
    assert ids(client_autoconfig.mobileconfig(SERVERS, "jim@local.com")).isdisjoint(ids(first))
    # a device that keeps mails of POP3 does not lose them when IMAP is set up
    assert ids(client_autoconfig.mobileconfig(SERVERS, ALEX, protocol="POP3")).isdisjoint(ids(first))
    named = plistlib.loads(client_autoconfig.mobileconfig(SERVERS, ALEX, "Alex"))
    assert named["PayloadContent"][0]["EmailAccountName"] == "Alex"


# --------------------------------------------------------------------------------------------- the user's page


def test_a_users_links_carry_the_address_whole() -> None:
    found = client_autoconfig.links("http://mail.lan:8080", ALEX)

    assert found.autoconfig == "http://mail.lan:8080/mail/config-v1.1.xml?emailaddress=alex%2Bsales%26co%40local.com"
    assert found.profile == "http://mail.lan:8080/profile?emailaddress=alex%2Bsales%26co%40local.com"
    assert found.pop3_profile == f"{found.profile}&protocol=pop3"
    assert found.autodiscover == "http://mail.lan:8080/autodiscover/autodiscover.xml"
    assert ElementTree.fromstring(found.qr_code).tag == "svg"
    assert client_autoconfig.links("http://mail.lan:8080", "jim@local.com").qr_code != found.qr_code


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        *((host, True) for host in ("mail.company.com", "192.168.1.7", "fd00::7", "[2001:db8::1]", "nas.local")),
        *((host, False) for host in ("localhost", "127.0.0.1", "127.0.1.1", "::1", "[::1]", "0.0.0.0", "")),
        *((host, False) for host in ("admin", "3f2a9c1d77e0", "box.localdomain", "mail.localhost")),
    ],
)
def test_names_of_this_machine_and_of_containers_are_not_for_others(host: str, reachable: bool) -> None:
    assert client_autoconfig.is_for_others(host) is reachable


@pytest.mark.parametrize(
    ("settings", "seen", "base", "said"),
    [
        # one machine, as it comes: nothing is reachable, and the page says what to set
        (
            {},
            "localhost",
            "http://localhost:8080",
            ["MAILGROUP_MAIL_HOST .* MAILGROUP_BIND has to be 0.0.0.0", "MAILGROUP_ADMIN_BIND"],
        ),
        # in containers, opened on the machine itself
        (
            {"bind": "0.0.0.0", "admin_bind": "0.0.0.0"},
            "127.0.0.1",
            "http://127.0.0.1:8080",
            ["MAIL_HOST", "Open it under"],
        ),
        # the administrator has named the host: the QR code has it, though the page was opened as localhost
        (
            {"bind": "0.0.0.0", "admin_bind": "0.0.0.0", "mail_host": "mail.company.com"},
            "localhost",
            "http://mail.company.com:8080",
            [],
        ),
        ({"bind": "0.0.0.0", "admin_bind": "192.168.1.7"}, "localhost", "http://192.168.1.7:8080", ["MAIL_HOST"]),
        # a name without dots is the administrator's choice for mail, and no guess
        (
            {"bind": "0.0.0.0", "admin_bind": "0.0.0.0", "mail_host": "nas"},
            "192.168.1.7",
            "http://192.168.1.7:8080",
            [],
        ),
        ({"mail_host": "localhost"}, "192.168.1.7", "http://192.168.1.7:8080", ["cannot reach localhost"]),
        ({"bind": "0.0.0.0", "admin_bind": "0.0.0.0"}, "192.168.1.7", "http://192.168.1.7:8080", []),
    ],
)
def test_a_page_that_others_cannot_reach_says_what_to_set(
    settings: dict[str, str], seen: str, base: str, said: list[str]
) -> None:
    chosen = Settings(**settings)  # type: ignore[arg-type]  # pydantic converts
    found = client_autoconfig.base_url_for_others(f"http://{seen}:8080", chosen)
    assert found == base
    warnings = client_autoconfig.find_warnings(client_autoconfig.servers(chosen, seen), found, chosen)
    assert len(warnings) == len(said)
    for warning, words in zip(warnings, said, strict=True):
        assert re.search(words, warning), warning
    # and there is a QR code only without a warning
    assert bool(client_autoconfig.links(found, ALEX, warnings).qr_code) is not bool(said)
