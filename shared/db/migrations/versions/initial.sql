-- The whole schema; the tables are in the order in which a mail passes them. Tables are named after the Python modules that own
-- them: the comment above each table names the one module that writes it. Each state column lists its transitions.
-- Times are timestamptz by the database's clock. Addresses are stored as written and compared in lower case.
-- autovacuum_vacuum_scale_factor: the tables that are purged are vacuumed when 2 % of their rows are dead (default: 20 %, of
-- millions of mails days of purges), so that new mail soon uses the space of purged mail.

-- Owner: shared/db/migrations/env.py. Alembic makes the table, with the revision that was applied last.
-- The oldest revision whose code works with this schema; a revision that takes something away raises it.
alter table alembic_version add column oldest_revision text not null default 'initial';

-- ---------------------------------------------------------------------------------------------- accounts

-- Owners: shared/store/accounts.py (reads), shared/store/account_changes.py (writes)
-- A mailbox at a provider (manual 4.1). Removal hides the row; its ledger and mail stay.
create table external_accounts (
    id                    bigint generated always as identity primary key,
    address               text not null check (octet_length(address) <= 200),
    enabled               boolean not null default true,
    login                 text not null,
    password              bytea not null,            -- sealed (MultiFernet); with oauth: refresh token, client secret
    pop3_host             text not null,
    pop3_port             integer not null,
    pop3_tls              text not null check (pop3_tls in ('none', 'starttls', 'implicit')),
    pop3_tls_fingerprint  text,                      -- SHA-256 of the pinned certificate, 64 hex digits
    smtp_host             text not null,
    smtp_port             integer not null,
    smtp_tls              text not null check (smtp_tls in ('none', 'starttls', 'implicit')),
    smtp_tls_fingerprint  text,
    smtp_auth             boolean not null,
    smtp_connections      integer not null,
    smtp_version          bigint not null default 0, -- counts the changes of how, as whom or whether mail is sent
    smtp_size             bigint,                    -- octets, learnt from EHLO's SIZE; null: no limit
    smtp_refused          bigint,                    -- octets, learnt: the smallest mail that it refused as too large
    smtp_refused_at       timestamptz,               -- forgotten after a week, as limits grow
    oauth                 jsonb,                     -- OAuth of shared/model.py; null: a password
    poll_seconds          integer not null,
    history               text not null check (history in ('all', 'from_now')),
    delete_after_days     integer,                   -- null: never, 0: at once
    delete_history        boolean not null,
    reply_to_author       boolean not null,
    answer_notes          boolean not null default false,  -- notify sharers of an answer to everyone's mail
    hold                  boolean not null default false,  -- its mail stays held until the operator starts the account
    aliases               text[] not null default '{}',
    created_at            timestamptz not null default now(),
    removed_at            timestamptz
);
create unique index external_accounts_address on external_accounts (lower(address)) where removed_at is null;

-- A mail that is built and sent for one version of the account is not completed for another one. A renewed token, which
-- replaces the password of an account with oauth, is no change: the sender itself stores it.
create function count_smtp_change() returns trigger language plpgsql as $$
begin
    new.smtp_version := old.smtp_version + 1;
    return new;
end $$;
create trigger external_accounts_smtp before update on external_accounts for each row
    when ((old.address, old.enabled, old.login, old.smtp_host, old.smtp_port, old.smtp_tls, old.smtp_tls_fingerprint,
           old.smtp_auth, old.oauth, old.removed_at)
          is distinct from (new.address, new.enabled, new.login, new.smtp_host, new.smtp_port, new.smtp_tls,
           new.smtp_tls_fingerprint, new.smtp_auth, new.oauth, new.removed_at)
          or (new.oauth is null and old.password <> new.password))
    execute function count_smtp_change();

-- Owners: shared/store/accounts.py (reads), shared/store/account_changes.py (writes)
-- A person (manual 4.2). Removal hides the row and keeps its mail for the retention time.
create table local_accounts (
    id             bigint generated always as identity primary key,
    address        text not null check (octet_length(address) <= 200),
    enabled        boolean not null default true,
    password_hash  text not null,                    -- argon2id, PHC string
    weak_password  boolean not null default false,   -- it had too few characters when it was set
    user_name      text not null,
    aliases        text[] not null default '{}',     -- further names
    former_names   text[] not null default '{}',     -- earlier user names, kept at a change
    addresses      text[] not null default '{}',     -- further local addresses
    external_id    bigint not null references external_accounts,
    delegate_id    bigint references local_accounts,
    created_at     timestamptz not null default now(),
    removed_at     timestamptz
);
create function lower_all(text[]) returns text[] language sql immutable strict parallel safe
    as 'select array(select lower(each) from unnest($1) each)';
create unique index local_accounts_address on local_accounts (lower(address)) where removed_at is null;
create index local_accounts_external on local_accounts (external_id) where removed_at is null;
create index local_accounts_addresses on local_accounts using gin (lower_all(addresses))
    where removed_at is null and addresses <> '{}';

-- Owners: shared/store/accounts.py; after a restore shared/store/account_changes.py
-- One row: every change of an account gives it another version, in the same transaction. A process that caches
-- accounts compares versions before each use. A version never repeats, not even after a restored backup.
create table accounts_version (
    version  uuid not null default gen_random_uuid()
);
insert into accounts_version default values;

create function renew_accounts_version() returns trigger language plpgsql as $$
begin
    update accounts_version set version = gen_random_uuid();
    return null;
end $$;
create trigger external_accounts_changed after insert or update or delete or truncate on external_accounts
    for each statement execute function renew_accounts_version();
create trigger local_accounts_changed after insert or update or delete or truncate on local_accounts
    for each statement execute function renew_accounts_version();

-- Owner: services/admin/accounts/applied_passwords.py
-- The passwords of the latest accounts file, by groups of local accounts: if a hash matches the file, nothing changed.
create table applied_passwords (
    number  smallint primary key,                    -- of the group
    hash    text not null                            -- argon2id of all addresses, stored hashes and passwords of it
);

-- Owner: services/admin/accounts/oauth_requests.py
-- An external account's OAuth consent that waits for a person at the provider's page, or how the latest one ended.
-- All administrators share the row, and any process of the console continues the consent.
-- state: waits -> authorized | failed   the grant was stored in the same transaction | words give the reason
--        authorized | failed -> waits   requested again, under another key
create table oauth_requests (
    external_id  bigint primary key references external_accounts (id) on delete cascade,
    key          text not null,                      -- random, renewed by each request; part of the pages' addresses
    state        text not null check (state in ('waits', 'authorized', 'failed')),
    words        text not null default '',           -- for people: why it failed, or the error of the latest try
    request      bytea not null,                     -- as sent to the provider, sealed; empty when final
    begun_by     text not null,
    begun_at     timestamptz not null default now(),
    ends_at      timestamptz not null,               -- deadline of the consent
    next_try_at  timestamptz not null                -- next poll; infinity: a browser brings the answer
);

-- Owner: shared/store/last_logins.py
-- The last login of a person's mail client by each protocol. pop3_out and smtp_in write it minutes after the logins,
-- many rows at once; the latest time wins.
create table last_logins (
    local_id  bigint not null references local_accounts on delete cascade,
    protocol  text not null check (protocol in ('pop3', 'smtp')),
    at        timestamptz not null,
    peer      text not null,                         -- the client's IP address
    primary key (local_id, protocol)
) with (fillfactor = 50);                            -- rows change often, and no index covers what changes

-- ---------------------------------------------------------------------------------------------- bytes

-- Owner: shared/store/blobs.py
-- The bytes of one fetch, submission or notice, stored once: CRLF line ends, not dot-stuffed.
-- A row is deleted when nothing refers to it; the foreign keys enforce that.
create table blobs (
    id          bigint generated always as identity primary key,
    octets      bigint not null,                     -- of the whole mail
    sha256      bytea not null,                      -- of the whole mail
    head        bytea not null,                      -- the first 256 KiB
    created_at  timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);
alter table blobs alter column head set storage external;

-- Owner: shared/store/blobs.py
-- The bytes after the head, in chunks of 1 MiB; a mail of up to 256 KiB has none.
create table blob_chunks (
    blob_id   bigint not null references blobs on delete cascade,
    position  integer not null,                      -- 0, 1, 2 …
    bytes     bytea not null,
    primary key (blob_id, position)
) with (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);
alter table blob_chunks alter column bytes set storage external;

-- Submissions and inbound mail take their ids from one sequence: a number names one mail in the whole system.
create sequence mail_ids;

-- ---------------------------------------------------------------------------------------------- fetching

-- Owner: shared/store/polls.py
-- The state of polling an external account; one row for each account, kept by the trigger below.
create table polls (
    external_id       bigint primary key references external_accounts,
    active            boolean not null default true, -- the account is enabled and not removed
    owner             text,                          -- the fetcher that polls now, until lease_expires
    lease_expires     timestamptz,
    next_poll_at      timestamptz not null default now(),
    first_contact_at  timestamptz,                   -- what the maildrop held then is history
    last_success_at   timestamptz,
    last_error        text,
    last_error_kind   text,                          -- label of fetch_errors_total
    last_error_at     timestamptz,
    failures          integer not null default 0,    -- polls failed one after the other
    refusals          timestamptz[] not null default '{}',  -- plain login refusals of the last hour
    paused_at         timestamptz,                   -- credentials refused: one careful try an hour
    login_delay       integer,                       -- seconds, learnt from CAPA
    backlog           bigint,                        -- mails listed and not yet fetched, at the last poll
    fetched           bigint not null default 0,     -- mails ever fetched, counted with the ledger's rows
    -- An unchanged list that needed no action is not compared with the ledger, which may have 100,000 rows. Each
    -- transaction of a poll that may write the ledger clears the digest first.
    quiet_list        bytea,                         -- digest of the list, and of what else the decision depends on
    quiet_until       timestamptz                    -- a retry or a deletion falls due then; at most an hour ahead
);
create index polls_due on polls (greatest(next_poll_at, lease_expires)) where active;

-- The fetcher polls for due accounts up to twenty times a second and reads only this table: each row therefore records
-- whether its account is polled.
create function keep_poll() returns trigger language plpgsql as $$
begin
    insert into polls (external_id, active) values (new.id, new.enabled and new.removed_at is null)
    on conflict (external_id) do update set active = excluded.active where polls.active <> excluded.active;
    return null;
end $$;
create trigger external_accounts_polled after insert or update of enabled, removed_at on external_accounts
    for each row execute function keep_poll();

-- ---------------------------------------------------------------------------------------------- submission

-- Owners: shared/store/submissions.py; shared/store/relay_queue.py while it is queued; shared/store/submissions_admin.py
-- A mail that a local account submitted by SMTP.
-- state: submitted -> queued            the sender has delivered the local recipients and has some to relay
--        submitted -> done              … and has none
--        queued -> claimed              a sender has claimed it (claim_owner, until claim_expires; renewed)
--        claimed -> sent_unanswered     committed just before the final dot
--        claimed | sent_unanswered -> queued   some recipients wait for another try (next_try_at);
--                                       found in sent_unanswered with the claim expired: sent again once, uncertain
--        claimed | sent_unanswered -> done     every recipient has a result
--        queued -> done                 expired after five days; or cancelled by the operator
--        submitted | queued | claimed | sent_unanswered -> parked   five tries of its own failed in us (error, origin)
--                                       or a restore held it (origin restore)
--        parked -> submitted | queued   requeued by the operator
--        parked -> done                 cancelled by the operator
--        done -> queued                 sent again by the operator, to the recipients that did not get it
create table submissions (
    id                bigint primary key default nextval('mail_ids'),
    author_id         bigint not null references local_accounts,
    external_id       bigint not null references external_accounts,
    blob_id           bigint not null references blobs,
    envelope_from     text not null,                 -- '' for <>
    message_id        text not null,                 -- without the angle brackets; made if the mail had none
    body_8bit         boolean not null,
    smtputf8          boolean not null,
    dsn_params        text,                          -- RET and ENVID of MAIL (RFC 3461), as text
    state             text not null default 'submitted'
                      check (state in ('submitted', 'queued', 'claimed', 'sent_unanswered', 'done', 'parked')),
    claim_owner       text,
    claim_expires     timestamptz,
    next_try_at       timestamptz not null default now(),
    tries             integer not null default 0,    -- temporary refusals by the provider
    uncertain         boolean not null default false,-- it was sent without an answer once: a duplicate is possible
    delay_noticed_at  timestamptz,
    failures          integer not null default 0,    -- exceptions in us while working on it alone
    error             text,
    origin            text,
    cancelled         text,                          -- why recipients are cancelled, until the author is notified
    swept_at          timestamptz,
    state_at          timestamptz not null default now(),
    created_at        timestamptz not null default now()
);
create index submissions_due on submissions (external_id, next_try_at, id) where state = 'queued';
create index submissions_open on submissions (state, state_at) where state <> 'done';
create index submissions_message_id on submissions (message_id);
create index submissions_blob on submissions (blob_id);
create index submissions_cancelled on submissions (id) where cancelled is not null;
create index submissions_created on submissions using brin (created_at) with (pages_per_range = 32, autosummarize = on);

-- Owners: as submissions
-- kind:  relay     through the author's external account
--        local     a local account (target_id), delivered inside unrewritten
--        external  an external account of ours (target_id), delivered by its routing rules
-- state: waiting -> relayed | failed | cancelled     (relay)
--        waiting -> delivered | cancelled            (local, external: handed to inbound)
--        cancelled from the start                    (local: its account was gone when the mail was complete)
create table submission_recipients (
    submission_id  bigint not null references submissions on delete cascade,
    position       integer not null,
    address        text not null,
    kind           text not null check (kind in ('relay', 'local', 'external')),
    target_id      bigint,
    dsn_params     text,                             -- NOTIFY and ORCPT of RCPT (RFC 3461), as text
    state          text not null default 'waiting'
                   check (state in ('waiting', 'relayed', 'failed', 'delivered', 'cancelled')),
    reply          text,                             -- the provider's last reply about this recipient
    settled_at     timestamptz,
    primary key (submission_id, position)
);

-- Owner: shared/store/relay_status.py
-- The state of relaying through an external account; one row for each account.
create table relay_status (
    external_id        bigint primary key references external_accounts,
    failures           integer not null default 0,   -- failures to connect or log in, one after the other
    next_try_at        timestamptz not null default now(),
    paused_at          timestamptz,                  -- credentials refused: one careful try an hour
    connections_limit  integer,                      -- lowered by 421 at connect; null: the account's own
    last_success_at    timestamptz,
    last_error         text,
    last_error_kind    text,
    last_error_at      timestamptz
);

-- Owner: shared/store/sent_mail.py
-- Message-IDs of sent mail with their authors; answers refer to them. The earliest row of a Message-ID names its author.
-- Authorship outlives the submission; a submission's number is never reused, so it is no foreign key.
-- Without an author: the id of a purged mail from outside, which never gets one.
create table sent_mail (
    message_id     text not null,
    external_id    bigint not null references external_accounts,
    author_id      bigint references local_accounts, -- null: from outside
    submission_id  bigint,
    recorded_at    timestamptz not null default now(),
    primary key (message_id, external_id)
);

-- ---------------------------------------------------------------------------------------------- inbound

-- Owners: shared/store/inbound.py; for the operator shared/store/inbound_admin.py
-- A mail on its way into mailboxes.
-- source: fetched    from the maildrop of external_id; the router decides
--         submitted  submitted to the address of external_id, an account of ours; the router decides
--         local      submitted to local addresses: the deliveries are known from the start
--         notice     made by us: for known people (as local), or for those that routing finds (external_id set)
-- state: fetched -> routed | held | parked
--        routed -> delivered | parked
--        routed -> fetched             a recipient was removed or disabled meanwhile: routed again
--        routed -> held                … and it was sent to that person's local address
--        held -> fetched | routed      somebody shares the started account now | the recipient is back
--        parked -> fetched | routed    requeued
--        parked -> discarded
create table inbound (
    id             bigint primary key default nextval('mail_ids'),
    source         text not null check (source in ('fetched', 'submitted', 'local', 'notice')),
    external_id    bigint references external_accounts,
    blob_id        bigint not null references blobs,
    author_id      bigint references local_accounts, -- source submitted and local
    submission_id  bigint references submissions on delete set null,  -- it is purged long before the mail
    message_id     text,                             -- without the angle brackets, if the mail has one
    state          text not null
                   check (state in ('fetched', 'routed', 'delivered', 'held', 'parked', 'discarded')),
    rule           smallint,                         -- 1 to 5, see shared/routing.py
    reason         text,
    own_copy       boolean not null default false,   -- a mail of ours that came back: stored as already deleted
    failures       integer not null default 0,       -- exceptions in us while working on it alone
    error          text,
    origin         text,
    swept_at       timestamptz,
    state_at       timestamptz not null default now(),
    created_at     timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0.02);
create index inbound_open on inbound (state, state_at) where state in ('fetched', 'routed', 'held', 'parked');
create index inbound_message_id on inbound (message_id);
create index inbound_blob on inbound (blob_id);
create index inbound_submission on inbound (submission_id) where submission_id is not null;
-- Counted by an index-only scan.
create index inbound_books on inbound (external_id, state, own_copy) where source = 'fetched';
create index inbound_discarded on inbound (state_at) where state = 'discarded';
create index inbound_created on inbound using brin (created_at) with (pages_per_range = 32, autosummarize = on);

-- Owner: shared/store/inbound.py
-- The router's decision, one row for each recipient. done_at stays null where the mail is delivered, because its state
-- covers all copies. It is set only while some recipients of a mail have their copies and others wait.
create table deliveries (
    inbound_id  bigint not null references inbound on delete cascade,
    local_id    bigint not null references local_accounts,
    rule        smallint,
    reason      text not null,
    done_at     timestamptz,
    primary key (inbound_id, local_id)
) with (autovacuum_vacuum_scale_factor = 0.02);

-- Owner: shared/store/inbound.py
-- Counts of fetched mails whose rows are purged, by their last state.
create table purged_mails (
    external_id  bigint primary key references external_accounts,
    delivered    bigint not null default 0,
    own_copies   bigint not null default 0
);

-- Owner: shared/store/uidl_ledger.py
-- The ledger: each mail in a provider's maildrop, by UIDL.
-- state: history            was there at first contact and is not fetched (history: from_now)
--        fetched            its bytes are committed here
--        skipped            could not be fetched or stored (reason); stays upstream
--        deleting           committed before DELE is sent
--        vanished           gone from the list, and we did not delete it; the same bytes under a new UIDL are this mail
--        closed             we deleted it and it is gone: the same UIDL later is this mail if its bytes are the same,
--                           otherwise a new mail
-- history -> fetched | vanished; fetched -> deleting | vanished; skipped -> fetched | vanished;
-- deleting -> closed | vanished (the account was pointed at another maildrop);
-- vanished -> fetched | history | skipped (listed again, or renumbered: uidl is replaced);
-- closed -> fetched (listed again with the same bytes)
create table uidl_ledger (
    id               bigint generated always as identity primary key,
    external_id      bigint not null references external_accounts,
    uidl             text not null,
    state            text not null
                     check (state in ('history', 'fetched', 'skipped', 'deleting', 'vanished', 'closed')),
    before           text check (before in ('history', 'fetched', 'skipped')),  -- the state before vanished
    was_history      boolean not null default false, -- was there at first contact
    octets           bigint,
    sha256           bytea,                          -- of the bytes as stored
    inbound_id       bigint references inbound on delete set null,
    reason           text,
    tries            integer not null default 0,     -- of a skipped mail; none for one that is too large
    next_try_at      timestamptz,                    -- of a skipped mail; null: only when the size limit has grown
    acknowledged_at  timestamptz,                    -- of a skipped mail: the operator knows; another reason clears it
    first_seen_at    timestamptz not null default now(),
    fetched_at       timestamptz,
    state_at         timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0.02);
create unique index uidl_ledger_uidl on uidl_ledger (external_id, uidl) where state <> 'closed';
create index uidl_ledger_closed on uidl_ledger (external_id, uidl) where state = 'closed';
create index uidl_ledger_vanished on uidl_ledger (external_id, sha256) where state = 'vanished';
create index uidl_ledger_inbound on uidl_ledger (inbound_id);
create index uidl_ledger_skipped on uidl_ledger (external_id) where state = 'skipped';

-- ---------------------------------------------------------------------------------------------- mailboxes

-- The revision folders replaces these two tables.
-- One row for each local account, created with it. version counts changes: each writer of a mailbox locks this row first,
-- so versions are in the order of commits, and a reader loads the changes after the version that it has.
create table maildrops (
    local_id     bigint primary key references local_accounts,
    uidl_prefix  text not null,                      -- first part of each UIDL: a mailbox made again never repeats one
    version      bigint not null default 0
);

create sequence maildrop_uids;

-- A copy of a mail in a mailbox. A tombstone (deleted_at) keeps the row, so nothing delivers it again. blob_id is no
-- foreign key: inbound_id is one, and that row refers to the bytes; another key would cost every copy an index entry.
create table maildrop_mails (
    id            bigint generated always as identity primary key,
    local_id      bigint not null references maildrops,
    blob_id       bigint not null,
    inbound_id    bigint not null references inbound,
    uid           bigint not null default nextval('maildrop_uids'),  -- UIDL: prefix and uid; undelete renews it
    octets        bigint not null,
    version       bigint not null,                   -- of the maildrop when this row last changed
    delivered_at  timestamptz not null default now(),
    deleted_at    timestamptz,
    unique (inbound_id, local_id)                    -- in this order it also finds the copies of a mail
) with (autovacuum_vacuum_scale_factor = 0.02);
create index maildrop_mails_version on maildrop_mails (local_id, version);
create index maildrop_mails_deleted on maildrop_mails (deleted_at) where deleted_at is not null;

-- ---------------------------------------------------------------------------------------------- every stage

-- Owner: shared/store/maillog.py
-- The history of each mail: one row for each event, written in the transaction of that event.
create table maillog (
    id             bigint generated always as identity primary key,
    at             timestamptz not null default now(),
    event          text not null,
    inbound_id     bigint,
    submission_id  bigint,
    external       text,                             -- address of the external account
    who            text,                             -- address of the person or recipient that it concerns
    rule           smallint,
    reply          text                              -- the other side's answer, or the reason
) with (autovacuum_vacuum_scale_factor = 0.02);
create index maillog_inbound on maillog (inbound_id) where inbound_id is not null;
create index maillog_submission on maillog (submission_id) where submission_id is not null;
create index maillog_local_organizers on maillog (at) where event = 'local_organizer';

-- Owner: shared/store/poison.py
-- Mails that a process handled when it crashed, and which may be poison messages. Without a crash, no row is written.
-- part: 0 (marked) <-> number of mails (in progress together). max_mails: n (marked) -> smaller -> null (isolated).
-- id: of inbound or submissions, by the stage. The row of a mail that has left the stage is deleted at its next try.
create table poison (
    stage        text not null,                      -- router, mailbox, sender; relay: of a message to be written
    id           bigint not null,
    max_mails    integer,                            -- limit of mails replayed together with it; null: isolated
    part         integer not null default 0,         -- number of mails in progress together with it; 0: none
    crashes      integer not null default 0,         -- tries alone that ended the process or timed out, or are under way
    next_try_at  timestamptz not null default now(), -- of the next try in isolation
    primary key (stage, id)
);

-- ---------------------------------------------------------------------------------------------- operation

-- Owner: shared/db/leases.py
-- Work that one process does for the whole system, with its owner and the end of the lease, which the owner renews.
create table leases (
    name     text primary key,
    owner    text not null,
    expires  timestamptz not null
);

-- Owner: the function skip_lost_numbers
-- One row: the timeline of the write-ahead log on which the numbers of this database were given last. A promoted standby
-- begins another timeline.
create table number_timeline (
    timeline  integer not null
);

create function present_timeline() returns integer language sql
    as $$select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer$$;
insert into number_timeline values (present_timeline());

-- An asynchronous standby may lack the latest commits when it is promoted. Numbers that they gave were seen by others: a
-- UIDL by mail clients, the id of a mail's bytes by open sessions, ids by RabbitMQ. Given again, they would name other
-- mail, which a client would then take for mail that it has. So each connection calls this function before its first
-- use (shared/db/database.py), and on another timeline every sequence, and the version of every mailbox, is advanced by
-- more than a standby can lack.
create function skip_lost_numbers() returns void language plpgsql as $$
declare
    gap constant bigint := 100000000;                -- twice VERSION_GAP of the code that reads them
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
    update maildrops set version = version + gap;
end $$;

-- Owner: shared/store/alerts.py
-- A problem that exists or existed recently; one row for each kind and subject ('' for the whole system).
-- state: pending -> raised      it has lasted for a while; a notification is sent
--        raised -> calm         it is resolved, and has been for a while; a notification is sent
--        calm -> raised         it is back: another flap
-- A pending row is deleted when the problem is over; a calm one after a day.
create table alerts (
    kind       text not null,
    subject    text not null,
    state      text not null check (state in ('pending', 'raised', 'calm')),
    text       text not null,                        -- for people, as it was last seen
    flaps      integer not null default 0,           -- how often it came back
    changed_at timestamptz not null,                 -- of the state
    seen_at    timestamptz not null,                 -- when the problem was last seen
    primary key (kind, subject)
);

-- Owner: shared/store/alerts.py
-- Messages that wait to be posted to ALERT_WEBHOOK.
create table alert_posts (
    id           bigint generated always as identity primary key,
    body         jsonb not null,
    tries        integer not null default 0,
    next_try_at  timestamptz not null default now(),
    created_at   timestamptz not null default now()
);

-- ---------------------------------------------------------------------------------------------- console

-- Owner: services/admin/access/users.py
-- A user of the console. Local accounts sign in to the console too; they need no row here.
-- An administrator does everything; an observer changes nothing and sees no mail's body.
create table console_users (
    id             bigint generated always as identity primary key,
    name           text not null check (name not like '%@%' and octet_length(name) <= 100),
    role           text not null check (role in ('administrator', 'observer')),
    password_hash  text not null,                    -- argon2id, PHC string
    given_hash     text,                             -- of the password that the setting ADMIN_PASSWORD gave last
    created_at     timestamptz not null default now(),
    signed_in_at   timestamptz
);
create unique index console_users_name on console_users (lower(name));

-- Owner: services/admin/access/users.py
-- A browser that is signed in, as a user of the console or as a local account. It ends by signing out, by another
-- password, when the account is disabled or removed, and when it is idle or old.
create table console_sessions (
    id             bigint generated always as identity primary key,
    token_sha256   bytea not null unique,            -- of the browser's cookie
    user_id        bigint references console_users on delete cascade,
    local_id       bigint references local_accounts on delete cascade,
    password_hash  text not null,                    -- the stored one when it began
    peer           text not null,                    -- the browser's IP address
    agent          text not null,                    -- the browser's User-Agent
    notices        text[] not null default '{}',     -- messages for the next page
    created_at     timestamptz not null default now(),
    seen_at        timestamptz not null default now(),
    check ((user_id is null) <> (local_id is null))
);
create index console_sessions_user on console_sessions (user_id);
create index console_sessions_local on console_sessions (local_id);

-- Owner: services/admin/access/users.py
-- API tokens, which scripts send instead of a password; only a digest is stored.
create table api_tokens (
    id            bigint generated always as identity primary key,
    name          text not null,
    role          text not null check (role in ('administrator', 'observer')),
    token_sha256  bytea not null unique,
    made_by       text not null,
    created_at    timestamptz not null default now(),
    used_at       timestamptz
);

-- Owner: services/admin/access/audit.py
-- Changes by people through the console, the API or the command line, recorded in the transaction of the change; and
-- whose mail they read. No row is ever changed or deleted.
create table audit (
    id      bigint generated always as identity primary key,
    at      timestamptz not null default now(),
    who     text not null,                           -- name of the user, address of the person, or user of the machine
    did     text not null,                           -- a verb and its object, as "changed external account"
    target  text not null default '',                -- an address, or the id of a mail
    detail  text not null default ''
);
create index audit_target on audit (lower(target), id);
create index audit_who on audit (lower(who), id);

-- Owner: services/admin/mail/search_index.py, which writes it after delivery, some dozen mails at a time
-- The search index: one row for each inbound mail or submission; their ids come from one sequence.
create table search_index (
    mail_id      bigint primary key,
    at           timestamptz not null,               -- when it came
    external_id  bigint references external_accounts,
    sender       text not null,                      -- as shown
    subject      text not null,
    terms        text[] not null                     -- words of the subject, addresses and their parts, ids; lower case
);
create index search_index_terms on search_index using gin (terms) with (fastupdate = off);
create index search_index_external on search_index (external_id, mail_id);
create index search_index_at on search_index using brin (at);

-- Owner: services/admin/mail/search_index.py
-- One row: the index contains all mails up to this id.
create table search_progress (
    up_to  bigint not null
);
insert into search_progress values (0);

-- Owner: services/admin/mail/search_index.py
-- Mails that all sharers of an account received, and the answer to each; only an answer changes a row.
create table shared_mails (
    mail_id        bigint primary key references inbound on delete cascade,
    external_id    bigint not null references external_accounts,
    message_id     text not null,                    -- without the angle brackets
    at             timestamptz not null,
    answered_by    bigint references local_accounts on delete set null,
    answered_at    timestamptz,
    submission_id  bigint                            -- the answer
);
create index shared_mails_open on shared_mails (external_id, mail_id) where answered_at is null;
create index shared_mails_message_id on shared_mails (message_id);

-- Owner: services/admin/mail/unknown_names.py
-- Names in mails to an external address that none of its sharers has; at most some hundred of each account.
create table unknown_names (
    external_id   bigint not null references external_accounts,
    name          text not null,                     -- as names are compared
    shown         text not null,                     -- as written last
    mails         bigint not null,
    last_mail_id  bigint not null,
    last_at       timestamptz not null,
    primary key (external_id, name)
);
