"""Every line of the log that speaks of a mail has the one trace_id of that mail, in all services."""

from __future__ import annotations

import imaplib
import json
import poplib
from typing import Any

import psycopg

from tests.system import PASSWORD, System, until

ANNA, SUPPORT = "anna@customer.example", "support@company.com"
IDS = ("id", "inbound_id", "submission_id")


def lines(system: System) -> list[dict[str, Any]]:
    """Return the lines of all services."""
    found = []
    for file in (system.settings.data / "log").glob("*.log"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("{"):
                found.append(json.loads(line))
    return found


def of_mail(system: System, what: str) -> tuple[set[int], list[dict[str, Any]]]:
    """Return the ids of the rows of a mail, and the lines that name one of them."""
    with psycopg.connect(str(system.settings.database_url)) as connection:
        rows = connection.execute(
            """select id from submissions where message_id = %(what)s
               union select id from inbound where message_id = %(what)s""",
            {"what": what},
        )
        ids = {int(id_) for (id_,) in rows}
    return ids, [line for line in lines(system) if any(line.get(key) in ids for key in IDS)]


def empty_mailbox_by_imap(system: System, address: str) -> None:
    with imaplib.IMAP4("127.0.0.1", system.settings.imap_port, timeout=60) as session:
        session.login(address, PASSWORD)
        session.select()
        session.store("1:*", "+FLAGS", "\\Deleted")
        session.expunge()


def empty_mailbox(system: System, address: str) -> None:
    session = poplib.POP3("127.0.0.1", system.settings.pop3_port, timeout=60)
    session.user(address)
    session.pass_(PASSWORD)
    for number in range(session.stat()[0]):
        session.dele(number + 1)
    session.quit()


def test_a_mail_has_one_trace_id_from_fetch_or_submission_to_its_end(system: System) -> None:
    # given a mail that comes in, and one that goes out, to a colleague, and to another external account of ours
    system.provider.add_mailbox(ANNA, PASSWORD)
    system.apply(system.company())
    came = f"From: {ANNA}\r\nTo: {SUPPORT}\r\nMessage-ID: <came@x.example>\r\nSubject: came\r\n\r\nhello\r\n"
    system.provider.put(SUPPORT, came.encode())
    went = (
        f"From: alex@local.com\r\nTo: {ANNA}\r\nCc: jim@local.com, sales@company.com\r\n"
        "Message-ID: <went@local.com>\r\nSubject: went\r\n\r\nhello\r\n"
    )
    system.submit("alex@local.com", [ANNA, "jim@local.com", "sales@company.com"], went.encode())
    until(lambda: system.who_has("came", ["alex@local.com"]) and system.who_has("went", ["jim@local.com"]))
    until(lambda: {"relayed"} <= {line["event"] for line in of_mail(system, "went@local.com")[1]})
    until(lambda: system.who_has("went", ["kim@local.com"]))
    empty_mailbox(system, "jim@local.com")
    empty_mailbox_by_imap(system, "alex@local.com")

    # when all lines of either mail are collected
    for what, ids_of_rows, events in (
        ("came@x.example", 1, {"fetched", "routed", "delivered", "deleted"}),
        ("went@local.com", 3, {"submitted", "relayed", "routed", "delivered", "deleted"}),
    ):
        ids, named = of_mail(system, what)
        # then each has the same trace_id, the id of the first row, and by it all of them are found
        assert len(ids) == ids_of_rows, (what, ids)
        assert {line.get("trace_id") for line in named} == {min(ids)}, named
        assert events <= {line["event"] for line in named}
        deletions = {line["service"] for line in named if line["event"] == "deleted"}
        assert deletions == {"pop3_out", "imap_out"} if what.startswith("came") else deletions == {"pop3_out"}
        assert [line for line in lines(system) if line.get("trace_id") == min(ids)] == named
