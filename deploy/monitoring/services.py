"""A dashboard a service: rate, errors, duration, and what its processes use."""

from __future__ import annotations

from deploy.monitoring.panels import RATE, Board, Panel, per_minute, worst_of_time


def _quantiles(stage: str) -> dict[str, str]:
    """Return the expressions of median and 99th percentile of a stage's duration."""
    buckets = f'mailgroup_stage_seconds_bucket{{stage="{stage}"}}'
    return {
        name: f"histogram_quantile({share}, sum by (le) (rate({buckets}{RATE})))"
        for name, share in (("median", 0.5), ("99th percentile", 0.99))
    }


def _process(job: str) -> list[Panel]:
    return [
        Panel(
            "Processor",
            "Share of one core that each process uses.",
            "percentunit",
            {"{{instance}}": f'rate(process_cpu_seconds_total{{job="{job}"}}{RATE})'},
            width=8,
        ),
        Panel(
            "Memory",
            "Resident memory of each process.",
            "bytes",
            {"{{instance}}": f'process_resident_memory_bytes{{job="{job}"}}'},
            width=8,
        ),
        Panel(
            "Open files",
            "Descriptors of each process: files and connections.",
            "short",
            {"{{instance}}": f'process_open_fds{{job="{job}"}}'},
            width=8,
        ),
    ]


def _service(job: str, what: str, rate: Panel, errors: Panel, duration: Panel, *more: Panel) -> Board:
    return Board(
        f"mailgroup-{job.replace('_', '-')}",
        f"Service {job}",
        what,
        {
            "Rate, errors, duration": [rate, errors, duration, *more],
            "Process": _process(job),
        },
    )


def _faults(stage: str) -> Panel:
    return Panel(
        "Errors",
        "Failed batches a minute, by cause: database or broker (temporary), or one mail.",
        "short",
        {
            "temporary": per_minute(f'mailgroup_stage_failures_total{{stage="{stage}",kind="temporary"}}'),
            "a mail": per_minute(f'mailgroup_stage_failures_total{{stage="{stage}",kind="mail"}}'),
        },
    )


SERVICES = [
    _service(
        "fetcher",
        "Fetches mail from the providers.",
        Panel("Rate", "Mails fetched a minute.", "short", {"fetched": per_minute("mailgroup_messages_fetched_total")}),
        Panel(
            "Errors",
            "Failed polls a minute: refused, unreachable, tls, timeout, protocol, policy, busy, internal.",
            "short",
            {"all": per_minute("mailgroup_fetch_errors_total")},
        ),
        Panel("Duration", "Duration of a poll.", "s", _quantiles("poll")),
    ),
    _service(
        "router",
        "Decides who gets a fetched mail.",
        Panel("Rate", "Mails routed a minute.", "short", {"routed": per_minute("mailgroup_messages_routed_total")}),
        _faults("router"),
        Panel("Duration", "Duration of a batch.", "s", _quantiles("router")),
    ),
    _service(
        "mailbox",
        "Delivers mail to mailboxes.",
        Panel(
            "Rate",
            "Copies delivered to mailboxes a minute.",
            "short",
            {"delivered": per_minute("mailgroup_messages_delivered_total")},
        ),
        _faults("mailbox"),
        Panel("Duration", "Duration of a batch.", "s", _quantiles("mailbox")),
    ),
    _service(
        "pop3_out",
        "Serves the mailboxes by POP3.",
        Panel(
            "Rate",
            "Logins a minute.",
            "short",
            {"logins": per_minute('mailgroup_logins_total{service="pop3_out",result="ok"}')},
        ),
        Panel(
            "Errors",
            "Logins a minute that were refused (wrong, unknown, disabled) or throttled.",
            "short",
            {
                "refused": per_minute('mailgroup_logins_total{service="pop3_out",result="refused"}'),
                "throttled": per_minute('mailgroup_logins_total{service="pop3_out",result="throttled"}'),
            },
        ),
        Panel("Duration", "Seconds from PASS to +OK, refused logins included.", "s", _quantiles("pop3_out_login")),
        Panel("Connections", "Open POP3 connections.", "short", {"open": "sum(mailgroup_pop3_sessions)"}),
    ),
    _service(
        "imap_out",
        "Serves the mailboxes by IMAP.",
        Panel(
            "Rate",
            "Logins a minute. A client stays connected, and hears of new mail by IDLE.",
            "short",
            {"logins": per_minute('mailgroup_logins_total{service="imap_out",result="ok"}')},
        ),
        Panel(
            "Errors",
            "Logins a minute that were refused (wrong, unknown, disabled) or throttled.",
            "short",
            {
                "refused": per_minute('mailgroup_logins_total{service="imap_out",result="refused"}'),
                "throttled": per_minute('mailgroup_logins_total{service="imap_out",result="throttled"}'),
            },
        ),
        Panel(
            "Duration",
            "Seconds from LOGIN or AUTHENTICATE to the reply, refused logins included.",
            "s",
            _quantiles("imap_out_login"),
        ),
        Panel("Connections", "Open IMAP connections.", "short", {"open": "sum(mailgroup_imap_sessions)"}),
    ),
    _service(
        "smtp_in",
        "Accepts submissions of mail clients.",
        Panel(
            "Rate", "Mails accepted a minute.", "short", {"submitted": per_minute("mailgroup_messages_submitted_total")}
        ),
        Panel(
            "Errors",
            "A minute: mails and recipients refused permanently or temporarily, logins refused.",
            "short",
            {
                "refused": per_minute('mailgroup_submissions_refused_total{kind="permanent"}'),
                "refused temporarily": per_minute('mailgroup_submissions_refused_total{kind="temporary"}'),
                "logins": per_minute('mailgroup_logins_total{service="smtp_in",result="refused"}'),
            },
        ),
        Panel("Duration", "Seconds from the final dot to 250.", "s", _quantiles("submission")),
        Panel("Connections", "Open SMTP connections.", "short", {"open": "sum(mailgroup_smtp_sessions)"}),
    ),
    _service(
        "sender",
        "Rewrites submissions and relays them through the providers' servers.",
        Panel(
            "Rate",
            "Recipients relayed a minute.",
            "short",
            {"relayed": per_minute('mailgroup_messages_relayed_total{result="relayed"}')},
        ),
        Panel(
            "Errors",
            "Recipients a minute that were refused permanently or temporarily.",
            "short",
            {
                "refused": per_minute('mailgroup_messages_relayed_total{result="failed"}'),
                "delayed": per_minute('mailgroup_messages_relayed_total{result="delayed"}'),
            },
        ),
        Panel("Duration", "Seconds from MAIL to the provider's last reply.", "s", _quantiles("relay")),
        Panel(
            "Queue",
            "Mails that wait to be relayed, or are being relayed.",
            "short",
            {"waiting": "max(mailgroup_relay_queue_messages)"},
        ),
        Panel(
            "SMTP servers that fail",
            "Failures a minute of the ten worst: unreachable, TLS, login, limits of the provider.",
            "short",
            {
                "{{external}} {{relay}}": worst_of_time(
                    f"60 * sum by (external, relay) (rate(mailgroup_relay_errors_total{RATE}))"
                )
            },
        ),
        Panel(
            "SMTP servers at their limit",
            "1: a limit is reached, set here or by the provider; mail waits, or leaves by the account's next server.",
            "short",
            {"{{external}} {{relay}}": worst_of_time("max by (external, relay) (mailgroup_relay_full)")},
        ),
        Panel(
            "Filing at the provider",
            "Copies of sent mail and marks of answered mail a minute, by IMAP: made, failed and tried again, given up.",
            "short",
            {
                result: per_minute(f'mailgroup_provider_filings_total{{result="{label}"}}')
                for result, label in (("made", "done"), ("failed", "failed"), ("given up", "given_up"))
            },
        ),
        Panel(
            "Missing at the provider",
            "Copies and marks that could not be made and are tried again, of the ten worst accounts.",
            "short",
            {"{{external}}": worst_of_time("max by (external) (mailgroup_provider_filings_failing)")},
        ),
    ),
    _service(
        "admin",
        "The console, the REST API and the alarms.",
        Panel("Rate", "Requests a minute.", "short", {"requests": per_minute("mailgroup_http_requests_total")}),
        Panel(
            "Errors",
            "Requests a minute that failed here (5xx) or were refused (4xx).",
            "short",
            {
                "5xx": per_minute('mailgroup_http_requests_total{status=~"5.."}'),
                "4xx": per_minute('mailgroup_http_requests_total{status=~"4.."}'),
            },
        ),
        Panel("Duration", "Seconds from request to answer.", "s", _quantiles("http")),
        Panel("Connections", "Open connections.", "short", {"open": "sum(mailgroup_http_connections)"}),
        Panel(
            "Periodic work that fails",
            "1: the last run of this work failed (mailgroup status says what that means).",
            "short",
            {"{{work}}": "max by (work) (mailgroup_background_failing)"},
        ),
    ),
]
