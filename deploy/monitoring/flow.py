"""The dashboard for the owner of the business.

Expressions that count rare things end with ``or vector(0)``: nothing has happened is a zero, not a gap.
"""

from __future__ import annotations

from deploy.monitoring.panels import RATE, Board, Panel, figure, per_minute

FLOW = Board(
    "mailgroup-flow",
    "Mail flow at a glance",
    "Is mail flowing, is anything stuck, does anybody have to do something?",
    {
        "Now": [
            figure(
                "Longest without a poll",
                "Time since the last good poll of the external account that has waited longest. Over 15 minutes: look.",
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
                "Age of the oldest mail that waits to be relayed. Its author is told after four hours.",
                "s",
                "max(mailgroup_relay_oldest_seconds)",
                3600,
            ),
            figure("Held", "Mails that nobody enabled is there to get.", "short", "max(mailgroup_held_messages)", 1),
            figure(
                "Parked",
                "Mails that are set apart until somebody decides.",
                "short",
                "max(mailgroup_parked_messages)",
                1,
            ),
            figure(
                "Books' difference",
                "Mails fetched less those delivered, held, parked, own copies and in flight. Not 0 is an alarm.",
                "short",
                "max(mailgroup_books_difference_messages)",
                1,
            ),
        ],
        "The last hours": [
            Panel(
                "Mail",
                "Mails a minute: fetched from providers, copies put into mailboxes, taken from mail clients, relayed.",
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
                "Recipients a minute that the provider refused for good, or that have to wait.",
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
                "Why somebody got it",
                "Mails a minute by the rule that decided: 1 named in To, 2 named in Cc, 3 answer to a mail of theirs, "
                "4 report on a mail of theirs, 5 nobody was named.",
                "short",
                {"rule {{rule}}": f"60 * sum by (rule) (rate(mailgroup_messages_routed_total{RATE}))"},
                stacked=True,
            ),
        ],
        "Providers and people": [
            Panel(
                "Time since the last good poll",
                "By external account.",
                "s",
                {"{{external}}": "time() - max by (external) (mailgroup_fetch_last_success_timestamp_seconds)"},
            ),
            Panel(
                "Polls that failed",
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
                "Logins a minute. Refused ones that do not end: a client with an old password, or somebody guessing.",
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
