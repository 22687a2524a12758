"""Automatic configuration of mail clients (manual chapter 5): Autoconfig, Autodiscover and mobileconfig. Pure.

Thunderbird, Outlook and Apple's devices each use a format of their own for the same servers. No answer contains a
password: the user types it. No answer depends on whether the address exists, so it reveals no addresses.
"""

from __future__ import annotations

import ipaddress
import plistlib
import uuid
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit, urlunsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import segno

from shared.errors import Permanent
from shared.languages.translation import gettext
from shared.settings import Settings, is_loopback

Tls = Literal["implicit", "starttls", "none"]
ClientProtocol = Literal["IMAP", "POP3", "SMTP"]

ADDRESS_OCTETS = 200
_OUTLOOK = "http://schemas.microsoft.com/exchange/autodiscover"
REQUEST_SCHEMA = f"{_OUTLOOK}/outlook/requestschema/2006"
RESPONSE_SCHEMA = f"{_OUTLOOK}/outlook/responseschema/2006a"
_ANSWER_SCHEMA = f"{_OUTLOOK}/responseschema/2006"
_IDENTITIES = uuid.UUID("a294bb50-8b80-4070-af4a-6357f8e18609")
"""Namespace of the profiles' UUIDs: a profile for the same host and address replaces the previous one."""


class Unanswerable(Permanent):
    """An Autodiscover request is invalid, or wants something unavailable; code and message as in the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP port and its encryption."""

    port: int
    tls: Tls  # none: unencrypted, for clients without TLS


@dataclass(frozen=True, slots=True)
class ClientServer:
    """A server for mail clients."""

    protocol: ClientProtocol
    host: str
    endpoints: tuple[Endpoint, ...]  # with TLS, the best first
    in_clear: tuple[Endpoint, ...] = ()  # without TLS

    @property
    def name(self) -> str:
        """The name for people: Incoming (IMAP)."""
        if self.protocol == "SMTP":
            return gettext("Outgoing (%(protocol)s)", protocol=self.protocol)
        return gettext("Incoming (%(protocol)s)", protocol=self.protocol)


@dataclass(frozen=True, slots=True)
class ClientServers:
    """The servers for mail clients. The user name is the address, with one password for all servers."""

    imap: ClientServer
    pop3: ClientServer
    smtp: ClientServer

    @property
    def all(self) -> tuple[ClientServer, ...]:
        """The servers, in the order in which they are offered to people and programs."""
        return self.imap, self.pop3, self.smtp


def servers(settings: Settings, seen_as: str | None = None) -> ClientServers:
    """Return the servers for mail clients. :param seen_as: as ``Settings.host_for_clients``."""

    def server(protocol: ClientProtocol, host: str, implicit: int, starttls: int, clear: int) -> ClientServer:
        in_clear = (Endpoint(clear, "none"),) if settings.allow_plaintext_auth != "no" else ()
        return ClientServer(protocol, host, (Endpoint(implicit, "implicit"), Endpoint(starttls, "starttls")), in_clear)

    imap, pop3 = settings.imap_port, settings.pop3_port
    return ClientServers(
        server("IMAP", settings.imap_host_for_clients(seen_as), settings.imaps_port, imap, imap),
        server("POP3", settings.host_for_clients(seen_as), settings.pop3s_port, pop3, pop3),
        server(
            "SMTP",
            settings.smtp_host_for_clients(seen_as),
            settings.smtps_port,
            settings.submission_port,
            settings.smtp_port,
        ),
    )


def domain_of(address: str) -> str | None:
    """Return the domain of a mail address in lower case; None if no account could have this address."""
    local, at, domain = address.rpartition("@")
    fits = len(address.encode("utf-8", "replace")) <= ADDRESS_OCTETS
    if not (local and at and domain and fits and address.isprintable() and not set(address) & set(' <>()",;:\\')):
        return None
    return domain.casefold()


# -------------------------------------------------------------------------------------------------- Thunderbird


def mozilla_autoconfig(servers: ClientServers, domains: list[str]) -> bytes:
    """Return Mozilla's clientConfig 1.1, which K-9, Evolution and KMail read, too.

    The answer is the same for every address of these domains: the client replaces ``%EMAILADDRESS%`` by the address.
    Clients take the first incoming server that they support, and offer the others.
    """
    root = Element("clientConfig", version="1.1")
    provider = SubElement(root, "emailProvider", id=domains[0])
    for domain in domains:
        _add(provider, domain=domain)
    _add(provider, displayName="mailgroup", displayShortName="mailgroup")
    names = {"implicit": "SSL", "starttls": "STARTTLS", "none": "plain"}
    for server in servers.all:
        tag = "outgoingServer" if server.protocol == "SMTP" else "incomingServer"
        for endpoint in server.endpoints:
            _add(
                SubElement(provider, tag, type=server.protocol.lower()),
                hostname=server.host,
                port=str(endpoint.port),
                socketType=names[endpoint.tls],
                authentication="password-cleartext",
                username="%EMAILADDRESS%",
            )
    return _document(root)


# ------------------------------------------------------------------------------------------------------ Outlook


def autodiscover(servers: ClientServers, address: str) -> bytes:
    """Return Autodiscover's "plain old XML" answer: the best endpoint each, since Outlook tries no second one.

    The order of the protocols is that of preference.
    """
    root = Element("Autodiscover", xmlns=_ANSWER_SCHEMA)
    response = SubElement(root, "Response", xmlns=RESPONSE_SCHEMA)
    _add(SubElement(response, "User"), DisplayName=address)
    account = SubElement(response, "Account")
    _add(account, AccountType="email", Action="settings")
    for server in servers.all:
        endpoint = server.endpoints[0]
        protocol = SubElement(account, "Protocol")
        _add(
            protocol,
            Type=server.protocol,
            Server=server.host,
            Port=str(endpoint.port),
            LoginName=address,
            DomainRequired="off",
            SPA="off",
            SSL="on" if endpoint.tls == "implicit" else "off",
            Encryption={"implicit": "SSL", "starttls": "TLS", "none": "None"}[endpoint.tls],
            AuthRequired="on",
        )
        if server.protocol == "SMTP":  # "POPAuth": the incoming server's user name and password
            _add(protocol, UsePOPAuth="on", SMTPLast="off")
    return _document(root)


def autodiscover_error(code: str, message: str) -> bytes:
    """Return Autodiscover's error: 500 no such domain, 600 invalid request, 601 another schema."""
    root = Element("Autodiscover", xmlns=_ANSWER_SCHEMA)
    error = SubElement(SubElement(root, "Response"), "Error")
    _add(error, ErrorCode=code, Message=message, DebugData="")
    return _document(root)


def autodiscover_address(request: bytes) -> str:
    """Return the address in an Autodiscover request.

    :raises Unanswerable: the request is invalid, or wants another schema; with the arguments of ``autodiscover_error``.
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
    """Return Autodiscover version 2 (JSON): the URL of the XML. :raises Unanswerable: another protocol is requested."""
    if protocol.casefold() != "autodiscoverv1":
        raise Unanswerable("InvalidProtocol", "The protocol value is invalid. Supported values are 'AutodiscoverV1'")
    return {"Protocol": "AutodiscoverV1", "Url": url}


# -------------------------------------------------------------------------------------------------------- Apple


def mobileconfig(
    servers: ClientServers, address: str, name: str | None = None, protocol: Literal["IMAP", "POP3"] = "IMAP"
) -> bytes:
    """Return an unsigned configuration profile with one account; the device asks the user for the password.

    The profiles for IMAP and for POP3 do not replace each other: a device deletes the mails that it keeps when the
    account of POP3 is removed.

    :param name: display name of the person; only for a user who has logged in. :param protocol: of incoming mail.
    """
    incoming, smtp = (servers.imap if protocol == "IMAP" else servers.pop3), servers.smtp
    kind = "imap " if protocol == "IMAP" else ""
    identity = uuid.uuid5(_IDENTITIES, f"{kind}{incoming.host} {address.casefold()}")
    account: dict[str, object] = {
        "PayloadType": "com.apple.mail.managed",
        "PayloadVersion": 1,
        "PayloadIdentifier": f"mailgroup.{identity}.mail",
        "PayloadUUID": _plist_uuid(uuid.uuid5(identity, "mail")),
        "PayloadDisplayName": address,
        "EmailAccountType": "EmailTypeIMAP" if protocol == "IMAP" else "EmailTypePOP",
        "EmailAccountDescription": address,
        "EmailAddress": address,
        "IncomingMailServerAuthentication": "EmailAuthPassword",
        "IncomingMailServerHostName": incoming.host,
        "IncomingMailServerPortNumber": incoming.endpoints[0].port,
        "IncomingMailServerUseSSL": True,
        "IncomingMailServerUsername": address,
        "OutgoingMailServerAuthentication": "EmailAuthPassword",
        "OutgoingMailServerHostName": smtp.host,
        "OutgoingMailServerPortNumber": smtp.endpoints[0].port,
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
    """The URLs for one address."""

    autoconfig: str
    autodiscover: str
    profile: str
    pop3_profile: str
    qr_code: str  # SVG element with the URL of the profile, for the camera of a phone; '' if no phone can reach it
    warnings: tuple[str, ...] = ()  # why other machines cannot use the addresses, and what the administrator has to set


def links(base_url: str, address: str, warnings: tuple[str, ...] = ()) -> Links:
    """Return the URLs for an address.

    :param base_url: of the console for other machines, without a final slash. :param warnings: as ``find_warnings``.
    """
    profile = f"{base_url}/profile?emailaddress={quote(address)}"
    return Links(
        f"{base_url}/mail/config-v1.1.xml?emailaddress={quote(address)}",
        f"{base_url}/autodiscover/autodiscover.xml",
        profile,
        f"{profile}&protocol=pop3",
        "" if warnings else segno.make_qr(profile).svg_inline(scale=4, dark="#000", light="#fff"),
        warnings,
    )


def is_for_others(host: str) -> bool:
    """Return whether other machines may reach this host name or address: it is not of the loopback interface, and no
    name that only containers or this machine know."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "." in host.rstrip(".") and not host.rstrip(".").casefold().endswith((".localhost", ".localdomain"))
    return not (address.is_loopback or address.is_unspecified)


def base_url_for_others(base_url: str, settings: Settings) -> str:
    """Return the URL of the console for other machines, as far as it is known.

    :param base_url: as this user reached the console; it stays if others can reach it, or if the console listens for
        this machine alone.
    """
    parts = urlsplit(base_url)
    host = settings.mail_host or settings.admin_bind
    if is_for_others(parts.hostname or "") or is_loopback(settings.admin_bind) or not is_for_others(host):
        return base_url
    place = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{place}:{parts.port}" if parts.port else place))


def find_warnings(servers: ClientServers, base_url: str, settings: Settings) -> tuple[str, ...]:
    """Return why other machines cannot use these settings, with what to set. Pure.

    :param base_url: of ``base_url_for_others``.
    """
    warnings = []
    hosts = {
        servers.smtp.host: "MAILGROUP_SMTP_HOST",
        servers.imap.host: "MAILGROUP_IMAP_HOST",
        servers.pop3.host: "MAILGROUP_MAIL_HOST",
    }  # the last one that sets a host is named
    for mail_host, setting in hosts.items():
        named = mail_host in (settings.mail_host, settings.imap_host, settings.smtp_host)
        if is_loopback(mail_host) or not (named or is_for_others(mail_host)):
            said = gettext(
                "Mail clients on other machines cannot reach %(host)s. The administrator sets %(setting)s to the name "
                "or address that this machine has in your network.",
                host=mail_host,
                setting=setting,
            )
            if is_loopback(settings.bind):
                said += " " + gettext("MAILGROUP_BIND has to be 0.0.0.0, too.")
            warnings.append(said)
    host = urlsplit(base_url).hostname or ""
    if not is_for_others(host):
        said = gettext(
            "A phone cannot open this page under %(host)s, so there is no QR code. Open it under the name or address "
            "that this machine has in your network.",
            host=host,
        )
        if is_loopback(settings.admin_bind):
            said += " " + gettext("For that the administrator sets MAILGROUP_ADMIN_BIND to 0.0.0.0.")
        warnings.append(said)
    return tuple(warnings)


def _add(parent: Element, **texts: str) -> None:
    for name, text in texts.items():
        SubElement(parent, name).text = text


def _document(root: Element) -> bytes:
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _plist_uuid(value: uuid.UUID) -> str:
    return str(value).upper()
