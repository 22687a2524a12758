"""The settings of ``up --lan``: this machine's address on the LAN, and the ports that mail clients expect."""

from __future__ import annotations

import socket

from shared.errors import Permanent
from shared.settings import Settings, is_loopback

PORTS = {
    "imap_port": 143,
    "imaps_port": 993,
    "pop3_port": 110,
    "pop3s_port": 995,
    "smtp_port": 25,
    "submission_port": 587,
    "smtps_port": 465,
}
_FAR_AWAY = ("192.0.2.1", 9)  # the address of no host (RFC 5737); connecting a datagram socket sends nothing


def address_of_this_machine() -> str:
    """Return the IPv4 address from which this machine reaches others. :raises Permanent: there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_FAR_AWAY)
        except OSError as error:
            raise Permanent(
                "--lan: this machine has no way to a network; set MAILGROUP_BIND to the address to listen on"
            ) from error
        return str(probe.getsockname()[0])


def for_the_lan(settings: Settings) -> Settings:
    """Return the settings for the LAN. Explicit settings stay, and metrics stay on the loopback address.

    :raises Permanent: there is no LAN, or MAILGROUP_BIND is the loopback address.
    """
    given = settings.model_fields_set
    bind = settings.bind if "bind" in given else address_of_this_machine()
    if is_loopback(bind):
        raise Permanent(f"--lan: MAILGROUP_BIND: {bind}: is for this machine alone; name the address of the LAN")
    changes: dict[str, object] = {name: port for name, port in PORTS.items() if name not in given}
    changes["bind"] = bind
    if "metrics_bind" not in given:
        changes["metrics_bind"] = "127.0.0.1"
    return settings.model_copy(update=changes)
