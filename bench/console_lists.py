"""Measures the lists of the console with 10,000 people and 1,000,000 mails: how long each page takes to come.

``python -m bench.console_lists`` fills a database of its own, which takes some minutes, and prints the median and the
longest time of each page as a browser asks for it, after one request that is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import psycopg
import requests

from bench.fill import fill
from shared.db.migrations.migrate import migrate
from tests.console import running, signed_in
from tests.servers import postgres

LIMIT_SECONDS = 0.2
"""Time within which a list comes: seconds."""
WORDS, SENDERS, SENT_EVERY, FAILED_EVERY, SHARED_BY = 5_000, 40_000, 4, 1_000, 202
"""Words of the subjects; senders; of how many mails one is followed by a submission; of how many submissions one fails;
people who get the last mail."""
_PEOPLE_AND_WORDS = """
create function pg_temp.word(n bigint) returns text language sql immutable as
    $$ select 'w' || substr(md5((n % {words})::text), 1, 7) $$;
insert into search_index (mail_id, at, external_id, sender, subject, terms)
    select id, now() - (i.last - id) * interval '10 seconds', external_id, 'Sender ' || id % {senders},
        'printer ' || pg_temp.word(id) || ' ' || pg_temp.word(id * 7),
        array['sender' || id % {senders} || '@example.net', 'sender', 'printer', pg_temp.word(id), pg_temp.word(id * 7),
              id || '.grown@example.net']
    from inbound, (select max(id) as last from inbound) i;
insert into submissions (author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8, state)
    select l.id, l.external_id, b.id, l.address, 'sent' || b.id || '@grown', false, false, 'done'
    from (select id, row_number() over (order by id) as n from blobs) b
        join (select id, external_id, address, row_number() over (order by id) - 1 as n, count(*) over () as people
              from local_accounts) l on l.n = b.n / {sent_every} % l.people
    where b.n % {sent_every} = 0;
insert into submission_recipients (submission_id, position, address, kind, state)
    select id, 0, 'customer' || id % {senders} || '@example.net', 'relay',
        case when id % {failed_every} = 0 then 'failed' else 'relayed' end from submissions;
insert into search_index (mail_id, at, external_id, sender, subject, terms)
    select id, now(), external_id, envelope_from, 'answer ' || pg_temp.word(id),
        array['customer' || id % {senders} || '@example.net', 'answer', pg_temp.word(id)] from submissions;
insert into deliveries (inbound_id, local_id, rule, reason)
    select (select max(id) from inbound), id, 5, 'To names nobody' from local_accounts order by id limit {shared_by}
    on conflict do nothing;
insert into maillog (event, inbound_id, who, reply)
    select 'delivered', (select max(id) from inbound), address, 'To names nobody' from local_accounts order by id
    limit {shared_by};
update inbound set state = 'held', reason = 'held: nobody' where id in (select min(id) from inbound);
insert into audit (who, did, target) select 'admin', 'changed local account', address from local_accounts;
"""


def pages(connection: psycopg.Connection) -> dict[str, str]:
    """Return the pages that are measured: what each shows, and its path."""
    row = connection.execute("select max(id) from inbound").fetchone()
    mail = row[0] if row else 0
    row = connection.execute("select subject from search_index order by mail_id limit 1").fetchone()
    word = (row[0] if row else "x x").split()[1]
    middle = mail // 2
    return {
        "local accounts": "/local",
        "local accounts, by part of a name": "/local?q=grown99",
        "local accounts, of one external account": "/local?external=grown1@provider.example",
        "external accounts": "/external",
        "one external account": "/external/grown1@provider.example",
        "one local account": "/local/grown1@bench.local",
        "latest mail": "/mail",
        "older mail": f"/mail?before={middle}",
        "a frequent word": "/mail?q=printer",
        "a rare word": f"/mail?q={word}",
        "the beginning of a word": f"/mail?q={word[:4]}",
        "the beginning of many words": "/mail?q=sen",
        "two words": f"/mail?q=printer+{word}",
        "a sender": "/mail?q=sender77@exam",
        "a word that nothing has": "/mail?q=nothinghasit",
        "one person's mail": "/mail?q=grown1@bench.local",
        "one account's mail": "/mail?account=grown1@provider.example",
        "mail to a person": "/mail?to=grown1@bench.local",
        "mail to a customer": "/mail?to=customer77@",
        "delivered": "/mail?result=delivered",
        "sent": "/mail?result=sent",
        "failed": "/mail?result=failed",
        "waiting": "/mail?result=waiting",
        "on hold": "/mail?result=on+hold",
        "one account's failed mail": "/mail?result=failed&account=grown1@provider.example",
        "one day": f"/mail?day={time.strftime('%Y-%m-%d', time.gmtime(time.time() - 10 * 86_400))}&zone=Europe/Berlin",
        f"a mail to {SHARED_BY} people": f"/mail/{mail}",
        "who did what": "/audit",
        "who did what to one person": "/audit?q=grown77@bench.local",
        "queue": "/queue",
        "overview": "/",
    }


def main() -> int:
    """Fill, measure, print. :return: 1 if a page took too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mails", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=10_000)
    parser.add_argument("--externals", type=int, default=1_000)
    parser.add_argument("--requests", type=int, default=9, help="measured requests of each page")
    options = parser.parse_args()
    numbers = {
        "words": WORDS, "senders": SENDERS, "sent_every": SENT_EVERY, "failed_every": FAILED_EVERY,
        "shared_by": SHARED_BY,
    }  # fmt: skip
    with postgres() as server:
        server.create("lists")
        url = server.url_of("lists")
        migrate(url)
        with psycopg.connect(server.admin_url_of("lists"), autocommit=True) as connection:
            connection.execute("set synchronous_commit = off")
            fill(connection, options.mails, options.people, options.externals, "nobody", 1, 86_400, 100)
            connection.execute("set session_replication_role = replica")
            connection.execute(_PEOPLE_AND_WORDS.format(**numbers).encode())
            connection.execute("vacuum analyze")
            measured = pages(connection)
        with running(url) as console:
            browser = signed_in(console)
            slow = [
                what for what, path in measured.items() if not _measure(browser.session, console, what, path, options)
            ]
    print(f"slower than {LIMIT_SECONDS * 1000:.0f} ms: {', '.join(slow) or 'none'}")
    return 1 if slow else 0


def _measure(session: requests.Session, console: str, what: str, path: str, options: argparse.Namespace) -> bool:
    """Print how long a page takes. :return: it is fast enough."""
    seconds: list[float] = []
    size = 0
    for _ in range(options.requests + 1):
        begin = time.perf_counter()
        answer = session.get(console + path, timeout=300)
        seconds.append(time.perf_counter() - begin)
        answer.raise_for_status()
        size = len(answer.content)
    median = statistics.median(seconds[1:])
    print(
        f"{what:42} {median * 1000:7.0f} ms, longest {max(seconds[1:]) * 1000:7.0f} ms, {size / 1024:5.0f} KiB",
        flush=True,
    )
    return median <= LIMIT_SECONDS


if __name__ == "__main__":
    sys.exit(main())
