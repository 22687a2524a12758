"""Durations: of each stage, and of a mail from end to end with their objectives (docs/slo.md)."""

from __future__ import annotations

from prometheus_client import Histogram

STAGE_SECONDS = Histogram(
    "mailgroup_stage_seconds",
    "Time a stage takes: a batch of router or mailbox, a poll, a submission's commit, a relayed mail, a login.",
    ["stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)  # router, mailbox, sender, poll, submission, relay, pop3_out_login, imap_out_login, smtp_in_login, http

READABLE_SECONDS = 60.0
"""Objective of the time from the commit of a fetched mail to its delivery: seconds. Usually it takes a tenth of one; a
message that RabbitMQ lost is found again after some seconds."""
RELAYED_SECONDS = 300.0
"""Objective of the time from the commit of a submission to the provider's acceptance: seconds. Usually it takes one or
two; a provider that refuses temporarily gets the next try within minutes."""
WINDOWS = {"5m": 300, "30m": 1800, "1h": 3600, "2h": 7200, "6h": 21_600, "1d": 86_400, "3d": 259_200}
"""Windows in which late mails are counted: seconds by their name in Prometheus."""

FETCH_TO_READABLE = Histogram(
    "mailgroup_fetch_to_readable_seconds",
    "Time from the commit of a fetched mail until it is in the mailboxes, by the times of the rows.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, READABLE_SECONDS, 300, 3600),
)
SUBMIT_TO_RELAYED = Histogram(
    "mailgroup_submit_to_relayed_seconds",
    "Time from the commit of a submission until the provider accepts it, by the times of the rows.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, RELAYED_SECONDS, 3600, 14400),
)
