-- The folders of a person and their mails replace maildrops and maildrop_mails. What was there is the folder INBOX, with
-- the UIDs 1 to n in the order of the mailbox, and the UIDLs as they were.

-- This locks the table until the commit: a purge by older code is over, and the next one waits and finds no table.
alter table maildrop_mails rename column uid to uidl;

alter sequence maildrop_uids rename to uidl_numbers;

-- Owner: shared/store/folders.py; versions and UIDs also by the owners of folder_mails
-- A folder of a local account; POP3 serves INBOX. version counts the changes of a folder: each writer locks this row
-- first, and several folders in the order of their ids. So versions are in the order of commits, a later mail has the
-- higher UID, and a reader loads the changes after the version that it has. A removal or disabling of an account locks
-- all its folders.
create table folders (
    id              bigint generated always as identity primary key,
    local_id        bigint not null,                 -- of local_accounts
    name            text not null,                   -- with "/" between the levels
    special_use     text check (special_use in ('inbox', 'sent', 'drafts', 'junk', 'trash', 'archive')),  -- RFC 6154
    uidl_prefix     text check ((special_use = 'inbox') = (uidl_prefix is not null)),  -- first part of each UIDL
    uidvalidity     bigint not null,                 -- RFC 9051 section 2.3.1.1; a folder of this name made later has more
    uidnext         bigint not null default 1,       -- the UID of the next mail
    version         bigint not null default 1,       -- RFC 7162: HIGHESTMODSEQ
    purged_version  bigint not null default 0,       -- tombstones up to this version may be purged
    subscribed      boolean not null default true,
    deleted_at      timestamptz                      -- a client deleted it; it is purged after its tombstones
) with (fillfactor = 50);                            -- rows change often, and no index covers what changes

-- Owners: shared/store/folder_mails.py; shared/store/folder_edits.py and folder_batches.py (by mail clients);
-- shared/store/folder_admin.py
-- A mail in a folder. A tombstone (expunged_at) keeps the row, so that clients hear of the deletion and undelete finds
-- the mail. The same mail in another folder or mailbox is another row, for the same bytes.
-- folder_id is no foreign key, which would cost each copy one more check: a writer holds the lock of the folder's
-- row, and a folder is purged only when no writer accepts it any more and it is empty.
-- mail_id is none: inbound and submissions are purged when no row here has their bytes, and another key would
-- cost each copy an index entry.
-- expunged_as: null -> deleted | moved | draft    by a client, the operator, or a submission's copy that is replaced
--              deleted -> moved                   undelete has added another row with the mail
create table folder_mails (
    folder_id      bigint not null,
    uid            bigint not null,                  -- from 1, up to 32 bits
    uidl           bigint not null default nextval('uidl_numbers'),  -- UIDL: uidl_prefix of the INBOX and this
    blob_id        bigint not null,
    mail_id        bigint not null,                  -- of inbound or submissions, or a number of its own
    octets         bigint not null,
    version        bigint not null,                  -- of the folder when this row last changed; RFC 7162: MODSEQ
    internal_date  timestamptz not null default now(),
    expunged_at    timestamptz,
    flags          smallint not null default 0,      -- bits: 1 \Seen, 2 \Answered, 4 \Flagged, 8 \Deleted, 16 \Draft
    expunged_as    text check (expunged_as in ('deleted', 'moved', 'draft')),  -- undelete offers deleted ones alone
    keywords       text[],                           -- null: none
    message_id     text,                             -- of a mail in Sent, without the angle brackets, if it has one
    check ((expunged_at is null) = (expunged_as is null))
) with (autovacuum_vacuum_scale_factor = 0.02);

-- Owners: shared/store/folder_mails.py; for the purge shared/store/inbound_admin.py
-- The mails that were put into a person's INBOX, as long as the mail is kept: a mail that the person moved or expunged
-- is not delivered again. inbound_id is no foreign key, which would cost each copy one more check: the purge deletes the
-- rows with the mail.
create table delivered (
    inbound_id  bigint not null,
    local_id    bigint not null                      -- of local_accounts
) with (autovacuum_vacuum_scale_factor = 0.02);

insert into folders (local_id, name, special_use, uidl_prefix, uidvalidity, uidnext, version)
    select m.local_id, s.name, s.use, case s.use when 'inbox' then m.uidl_prefix end,
        extract(epoch from now())::bigint, case s.use when 'inbox' then coalesce(r.mails, 0) + 1 else 1 end,
        case s.use when 'inbox' then greatest(m.last_version, 1) else 1 end
    from maildrops m
        left join (select local_id, count(*) as mails from maildrop_mails group by local_id) r using (local_id)
        cross join (values (1, 'INBOX', 'inbox'), (2, 'Sent', 'sent'), (3, 'Drafts', 'drafts'), (4, 'Junk', 'junk'),
                           (5, 'Trash', 'trash'), (6, 'Archive', 'archive')) s (position, name, use)
    order by m.local_id, s.position;

insert into folder_mails (folder_id, uid, uidl, blob_id, mail_id, octets, version, internal_date, expunged_at, expunged_as)
    select f.id, row_number() over (partition by r.local_id order by r.uidl), r.uidl, r.blob_id, r.inbound_id, r.octets,
        r.version, r.delivered_at, r.deleted_at, case when r.deleted_at is not null then 'deleted' end
    from maildrop_mails r join folders f on f.local_id = r.local_id and f.special_use = 'inbox';

insert into delivered (inbound_id, local_id) select inbound_id, local_id from maildrop_mails;

alter table folders add foreign key (local_id) references local_accounts;
create unique index folders_name on folders (local_id, name) where deleted_at is null;
create unique index folders_special_use on folders (local_id, special_use) where special_use is not null;

alter table delivered add primary key (inbound_id, local_id);

alter table folder_mails add primary key (folder_id, uid);
alter table folder_mails add foreign key (blob_id) references blobs;
create index folder_mails_version on folder_mails (folder_id, version);
create index folder_mails_blob on folder_mails (blob_id);
create index folder_mails_expunged on folder_mails (expunged_at) where expunged_at is not null;
create index folder_mails_message_id on folder_mails (folder_id, message_id) where message_id is not null;
create index folder_mails_drafts on folder_mails (expunged_at) where expunged_as = 'draft';

-- As in initial.sql, for folders. A UID has 32 bits, and no folder gets a million mails in the commits that a standby
-- can lack.
create or replace function skip_lost_numbers() returns void language plpgsql as $$
declare
    gap constant bigint := 100000000;                -- twice VERSION_GAP of shared/store/folder_mails.py
begin
    if (select timeline from number_timeline) = present_timeline() then
        return;
    end if;
    update number_timeline set timeline = present_timeline() where timeline <> present_timeline();
    if not found then                                -- another connection was first, and its commit was awaited
        return;
    end if;
    perform setval(oid::regclass, nextval(oid::regclass) + gap)
        from pg_class where relkind = 'S' and relnamespace = 'public'::regnamespace;
    update folders set version = version + gap, uidnext = uidnext + 1000000;
end $$;

drop table maildrop_mails;
drop table maildrops;
