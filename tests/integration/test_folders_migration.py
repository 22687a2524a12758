"""The revisions that replace maildrops by folders: what mail clients know of a mailbox stays true."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.machine.postgres import Postgres
from services.pop3_out.mailbox_store import DatabaseStore
from shared.db.migrations import revisions
from shared.db.migrations.migrate import migrate
from shared.store import folder_admin, folder_mails, folder_views, folders
from shared.store.folder_mails import Copy
from tests import servers

BEFORE = "submission_relay"
FILL = """
insert into external_accounts (address, login, password, pop3_host, pop3_port, pop3_tls, smtp_host, smtp_port, smtp_tls,
    smtp_auth, smtp_connections, poll_seconds, history, delete_history, reply_to_author)
    values ('support@company.com', 'x', '', 'h', 995, 'implicit', 'h', 25, 'none', true, 1, 60, 'all', false, true);
insert into local_accounts (address, password_hash, user_name, external_id)
    select name || '@local.com', 'x', name, e.id from external_accounts e, unnest(array['alex', 'jim', 'kim']) name;
insert into maildrops (local_id, uidl_prefix, version) select id, 'p' || id || 'x', (id - 1) * 5 from local_accounts;
select setval('maildrop_uids', 700);
with bytes as (insert into blobs (octets, sha256, head)
        select n, '', repeat('x', n)::bytea from generate_series(1, 4) n returning id, octets),
    mails as (insert into inbound (source, blob_id, state) select 'fetched', id, 'delivered' from bytes
        returning id, blob_id)
insert into maildrop_mails (local_id, blob_id, inbound_id, octets, uid, version, delivered_at, deleted_at)
    select l.id, m.blob_id, m.id, b.octets, 100 * l.id - 10 * b.octets, b.octets, '2026-11-05 12:00+00',
        case when b.octets = 2 then now() end
    from mails m join bytes b on b.id = m.blob_id cross join local_accounts l where l.address <> 'alex@local.com';
"""
"""Mails of 1 to 4 octets for Jim and Kim, the later ones further up in the list; that of 2 octets is deleted."""


@pytest.fixture
def upgraded(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a database of the version before, with mail, that this version has migrated."""
    old = tmp_path / "old"
    shutil.copytree(revisions.FOLDER, old)
    known = revisions.known_revisions()
    for name in known[known.index(BEFORE) + 1 :]:
        for file in (old / "versions").glob(f"{name}.*"):
            file.unlink()
    monkeypatch.setattr(revisions, "FOLDER", old)
    postgres.create("upgraded")
    url = postgres.url_of("upgraded")
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute(FILL)
    monkeypatch.undo()
    assert migrate(url) == known[known.index(BEFORE) + 1 :]
    yield url
    postgres.drop("upgraded")


async def test_mail_clients_find_the_mailboxes_as_they_were(upgraded: str) -> None:
    async with servers.opened(upgraded) as database:
        # then POP3 lists the mails in the order and with the UIDLs that they had
        box = await DatabaseStore(database).load_snapshot(2)
        assert list(box.octets) == [4, 3, 1]
        assert [box.uidl(number) for number in (1, 2, 3)] == [f"p2x{uid:x}" for uid in (160, 170, 190)]
        assert (await DatabaseStore(database).load_snapshot(1)).version == 1
        async with database.transaction() as connection:
            # and IMAP finds them in INBOX, numbered from 1, beside the other folders
            known = await folders.list_folders(connection, 2)
            assert [folder.name for folder in known] == ["Archive", "Drafts", "INBOX", "Junk", "Sent", "Trash"]
            inbox = await folders.find_special(connection, 2, "inbox")
            assert (inbox.uidnext, inbox.version, inbox.purged_version) == (5, 5, 0)
            assert abs(inbox.uidvalidity - time.time()) < 3600
            view = await folder_views.load_view(connection, inbox.id)
            assert (list(view.uids), list(view.octets), list(view.versions)) == ([1, 2, 4], [4, 3, 1], [4, 3, 1])
            assert list(view.flags) == [0, 0, 0]
            assert view.dates[0] == 1_793_880_000_000_000
            # and new mail follows, but none that was there before, deleted or not
            copies = [Copy([1, 2], number, number, number) for number in (1, 2)]
            await folder_mails.deliver_copies(connection, copies)
            assert len(await folder_admin.list_mails(connection, 1)) == 2
            [deleted] = [
                entry for entry in await folder_admin.list_mails(connection, 2, deleted=True) if entry.uid == 3
            ]
            assert (deleted.deleted_at is not None, deleted.uidl) == (True, f"p2x{180:x}")
            assert await folder_admin.undelete_mails(connection, 2, [deleted.key]) == [deleted.mail_id]
        after = await DatabaseStore(database).load_snapshot(2)
        assert [after.uidl(number) for number in (1, 2, 3)] == [box.uidl(number) for number in (1, 2, 3)]
        assert len(after) == 4 and after.uidls[3] > 700


def test_code_of_the_version_before_does_not_work_with_folders(
    upgraded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(upgraded) as connection:
        row = connection.execute(revisions.SCHEMA_QUERY.encode()).fetchone()
    assert row == (revisions.known_revisions()[-1], "last_logins_imap")
    assert revisions.is_usable(*row)
    monkeypatch.setattr(revisions, "FOLDER", tmp_path / "old")
    assert not revisions.is_usable(*row)
