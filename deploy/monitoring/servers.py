"""The dashboards of RabbitMQ and PostgreSQL."""

from __future__ import annotations

from deploy.monitoring.panels import RATE, Board, Panel


def _of_any_exporter(aggregation: str, metric: str, of_cloudnative_pg: str) -> str:
    """Return an aggregation of a metric of postgres_exporter, or of the same one of CloudNativePG's exporter.

    :param aggregation: with ``{}`` for the metric.
    :param of_cloudnative_pg: ``cnpg_``, the query's name and the column (config/manager/default-monitoring.yaml there).
    """
    selected = (aggregation.format(f'{name}{{datname="mailgroup"}}') for name in (metric, of_cloudnative_pg))
    return " or ".join(selected)


def _per_second(metric: str) -> str:
    """Return the rate of a counter that PostgreSQL's exporters name without ``_total``."""
    return _of_any_exporter(f"sum(rate(({{}}{RATE})))", metric, f"cnpg_{metric}")


RABBITMQ = Board(
    "mailgroup-rabbitmq",
    "RabbitMQ",
    "The queues between the services. The database is authoritative: messages that RabbitMQ loses are published again.",
    {
        "Queues": [
            Panel(
                "Waiting messages",
                "Messages in each queue; one may be about up to 50 mails.",
                "short",
                {"{{queue}}": 'sum by (queue) (rabbitmq_detailed_queue_messages{queue=~".+"})'},
            ),
            Panel(
                "Unacknowledged messages",
                "Messages that services have received and not acknowledged yet.",
                "short",
                {"{{queue}}": 'sum by (queue) (rabbitmq_detailed_queue_messages_unacked{queue=~".+"})'},
            ),
            Panel(
                "Consumers",
                "Services that consume each queue; mail.dead-letters has none.",
                "short",
                {"{{queue}}": 'sum by (queue) (rabbitmq_detailed_queue_consumers{queue=~"router|mailbox|sender"})'},
            ),
            Panel(
                "Messages of all queues",
                "Published and acknowledged messages a second.",
                "cps",
                {
                    "published": f"sum(rate(rabbitmq_global_messages_received_total{RATE}))",
                    "acknowledged": f"sum(rate(rabbitmq_global_messages_acknowledged_total{RATE}))",
                },
            ),
        ],
        "Node": [
            Panel(
                "Memory",
                "Resident memory of the node, and the limit above which it accepts no messages.",
                "bytes",
                {
                    "{{instance}}": "rabbitmq_process_resident_memory_bytes",
                    "limit {{instance}}": "rabbitmq_resident_memory_limit_bytes",
                },
                width=8,
            ),
            Panel(
                "Free disk",
                "Free disk space of the node, and the limit below which it accepts no messages.",
                "bytes",
                {
                    "{{instance}}": "rabbitmq_disk_space_available_bytes",
                    "limit {{instance}}": "rabbitmq_disk_space_available_limit_bytes",
                },
                width=8,
            ),
            Panel("Connections", "Open AMQP connections.", "short", {"{{instance}}": "rabbitmq_connections"}, width=8),
        ],
    },
)

POSTGRES = Board(
    "mailgroup-postgres",
    "PostgreSQL",
    "All mail and every state.",
    {
        "Load": [
            Panel(
                "Transactions",
                "Commits and rollbacks a second.",
                "cps",
                {
                    "committed": _per_second("pg_stat_database_xact_commit"),
                    "rolled back": _per_second("pg_stat_database_xact_rollback"),
                },
            ),
            Panel(
                "Connections",
                "Connections by state; those of all programs, those that may be opened, and the limit.",
                "short",
                {
                    "{{state}}": _of_any_exporter(
                        "sum by (state) ({})", "pg_stat_activity_count", "cnpg_backends_total"
                    ),
                    "all programs": 'max(mailgroup_database_connections{state="used"})',
                    "promised": 'max(mailgroup_database_connections{state="promised"})',
                    "allowed": 'max(mailgroup_database_connections{state="limit"})',
                },
            ),
            Panel(
                "Longest transaction",
                "Age of the oldest running transaction. None of mailgroup's takes over 60 s.",
                "s",
                {
                    "longest": _of_any_exporter(
                        "max({})", "pg_stat_activity_max_tx_duration", "cnpg_backends_max_tx_duration_seconds"
                    )
                },
            ),
            Panel(
                "Blocks",
                "Blocks a second found in memory, and read from disk.",
                "cps",
                {
                    "memory": _per_second("pg_stat_database_blks_hit"),
                    "disk": _per_second("pg_stat_database_blks_read"),
                },
            ),
        ],
        "Size and problems": [
            Panel(
                "Size of the database",
                "All mail, with its indexes; of one server, if there are several.",
                "bytes",
                {"mailgroup": _of_any_exporter("max({})", "pg_database_size_bytes", "cnpg_pg_database_size_bytes")},
                width=8,
            ),
            Panel(
                "Rows",
                "Rows written a second.",
                "cps",
                {
                    "inserted": _per_second("pg_stat_database_tup_inserted"),
                    "updated": _per_second("pg_stat_database_tup_updated"),
                    "deleted": _per_second("pg_stat_database_tup_deleted"),
                },
                width=8,
            ),
            Panel(
                "Deadlocks",
                "Deadlocks a minute; the transaction that PostgreSQL ends is tried again.",
                "short",
                {"deadlocks": f"60 * ({_per_second('pg_stat_database_deadlocks')})"},
                width=8,
            ),
            Panel(
                "Age of the newest backup",
                "Base backup of CloudNativePG's plugin, daily backup of docker compose. One is made each day.",
                "s",
                {
                    "base": "time() - max(barman_cloud_cloudnative_pg_io_last_available_backup_timestamp)",
                    "daily": "time() - max(mailgroup_backup_last_success_timestamp_seconds)",
                },
                width=8,
            ),
        ],
    },
)
