"""Presets of common providers: their servers, and what the user has to do there first. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shared.languages.translation import marked
from shared.model import Server


@dataclass(frozen=True, slots=True)
class ProviderPreset:
    """A provider with its servers."""

    key: str  # value in forms
    name: str
    domains: tuple[str, ...]  # mail domains, with their subdomains
    pop3: Server | None  # None: the provider has no POP3
    imap: Server
    smtp: Server
    note: str  # what the user has to do there first
    oauth: str | None = None  # name of the OAuth issuer
    files_sent: bool = False  # it puts mail that was sent by SMTP into its folder for sent mail itself


_ZOHO = marked(
    "The free plan has neither POP3 nor IMAP. Allow POP or IMAP in Zoho's settings (Mail Accounts) first. The servers "
    "are those of the data centre in the USA: in others they end in zoho.eu, zoho.in or the like. With two-factor "
    "authentication the password has to be an app-specific one."
)
_IONOS = marked(
    "The servers end in the country of the contract, such as ionos.co.uk or ionos.fr. With two-step verification the "
    "password has to be an app password, made in the webmail under Login & Security."
)

PROVIDERS = (
    ProviderPreset(
        "gmail",
        "Gmail or Google Workspace",
        ("gmail.com", "googlemail.com"),
        Server("pop.gmail.com", 995, "implicit"),
        Server("imap.gmail.com", 993, "implicit"),
        Server("smtp.gmail.com", 465, "implicit"),
        marked(
            "For POP3, turn on POP in Gmail's settings (Forwarding and POP/IMAP). The password has to be an app "
            "password, made in the Google account under Security; or log in with access tokens."
        ),
        "google",
        files_sent=True,
    ),
    ProviderPreset(
        "microsoft",
        "Microsoft 365",
        ("onmicrosoft.com",),
        Server("outlook.office365.com", 995, "implicit"),
        Server("outlook.office365.com", 993, "implicit"),
        Server("smtp.office365.com", 587, "starttls"),
        marked(
            "Microsoft takes no passwords from mail programs any more: log in with access tokens. POP or IMAP, and "
            "authenticated SMTP, have to be allowed for the mailbox."
        ),
        "microsoft",
        files_sent=True,
    ),
    ProviderPreset(
        "outlook",
        "Outlook.com (Hotmail, Live, MSN)",
        ("outlook.com", "hotmail.com", "live.com", "msn.com"),
        Server("outlook.office365.com", 995, "implicit"),
        Server("outlook.office365.com", 993, "implicit"),
        Server("smtp-mail.outlook.com", 587, "starttls"),
        marked(
            "Microsoft takes no passwords from mail programs any more: log in with access tokens. Allow POP or IMAP "
            "in the settings of Outlook.com first (Mail, Forwarding and IMAP)."
        ),
        "microsoft",
        files_sent=True,
    ),
    ProviderPreset(
        "yahoo",
        "Yahoo",
        ("yahoo.com", "yahoo.de", "yahoo.fr", "yahoo.co.uk", "ymail.com", "rocketmail.com"),
        Server("pop.mail.yahoo.com", 995, "implicit"),
        Server("imap.mail.yahoo.com", 993, "implicit"),
        Server("smtp.mail.yahoo.com", 465, "implicit"),
        marked("The password has to be an app password, made in the Yahoo account under Security."),
    ),
    ProviderPreset(
        "fastmail",
        "Fastmail",
        ("fastmail.com", "fastmail.fm"),
        Server("pop.fastmail.com", 995, "implicit"),
        Server("imap.fastmail.com", 993, "implicit"),
        Server("smtp.fastmail.com", 465, "implicit"),
        marked("The password has to be an app password for mail (POP, IMAP and SMTP), made in Fastmail's settings."),
    ),
    ProviderPreset(
        "gmx",
        "GMX (gmx.com)",
        ("gmx.com", "gmx.us", "gmx.co.uk", "gmx.fr", "gmx.es"),
        Server("pop.gmx.com", 995, "implicit"),
        Server("imap.gmx.com", 993, "implicit"),
        Server("mail.gmx.com", 587, "starttls"),
        marked("Allow access by POP3 and IMAP in GMX's settings first."),
    ),
    ProviderPreset(
        "gmxnet",
        "GMX (gmx.net, gmx.de)",
        ("gmx.net", "gmx.de", "gmx.at", "gmx.ch"),
        Server("pop.gmx.net", 995, "implicit"),
        Server("imap.gmx.net", 993, "implicit"),
        Server("mail.gmx.net", 587, "starttls"),
        marked("Allow access by POP3 and IMAP in GMX's settings first."),
    ),
    ProviderPreset(
        "icloud",
        "iCloud",
        ("icloud.com", "me.com", "mac.com"),
        None,
        Server("imap.mail.me.com", 993, "implicit"),
        Server("smtp.mail.me.com", 587, "starttls"),
        marked(
            "Apple offers no POP3: mail is fetched by IMAP. The password has to be an app-specific one, made in the "
            "Apple account under Sign-In and Security."
        ),
    ),
    ProviderPreset(
        "webde",
        "WEB.DE",
        ("web.de",),
        Server("pop3.web.de", 995, "implicit"),
        Server("imap.web.de", 993, "implicit"),
        Server("smtp.web.de", 587, "starttls"),
        marked(
            "Allow access by POP3 and IMAP in WEB.DE's settings first. The login user name is the part before the @. A "
            "free mailbox allows a POP3 login every 15 minutes: check for new mail every 900 seconds."
        ),
    ),
    ProviderPreset(
        "zoho",
        "Zoho Mail (own domain)",
        (),
        Server("poppro.zoho.com", 995, "implicit"),
        Server("imappro.zoho.com", 993, "implicit"),
        Server("smtppro.zoho.com", 465, "implicit"),
        _ZOHO,
    ),
    ProviderPreset(
        "zohocom",
        "Zoho Mail (zoho.com)",
        ("zoho.com", "zohomail.com"),
        Server("pop.zoho.com", 995, "implicit"),
        Server("imap.zoho.com", 993, "implicit"),
        Server("smtp.zoho.com", 465, "implicit"),
        _ZOHO,
    ),
    ProviderPreset(
        "ionos",
        "IONOS (ionos.com)",
        (),
        Server("pop.ionos.com", 995, "implicit"),
        Server("imap.ionos.com", 993, "implicit"),
        Server("smtp.ionos.com", 465, "implicit"),
        _IONOS,
    ),
    ProviderPreset(
        "ionosde",
        "IONOS (ionos.de)",
        (),
        Server("pop.ionos.de", 995, "implicit"),
        Server("imap.ionos.de", 993, "implicit"),
        Server("smtp.ionos.de", 465, "implicit"),
        _IONOS,
    ),
    ProviderPreset(
        "ovh",
        "OVHcloud (MX Plan)",
        (),
        Server("ssl0.ovh.net", 995, "implicit"),
        Server("ssl0.ovh.net", 993, "implicit"),
        Server("ssl0.ovh.net", 465, "implicit"),
        marked(
            "Email Pro and Exchange have servers of their own, which the control panel of OVHcloud shows. By POP3, "
            "check for new mail every 120 seconds."
        ),
    ),
    ProviderPreset(
        "strato",
        "STRATO",
        (),
        Server("pop3.strato.de", 995, "implicit"),
        Server("imap.strato.de", 993, "implicit"),
        Server("smtp.strato.de", 465, "implicit"),
        marked("The login user name is the main address of the mailbox, not an alias."),
    ),
)


def preset_for_address(address: str) -> ProviderPreset | None:
    """Return the provider of an address, by its domain; None if unknown."""
    domain = address.rpartition("@")[2].casefold()
    return next((p for p in PROVIDERS if any(domain == d or domain.endswith(f".{d}") for d in p.domains)), None)


def preset_for_key(key: str) -> ProviderPreset | None:
    """Return the provider with this key; None if unknown."""
    return next((provider for provider in PROVIDERS if provider.key == key), None)


def preset_for_hosts(*hosts: str) -> ProviderPreset | None:
    """Return the provider that has one of these servers; None if unknown."""
    known = {host.casefold() for host in hosts}
    for provider in PROVIDERS:
        if known & {server.host for server in (provider.pop3, provider.imap, provider.smtp) if server is not None}:
            return provider
    return None
