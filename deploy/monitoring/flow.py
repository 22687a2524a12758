"""The dashboard for the owner of the business.

Expressions that count rare events end with ``or vector(0)``: without events the graph shows 0, not a gap.
"""

from __future__ import annotations

from deploy.monitoring.panels import RATE, Board, Panel, figure, per_minute

FLOW = Board(
    "mailgroup-flow",
    "Mail flow at a glance",
    "Whether mail flows, whether mail waits, and whether an administrator must act.",
    {
        "Now": [
            figure(
                "Longest without a poll",
                "Time since the last successful poll of the account that waits longest. Over 15 minutes: check it.",
                "s",
                "max(time() - max by (external) (mailgroup_fetch_last_success_timestamp_seconds))",
                900,
            ),
            figure(
                "Waiting to be relayed",
                "Mails of your people that have not been handed to the provider yet.",
                "short",
                "max(mailgroup_relay_queue_messages)",
                100,
            ),
            figure(
                "Oldest of them",
                "Age of the oldest mail that waits to be relayed. Its author gets a notice after four hours.",
                "s",
                "max(mailgroup_relay_oldest_seconds)",
                3600,
            ),
            figure(
                "On hold",
                "Held mails: no enabled user shares the account.",
                "short",
                "max(mailgroup_held_messages)",
                1,
            ),
            figure(
                "Waits for the start",
                "Mails of accounts that are not started: nobody has said that everybody is there.",
                "short",
                "max(mailgroup_unstarted_messages)",
                1,
            ),
            figure(
                "Needs attention",
                "Parked mails: set apart until an administrator decides.",
                "short",
                "max(mailgroup_parked_messages)",
                1,
            ),
            figure(
                "Books' difference",
                "Mails fetched minus those delivered, held, parked, own copies and in flight. An alarm unless 0.",
                "short",
                "max(mailgroup_books_difference_messages)",
                1,
            ),
        ],
        "The last hours": [
            Panel(
                "Mail",
                "Mails a minute: fetched from providers, delivered to mailboxes, submitted by mail clients, relayed.",
                "short",
                {
                    "fetched": per_minute("mailgroup_messages_fetched_total"),
                    "delivered": per_minute("mailgroup_messages_delivered_total"),
                    "submitted": per_minute("mailgroup_messages_submitted_total"),
                    "relayed": per_minute('mailgroup_messages_relayed_total{result="relayed"}'),
                },
            ),
            Panel(
                "Not relayed",
                "Recipients a minute that the provider refused permanently or temporarily.",
                "short",
                {
                    "refused": per_minute('mailgroup_messages_relayed_total{result="failed"}'),
                    "delayed": per_minute('mailgroup_messages_relayed_total{result="delayed"}'),
                },
            ),
            Panel(
                "Fetched, by external account",
                "Mails a minute.",
                "short",
                {"{{external}}": f"60 * sum by (external) (rate(mailgroup_messages_fetched_total{RATE}))"},
                stacked=True,
            ),
            Panel(
                "Mails by routing rule",
                "Mails a minute by routing rule: 1 named in To, 2 named in Cc, 3 reply to a person's mail, "
                "4 report on a person's mail, 5 nobody was named.",
                "short",
                {"rule {{rule}}": f"60 * sum by (rule) (rate(mailgroup_messages_routed_total{RATE}))"},
                stacked=True,
            ),
        ],
        "Providers and people": [
            Panel(
                "Time since the last successful poll",
                "By external account.",
                "s",
                {"{{external}}": "time() - max by (external) (mailgroup_fetch_last_success_timestamp_seconds)"},
            ),
            Panel(
                "Failed polls",
                "Polls a minute, by kind of failure.",
                "short",
                {"failed": per_minute("mailgroup_fetch_errors_total")},
            ),
            Panel(
                "Connected mail clients",
                "Open connections.",
                "short",
                {"POP3": "sum(mailgroup_pop3_sessions)", "SMTP": "sum(mailgroup_smtp_sessions)"},
            ),
            Panel(
                "Logins",
                "Logins a minute. Constant refusals: a client with an old password, or an attacker guessing passwords.",
                "short",
                {
                    "ok": per_minute('mailgroup_logins_total{result="ok"}'),
                    "refused": per_minute('mailgroup_logins_total{result="refused"}'),
                    "throttled": per_minute('mailgroup_logins_total{result="throttled"}'),
                },
            ),
        ],
    },
)
