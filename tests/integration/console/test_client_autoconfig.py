"""The settings of mail clients, fetched from the console's port without signing in."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
import requests

from services.admin.accounts.client_autoconfig import REQUEST_SCHEMA, RESPONSE_SCHEMA
from shared.db.database import Database
from tests import console
from tests.company import COMPANY, apply, local

ALEX, NOBODY = "alex@local.com", "nobody@local.com"
EVERY_PATH = (
    "/mail/config-v1.1.xml?emailaddress={}",
    "/.well-known/autoconfig/mail/config-v1.1.xml?emailaddress={}",
    "/autodiscover/autodiscover.xml?emailaddress={}",
    "/Autodiscover/Autodiscover.xml?email={}",
    "/autodiscover/autodiscover.json?Protocol=AutodiscoverV1&Email={}",
    "/autodiscover/autodiscover.json/v1.0/{}?Protocol=AutodiscoverV1",
    "/profile?emailaddress={}",
)


@pytest.fixture(scope="module")
def site(store: str) -> Iterator[str]:
    """A console that listens on every address, as in a container."""
    with console.running(store, bind="0.0.0.0", imaps_port=993, pop3s_port=995, smtps_port=465) as found:
        yield found


@pytest.fixture(autouse=True)
async def people(store: str) -> None:
    """The manual's company, one of them with an address in another domain."""
    further = {"local_accounts": [local("Alex", addresses=["alex@Lokal.Example"]), *COMPANY["local_accounts"][1:]]}
    await console.make(store, COMPANY | further)


def get(site: str, path: str, **headers: str) -> requests.Response:
    """The response to an unauthenticated client."""
    return requests.get(f"{site}{path}", headers=headers, timeout=30)


def asked(address: str, schema: str = RESPONSE_SCHEMA) -> str:
    """The request of Outlook."""
    return (
        f'<?xml version="1.0"?><Autodiscover xmlns="{REQUEST_SCHEMA}"><Request><EMailAddress>{address}</EMailAddress>'
        f"<AcceptableResponseSchema>{schema}</AcceptableResponseSchema></Request></Autodiscover>"
    )


def texts(answer: requests.Response) -> dict[str, str]:
    """The texts of an XML answer by name of the element; the last of each."""
    return {item.tag.partition("}")[2]: item.text or "" for item in ElementTree.fromstring(answer.content).iter()}


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_reply_does_not_reveal_whether_an_address_exists(site: str, path: str) -> None:
    somebodys, nobodys = get(site, path.format(ALEX)), get(site, path.format(NOBODY))

    assert somebodys.status_code == nobodys.status_code == 200
    assert somebodys.headers["content-type"] == nobodys.headers["content-type"]
    if "/profile" not in path:  # its ids are made from the address
        assert somebodys.text.replace(ALEX, NOBODY) == nobodys.text
    else:
        assert plistlib.loads(somebodys.content).keys() == plistlib.loads(nobodys.content).keys()


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("address", ["a@elsewhere.example", "a@company.com", "local.com", "a@b@", "a%00@local.com"])
def test_other_domains_are_not_known(site: str, path: str, address: str) -> None:
    assert get(site, path.format(address)).status_code == 404


def test_thunderbird_finds_every_local_domain_without_an_address(site: str) -> None:
    answer = get(site, "/mail/config-v1.1.xml")

    assert answer.headers["content-type"] == "application/xml"
    root = ElementTree.fromstring(answer.content)
    assert [domain.text for domain in root.iter("domain")] == ["local.com", "lokal.example"]
    one = ElementTree.fromstring(get(site, "/mail/config-v1.1.xml?emailaddress=alex@LOKAL.example").content)
    assert [domain.text for domain in one.iter("domain")] == ["lokal.example"]
    assert [port.text for port in one.iter("port")] == ["993", "1143", "995", "1110", "465", "1587"]


def test_without_a_configured_host_the_client_gets_the_host_it_asked(site: str) -> None:
    def host(**headers: str) -> str | None:
        return ElementTree.fromstring(get(site, "/mail/config-v1.1.xml", **headers).content).findtext(".//hostname")

    assert host() == "127.0.0.1"
    assert host(Host="autoconfig.local.com:8080") == "autoconfig.local.com"
    assert host(Host="[::1]:8080") == "::1"
    for nonsense in ("a<b", "[", "x y"):
        assert host(Host=nonsense) not in (nonsense, None, "")


def test_a_configured_host_is_preferred(store: str) -> None:
    with console.running(store, mail_host="mail.local.com") as site:
        answer = get(site, "/mail/config-v1.1.xml", Host="autoconfig.local.com")

        assert {host.text for host in ElementTree.fromstring(answer.content).iter("hostname")} == {"mail.local.com"}


@pytest.mark.parametrize("path", ["/autodiscover/autodiscover.xml", "/Autodiscover/Autodiscover.xml"])
def test_outlook_gets_a_reply_to_its_post(site: str, path: str) -> None:
    answer = requests.post(f"{site}{path}", asked(ALEX), headers={"Content-Type": "text/xml"}, timeout=30)

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/xml")
    found = texts(answer)
    assert (found["Server"], found["LoginName"], found["Type"], found["Port"]) == ("127.0.0.1", ALEX, "SMTP", "465")


def test_outlook_gets_the_error_of_an_invalid_request(site: str) -> None:
    def post(body: str) -> requests.Response:
        return requests.post(f"{site}/autodiscover/autodiscover.xml", body, timeout=30)

    assert texts(post("nonsense"))["ErrorCode"] == "600"
    assert texts(post(asked(ALEX, "http://another.example/schema")))["ErrorCode"] == "601"
    assert texts(get(site, "/autodiscover/autodiscover.xml"))["ErrorCode"] == "600"
    refused = post(asked("a@elsewhere.example"))
    assert (refused.status_code, texts(refused)["ErrorCode"]) == (404, "500")
    assert post(asked("x" * 70_000)).status_code == 413


def test_outlooks_second_version_points_to_the_first(site: str) -> None:
    answer = get(site, f"/autodiscover/autodiscover.json?Email={ALEX}&Protocol=Autodiscoverv1").json()

    assert answer == {"Protocol": "AutodiscoverV1", "Url": f"{site}/autodiscover/autodiscover.xml"}
    assert get(site, "/autodiscover/autodiscover.json?Protocol=AutodiscoverV1").json() == answer
    refused = get(site, f"/autodiscover/autodiscover.json?Email={ALEX}&Protocol=ActiveSync")
    assert (refused.status_code, refused.json()["ErrorCode"]) == (400, "InvalidProtocol")


def test_apple_gets_a_profile_to_install(site: str) -> None:
    answer = get(site, f"/profile?emailaddress={ALEX}")

    assert answer.headers["content-type"] == "application/x-apple-aspen-config"
    assert answer.headers["content-disposition"].endswith('.mobileconfig"')
    [account] = plistlib.loads(answer.content)["PayloadContent"]
    assert (account["EmailAddress"], account["IncomingMailServerPortNumber"]) == (ALEX, 993)
    [by_pop3] = plistlib.loads(get(site, f"/profile?emailaddress={ALEX}&protocol=pop3").content)["PayloadContent"]
    assert (by_pop3["EmailAccountType"], by_pop3["IncomingMailServerPortNumber"]) == ("EmailTypePOP", 995)
    assert get(site, f"/profile?emailaddress={ALEX}&protocol=smtp").status_code == 422
    assert not [name for name in account if name.endswith("Password") and isinstance(account[name], str)]


def test_a_person_sees_one_port_each_way_and_a_qr_code_for_others(site: str, store: str) -> None:
    def page(url: str) -> str:
        shown = console.signed_in(url, ALEX, "secret").get("/mine").text
        assert re.findall(r"SSL/TLS", shown.partition("<details")[0]) == ["SSL/TLS"] * 2
        assert "STARTTLS" not in shown.partition("<details")[0]
        assert "Incoming (IMAP)" in shown.partition("<details")[0] and "POP3" not in shown.partition("<details")[0]
        _, for_pop3, others = shown.split("<details")
        assert "Incoming (POP3)" in for_pop3 and "protocol=pop3" in for_pop3
        for port in (1143, 1110, 1587):
            assert f"port {port} with STARTTLS" in others
        return shown

    # given a console that was opened as 127.0.0.1, which no phone can
    assert "<svg" not in page(site).partition("Settings of the mail client")[2]
    assert "Mail clients on other machines cannot reach 127.0.0.1" in page(site)
    # when the host has a name for others
    with console.running(
        store, bind="0.0.0.0", admin_bind="0.0.0.0", admin_tls="no", mail_host="mail.local.com"
    ) as url:
        shown = page(url)
    # then the page and its profile have it
    assert "cannot" not in shown.partition("Settings of the mail client")[2].partition("</section>")[0]
    assert "<svg" in shown and re.search(r'href="http://mail\.local\.com:\d+/profile\?emailaddress=alex', shown)


async def test_no_domain_is_found_without_accounts(database: Database, site: str) -> None:
    await apply(database, {"external_accounts": [], "local_accounts": []}, prune=True)

    for path in ("/mail/config-v1.1.xml", *EVERY_PATH):
        assert get(site, path.format(ALEX)).status_code == 404
