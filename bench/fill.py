"""Fills a large database: writes accounts and mails into the tables directly, in minutes instead of hours.

Every mail has the rows of a fetched and delivered one: bytes (few), UIDL ledger, routing decision, copy and mail log.
The system must be empty and unused, as ids are computed from the first one.
"""

from __future__ import annotations

import datetime

import psycopg

from shared.provider.vault import Vault
from tests.company import HASH, KEY

_STEPS = (
    # The table whose ids later statements use, or none; the number of its rows; the statement.
    (
        "external_accounts",
        "externals",
        """insert into external_accounts (address, enabled, login, password, pop3_host, pop3_port, pop3_tls, smtp_host,
               smtp_port, smtp_tls, smtp_auth, smtp_connections, poll_seconds, history, delete_history, reply_to_author)
           select 'grown' || n || '@provider.example', false, %(login)s, %(password)s, '127.0.0.1', %(pop3_port)s,
               'none', '127.0.0.1', %(pop3_port)s, 'none', false, 1, %(poll_seconds)s, 'from_now', false, true
           from generate_series(0, %(externals)s - 1) n""",
    ),
    (
        "",
        "externals",
        # The trigger that does it is switched off.
        """insert into relays (external_id, position, host, port, tls, auth, connections)
           select id, 0, smtp_host, smtp_port, smtp_tls, smtp_auth, smtp_connections from external_accounts
           on conflict do nothing""",
    ),
    (
        "local_accounts",
        "people",
        """insert into local_accounts (address, password_hash, user_name, external_id)
           select 'grown' || n || '@bench.local', %(hash)s, 'Grown ' || n, %(external_accounts)s + n %% %(externals)s
           from generate_series(0, %(people)s - 1) n""",
    ),
    (
        "",
        "externals",
        """insert into polls (external_id, active, next_poll_at, fetched)
           select %(external_accounts)s + n, false, now() + interval '1 day', count(m)
           from generate_series(0, %(externals)s - 1) n
               left join generate_series(0, %(mails)s - 1) m on m %% %(people)s %% %(externals)s = n group by n""",
    ),
    (
        "",
        "people",
        """insert into folders (local_id, name, special_use, uidl_prefix, uidvalidity, uidnext, version)
           select %(local_accounts)s + n, 'INBOX', 'inbox', md5(n::text), 1, %(mails)s + 1, %(mails)s
           from generate_series(0, %(people)s - 1) n""",
    ),
    (
        "blobs",
        "mails",
        """insert into blobs (octets, sha256, head) select octet_length(head), sha256(head), head from (
               select convert_to(format(E'From: Sender <sender@example.net>\\r\\nTo: support@company.com\\r\\n'
                   'Subject: mail %%s\\r\\nMessage-ID: <%%s.grown@example.net>\\r\\n\\r\\n%%s\\r\\n',
                   n, n, repeat('x', %(octets)s)), 'UTF8') head
               from generate_series(0, %(mails)s - 1) n) m""",
    ),
    (
        "inbound",
        "mails",
        """insert into inbound (source, external_id, blob_id, message_id, state, rule, reason)
           select 'fetched', %(external_accounts)s + n %% %(people)s %% %(externals)s, %(blobs)s + n,
               n || '.grown@example.net', 'delivered', 5, 'everyone' from generate_series(0, %(mails)s - 1) n""",
    ),
    (
        "",
        "mails",
        """insert into deliveries (inbound_id, local_id, rule, reason)
           select %(inbound)s + n, %(local_accounts)s + n %% %(people)s, 5, 'everyone'
           from generate_series(0, %(mails)s - 1) n""",
    ),
    (
        "",
        "mails",
        # Mail is deleted a day or two before `kept`, roughly in the order of its arrival.
        """insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, expunged_at, expunged_as)
           select f.id, n + 1, m.id, %(inbound)s + n, m.octets, n + 1,
               case when n < %(deleted)s then %(kept)s::timestamptz - interval '2 days'
                   + (n::float8 / %(deleted)s + random() / 10) * interval '1 day' end,
               case when n < %(deleted)s then 'deleted' end
           from generate_series(0, %(mails)s - 1) n join blobs m on m.id = %(blobs)s + n
               join folders f on f.local_id = %(local_accounts)s + n %% %(people)s order by n""",
    ),
    (
        "",
        "mails",
        """insert into delivered (inbound_id, local_id)
           select %(inbound)s + n, %(local_accounts)s + n %% %(people)s from generate_series(0, %(mails)s - 1) n""",
    ),
    (
        "",
        "mails",
        """insert into uidl_ledger (external_id, uidl, state, octets, sha256, inbound_id, fetched_at)
           select %(external_accounts)s + n %% %(people)s %% %(externals)s, 'grown' || n, 'closed', m.octets, m.sha256,
               %(inbound)s + n, now()
           from generate_series(0, %(mails)s - 1) n join blobs m on m.id = %(blobs)s + n""",
    ),
    (
        "",
        "mails",
        """insert into maillog (event, inbound_id, external, who, rule, reply)
           select event, %(inbound)s + n, 'grown' || n %% %(people)s %% %(externals)s || '@provider.example',
               case event when 'delivered' then 'grown' || n %% %(people)s || '@bench.local' end, 5, 'everyone'
           from generate_series(0, %(mails)s - 1) n, unnest(array['fetched', 'routed', 'delivered']) event""",
    ),
)


def fill(
    connection: psycopg.Connection, mails: int, people: int, externals: int, login: str, pop3_port: int,
    poll_seconds: int, octets: int = 200, deleted: int = 0, kept: datetime.datetime | None = None,
) -> None:  # fmt: skip
    """Write the local accounts grown0@bench.local …, which share the accounts grown0@provider.example …, and the mails.

    :param connection: commits each statement. :param login: of all external accounts, which are disabled.
    :param octets: of the body of each mail. :param deleted: number of the oldest mails that are deleted: some time
        before ``kept``.
    """
    numbers: dict[str, object] = {
        "mails": mails,
        "people": people,
        "externals": externals,
        "login": login,
        "pop3_port": pop3_port,
        "poll_seconds": poll_seconds,
        "octets": octets,
        "deleted": deleted,
        "kept": kept,
        "hash": HASH,
        "password": Vault(KEY).seal("secret"),
    }
    connection.execute(
        "set session_replication_role = replica"
    )  # skips the checks of foreign keys, which are all valid
    for table, count, sql in _STEPS:
        connection.execute(sql.encode(), numbers)
        if table:
            row = connection.execute(f"select max(id) - {numbers[count]} + 1 from {table}".encode()).fetchone()
            numbers[table] = row[0] if row else 0
    connection.execute("set session_replication_role = origin")
    connection.execute("vacuum analyze")
    connection.execute("checkpoint")
