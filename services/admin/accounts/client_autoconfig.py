"""What mail clients are set up with (manual chapter 5), in the forms that they fetch by themselves; pure functions.

Thunderbird, Outlook and Apple's devices each ask in a form of their own and get the same servers. A password is in no
answer: people type theirs in. Nothing here depends on whether the address is anybody's, so an answer tells nothing.
"""

from __future__ import annotations

import plistlib
import uuid
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import segno

from shared.errors import Permanent
from shared.settings import Settings

Tls = Literal["implicit", "starttls", "none"]

ADDRESS_OCTETS = 200
_OUTLOOK = "http://schemas.microsoft.com/exchange/autodiscover"
REQUEST_SCHEMA = f"{_OUTLOOK}/outlook/requestschema/2006"
RESPONSE_SCHEMA = f"{_OUTLOOK}/outlook/responseschema/2006a"
_ANSWER_SCHEMA = f"{_OUTLOOK}/responseschema/2006"
_IDENTITIES = uuid.UUID("a294bb50-8b80-4070-af4a-6357f8e18609")
"""The name space of the profiles' UUIDs: the same host and address give the same profile, which replaces itself."""


class Unanswerable(Permanent):
    """Outlook asks for what is no request, or for something that we do not have; both as its protocol names them."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP port, and what is spoken on it. none: in clear, for clients that know no TLS."""

    port: int
    tls: Tls


@dataclass(frozen=True, slots=True)
class ClientServers:
    """The settings of every mail client: the user name is the address, with a password for both servers.

    incoming: POP3. outgoing: SMTP. The best way first, each offering TLS; those in clear are in the two others.
    """

    host: str
    incoming: tuple[Endpoint, ...]
    outgoing: tuple[Endpoint, ...]
    incoming_in_clear: tuple[Endpoint, ...] = ()
    outgoing_in_clear: tuple[Endpoint, ...] = ()


def servers(settings: Settings, seen_as: str | None = None) -> ClientServers:
    """Where a mail client finds us. :param seen_as: as ``Settings.host_for_clients``."""
    clear = settings.allow_plaintext_auth != "no"
    return ClientServers(
        settings.host_for_clients(seen_as),
        (Endpoint(settings.pop3s_port, "implicit"), Endpoint(settings.pop3_port, "starttls")),
        (Endpoint(settings.smtps_port, "implicit"), Endpoint(settings.submission_port, "starttls")),
        (Endpoint(settings.pop3_port, "none"),) if clear else (),
        (Endpoint(settings.smtp_port, "none"),) if clear else (),
    )


def domain_of(address: str) -> str | None:
    """The domain of a mail address, in lower case; None if it is no address that anybody could have here."""
    local, at, domain = address.rpartition("@")
    fits = len(address.encode("utf-8", "replace")) <= ADDRESS_OCTETS
    if not (local and at and domain and fits and address.isprintable() and not set(address) & set(' <>()",;:\\')):
        return None
    return domain.casefold()


# -------------------------------------------------------------------------------------------------- Thunderbird


def mozilla_autoconfig(servers: ClientServers, domains: list[str]) -> bytes:
    """Mozilla's clientConfig 1.1, which K-9, Evolution and KMail read too.

    It is the same for every address of these domains: the client puts its own one in for ``%EMAILADDRESS%``.
    """
    root = Element("clientConfig", version="1.1")
    provider = SubElement(root, "emailProvider", id=domains[0])
    for domain in domains:
        _add(provider, domain=domain)
    _add(provider, displayName="mailgroup", displayShortName="mailgroup")
    names = {"implicit": "SSL", "starttls": "STARTTLS", "none": "plain"}
    for tag, kind, ways in (
        ("incomingServer", "pop3", servers.incoming),
        ("outgoingServer", "smtp", servers.outgoing),
    ):
        for way in ways:
            _add(
                SubElement(provider, tag, type=kind),
                hostname=servers.host,
                port=str(way.port),
                socketType=names[way.tls],
                authentication="password-cleartext",
                username="%EMAILADDRESS%",
            )
    return _document(root)


# ------------------------------------------------------------------------------------------------------ Outlook


def autodiscover(servers: ClientServers, address: str) -> bytes:
    """Autodiscover's "plain old XML" answer: one protocol each way, the best, since Outlook tries no second one."""
    root = Element("Autodiscover", xmlns=_ANSWER_SCHEMA)
    response = SubElement(root, "Response", xmlns=RESPONSE_SCHEMA)
    _add(SubElement(response, "User"), DisplayName=address)
    account = SubElement(response, "Account")
    _add(account, AccountType="email", Action="settings")
    for kind, way in (("POP3", servers.incoming[0]), ("SMTP", servers.outgoing[0])):
        protocol = SubElement(account, "Protocol")
        _add(
            protocol,
            Type=kind,
            Server=servers.host,
            Port=str(way.port),
            LoginName=address,
            DomainRequired="off",
            SPA="off",
            SSL="on" if way.tls == "implicit" else "off",
            Encryption={"implicit": "SSL", "starttls": "TLS", "none": "None"}[way.tls],
            AuthRequired="on",
        )
        if kind == "SMTP":
            _add(protocol, UsePOPAuth="on", SMTPLast="off")
    return _document(root)


def autodiscover_error(code: str, message: str) -> bytes:
    """Autodiscover's answer to what cannot be answered: 500 no such domain, 600 no request, 601 another schema."""
    root = Element("Autodiscover", xmlns=_ANSWER_SCHEMA)
    error = SubElement(SubElement(root, "Response"), "Error")
    _add(error, ErrorCode=code, Message=message, DebugData="")
    return _document(root)


def autodiscover_address(request: bytes) -> str:
    """The address that an autodiscover request asks for.

    :raises Unanswerable: it is no such request, or wants an answer of another form; with what ``outlook_error`` takes.
    """
    try:
        if b"<!" in request:  # a document type: entities that grow without end, or that name files
            raise Unanswerable("600", "Invalid Request")
        root = ElementTree.fromstring(request)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise Unanswerable("600", "Invalid Request") from error
    schema = root.findtext(f".//{{{REQUEST_SCHEMA}}}AcceptableResponseSchema")
    address = root.findtext(f".//{{{REQUEST_SCHEMA}}}EMailAddress")
    if address is None:
        raise Unanswerable("600", "Invalid Request")
    if schema is not None and schema.strip() != RESPONSE_SCHEMA:
        raise Unanswerable("601", "Provider is not available")
    return address.strip()


def autodiscover_v2(protocol: str, url: str) -> dict[str, str]:
    """Autodiscover version 2 (JSON): where the XML is. :raises Unanswerable: another protocol is asked for."""
    if protocol.casefold() != "autodiscoverv1":
        raise Unanswerable("InvalidProtocol", "The protocol value is invalid. Supported values are 'AutodiscoverV1'")
    return {"Protocol": "AutodiscoverV1", "Url": url}


# -------------------------------------------------------------------------------------------------------- Apple


def mobileconfig(servers: ClientServers, address: str, name: str | None = None) -> bytes:
    """A configuration profile with one POP account, without a password: the device asks for it. Not signed.

    :param name: of the person, for the sender's line; only where whoever asks has logged in.
    """
    identity = uuid.uuid5(_IDENTITIES, f"{servers.host} {address.casefold()}")
    incoming, outgoing = servers.incoming[0], servers.outgoing[0]
    account: dict[str, object] = {
        "PayloadType": "com.apple.mail.managed",
        "PayloadVersion": 1,
        "PayloadIdentifier": f"mailgroup.{identity}.mail",
        "PayloadUUID": _plist_uuid(uuid.uuid5(identity, "mail")),
        "PayloadDisplayName": address,
        "EmailAccountType": "EmailTypePOP",
        "EmailAccountDescription": address,
        "EmailAddress": address,
        "IncomingMailServerAuthentication": "EmailAuthPassword",
        "IncomingMailServerHostName": servers.host,
        "IncomingMailServerPortNumber": incoming.port,
        "IncomingMailServerUseSSL": True,
        "IncomingMailServerUsername": address,
        "OutgoingMailServerAuthentication": "EmailAuthPassword",
        "OutgoingMailServerHostName": servers.host,
        "OutgoingMailServerPortNumber": outgoing.port,
        "OutgoingMailServerUseSSL": True,
        "OutgoingMailServerUsername": address,
        "OutgoingPasswordSameAsIncomingPassword": True,
    }
    if name is not None:
        account["EmailAccountName"] = name
    profile = {
        "PayloadType": "Configuration",
        "PayloadVersion": 1,
        "PayloadIdentifier": f"mailgroup.{identity}",
        "PayloadUUID": _plist_uuid(identity),
        "PayloadDisplayName": f"Mail for {address}",
        "PayloadDescription": f"Sets up {address} in Mail. Your password is asked for when it is installed.",
        "PayloadRemovalDisallowed": False,
        "PayloadContent": [account],
    }
    return plistlib.dumps(profile)


# ---------------------------------------------------------------------------------------------- a page per user


@dataclass(frozen=True, slots=True)
class Links:
    """URLs for one address. qr_code: an SVG element with ``profile`` in it, for the camera of a phone."""

    autoconfig: str
    autodiscover: str
    profile: str
    qr_code: str


def links(base_url: str, address: str) -> Links:
    """:param base_url: of the console, as whoever asks reached it, without a slash at its end."""
    profile = f"{base_url}/profile?emailaddress={quote(address)}"
    return Links(
        f"{base_url}/mail/config-v1.1.xml?emailaddress={quote(address)}",
        f"{base_url}/autodiscover/autodiscover.xml",
        profile,
        segno.make_qr(profile).svg_inline(scale=4, dark="#000", light="#fff"),
    )


def _add(parent: Element, **texts: str) -> None:
    for name, text in texts.items():
        SubElement(parent, name).text = text


def _document(root: Element) -> bytes:
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _plist_uuid(value: uuid.UUID) -> str:
    return str(value).upper()
