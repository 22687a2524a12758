"""The dashboard for the owner of the business.

The first row answers within ten seconds whether mail flows: in, out, to people; whether services, alerts and logins at
providers are well. A tile shows this moment, and is grey without data. Expressions that count rare events end with
``or vector(0)``: without events the graph shows 0, not a gap.
"""

from __future__ import annotations

from deploy.monitoring.objectives import OBJECTIVES, late_share
from deploy.monitoring.panels import RATE, Board, Panel, figure, per_minute, worst, worst_of_time
from shared.settings import SERVICES

FLOW = Board(
    "mailgroup-flow",
    "Mail flow at a glance",
    "Whether mail flows, whether mail waits, and whether an administrator must act.",
    {
        "Does mail flow?": [
            figure(
                "In: longest without a poll",
                "Time since the last successful poll of the account that waits longest.",
                "s",
                "time() - min(mailgroup_fetch_last_success_timestamp_seconds)",
                900,
            ),
            figure(
                "Out: oldest mail that waits",
                "Age of the oldest mail that waits to be relayed. Its author gets a notice after four hours.",
                "s",
                "max(mailgroup_relay_oldest_seconds)",
                3600,
            ),
            figure(
                "People reading, POP3 and IMAP",
                "Logins by POP3 and IMAP, and IMAP clients that are connected. At night there may be none.",
                "short",
                'sum(increase(mailgroup_logins_total{service=~"pop3_out|imap_out",result="ok"}[15m])) '
                "+ (sum(mailgroup_imap_sessions) or vector(0))",
                below=("orange", 1),
            ),
            figure(
                f"Services up, of {len(SERVICES)}",
                "Services of which at least one process answers Prometheus.",
                "short",
                f'count(max by (job) (up{{job=~"{"|".join(SERVICES)}"}}) == 1) or vector(0)',
                below=("red", len(SERVICES)),
            ),
            figure(
                "Alerts",
                "Alerts that fire. No data: Prometheus evaluates no rules.",
                "short",
                '(count(ALERTS{alertstate="firing",alertname!="Watchdog"}) or vector(0)) '
                'and on () count(ALERTS{alertname="Watchdog",alertstate="firing"})',
                1,
            ),
            figure(
                "Logins refused by providers",
                "Directions (fetching, relaying) of accounts whose provider refuses the login.",
                "short",
                "sum(mailgroup_account_login_refused)",
                1,
            ),
        ],
        "Does mail wait?": [
            figure(
                "Waiting to be relayed",
                "Mails of your people that have not been handed to the provider yet.",
                "short",
                "max(mailgroup_relay_queue_messages)",
                100,
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
                below=("red", 0),
            ),
            *(
                figure(
                    f"{objective.name.capitalize()} in time, 6 h",
                    f"Share of the mails that were {objective.name} within {objective.seconds:g} s (docs/slo.md). "
                    "No data: no mail.",
                    "percentunit",
                    f"1 - max({late_share(objective.name, '6h')})",
                    below=("red", objective.share),
                )
                for objective in OBJECTIVES
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
                "Fetched, the ten busiest accounts",
                "Mails a minute.",
                "short",
                {
                    "{{external}}": worst_of_time(
                        f"60 * sum by (external) (rate(mailgroup_messages_fetched_total{RATE}))"
                    )
                },
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
                "The ten accounts that wait longest.",
                "s",
                {
                    "{{external}}": worst_of_time(
                        "time() - max by (external) (mailgroup_fetch_last_success_timestamp_seconds)"
                    )
                },
            ),
            Panel(
                "Logins at providers",
                "Ten accounts, refused ones first.",
                "short",
                {"{{external}} {{direction}}": worst("max by (external, direction) (mailgroup_account_login_refused)")},
                "bargauge",
                1,
                names={0: "ok", 1: "refused"},
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
                {
                    "IMAP": "sum(mailgroup_imap_sessions)",
                    "POP3": "sum(mailgroup_pop3_sessions)",
                    "SMTP": "sum(mailgroup_smtp_sessions)",
                },
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
