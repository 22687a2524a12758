"""The whole system with an IMAP provider: mail of two folders goes to the people, and is deleted there in time."""

from __future__ import annotations

from typing import Any

from tests.e2e.test_manual_4_3 import letter, receivers
from tests.system import PASSWORD, System, until

SUPPORT = "support@company.com"
ALEX, JIM = "alex@local.com", "jim@local.com"


def by_imap(system: System, tls: str, **fields: Any) -> dict[str, Any]:
    """The account of support@ by IMAP, with the certificate of the stand-in provider pinned."""
    entry = system.external(SUPPORT)
    del entry["pop3"]
    port = system.provider.imaps_port if tls == "implicit" else system.provider.imap_port
    pinned = {} if tls == "none" else {"tls_fingerprint": system.provider.fingerprint}
    return entry | {"imap": {"host": system.provider.host, "port": port, "tls": tls} | pinned} | fields


def status_of(system: System) -> dict[str, Any]:
    """The entry of support@ in the status."""
    [account] = [each for each in system.json("status")["externals"] if each["address"] == SUPPORT]
    return dict(account)


def test_mail_by_imap_goes_to_the_people_and_is_deleted_in_time(system: System) -> None:
    # given the company of the manual, whose provider is asked by IMAP
    company = system.company()
    company["external_accounts"][0] = by_imap(system, "starttls", delete_after_days=0)
    system.apply(company)
    until(lambda: status_of(system)["last_success"])  # mail from before the first contact is never deleted
    # when customers write, without a name and with one
    for to, people in ((SUPPORT, [ALEX, JIM]), (f'"Alex" <{SUPPORT}>', [ALEX])):
        message = letter(to, text=f"To {to}\n")
        system.provider.put(SUPPORT, message.as_bytes())
        assert receivers(system, message) == people
    # then the mails are deleted at the provider
    until(lambda: system.provider.mail_of(SUPPORT) == [])
    # and every command speaks of the account as of another one
    assert all(step["ok"] for step in system.json("external", "test", SUPPORT))
    account = status_of(system)
    assert account["last_error"] is None and account["backlog"] == 0


def test_a_change_to_imap_is_told_and_repeats_nothing(system: System) -> None:
    # given mail that was fetched by POP3
    system.apply(system.company())
    message = letter(SUPPORT, text="By POP3\n")
    system.provider.put(SUPPORT, message.as_bytes())
    assert receivers(system, message) == [ALEX, JIM]
    # when one command changes the account to IMAP
    server = by_imap(system, "implicit")["imap"]
    fields = [f"imap.{name}={value}" for name, value in server.items()]
    told = system.json("external", "set", SUPPORT, f"password={PASSWORD}", *fields)
    # then it says which mails it knows by size and header
    assert "1 were fetched already by their size and header" in told["providers"][0]
    # and further mail comes, and none twice
    again = letter(f'"Jim" <{SUPPORT}>', text="By IMAP\n")
    system.provider.put(SUPPORT, again.as_bytes())
    assert receivers(system, again) == [JIM]
    assert len([mail for mail in system.mails(JIM) if b"By POP3" in mail]) == 1
