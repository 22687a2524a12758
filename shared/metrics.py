"""Duration of each stage: one histogram for all services."""

from __future__ import annotations

from prometheus_client import Histogram

STAGE_SECONDS = Histogram(
    "mailgroup_stage_seconds",
    "Time a stage takes: a batch of router or mailbox, a poll, a submission's commit, a relayed mail, a login.",
    ["stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)  # router, mailbox, sender, poll, submission, relay, pop3_out_login, smtp_in_login, http
