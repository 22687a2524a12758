"""What the log says of each mail."""

from __future__ import annotations

from structlog.testing import capture_logs

from shared import maillog
from shared.maillog import Event


def test_one_trace_id_goes_with_a_mail_from_the_fetch_to_the_delivery_and_from_the_submission_to_the_relay() -> None:
    with capture_logs() as logged:
        maillog.announce([Event("fetched", inbound_id=7, external="support@company.com")])
        maillog.announce([Event("delivered", inbound_id=7, who="alex@local.com"), Event("delivered", inbound_id=8)])
        maillog.announce([Event("submitted", submission_id=9), Event("relayed", submission_id=9)])

    lines = [line for entry in logged for line in entry["lines"]]
    assert [(line["event"], line["trace_id"]) for line in lines] == [
        ("fetched", 7),
        ("delivered", 7),
        ("delivered", 8),
        ("submitted", 9),
        ("relayed", 9),
    ]
