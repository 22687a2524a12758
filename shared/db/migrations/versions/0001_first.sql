-- The whole schema, table by table in the order of a mail's way.
-- Each table is written by the one Python module named in its comment; each state column lists its transitions.
-- Times are timestamptz by the database's clock. Addresses are stored as written and compared lower-case.

-- ---------------------------------------------------------------------------------------------- accounts
-- Owners: shared/store/accounts.py, shared/store/account_changes.py

-- A mailbox at a provider (manual 4.1). Removal hides the row; its ledger and mail stay.
create table external_accounts (
    id                    bigint generated always as identity primary key,
    address               text not null check (octet_length(address) <= 200),
    enabled               boolean not null default true,
    login                 text not null,
    password              bytea not null,            -- a MultiFernet token, never the password itself
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
    poll_seconds          integer not null,
    history               text not null check (history in ('all', 'from_now')),
    delete_after_days     integer,                   -- null: never, 0: at once
    delete_history        boolean not null,
    reply_to_author       boolean not null,
    aliases               text[] not null default '{}',
    created_at            timestamptz not null default now(),
    removed_at            timestamptz
);
create unique index external_accounts_address on external_accounts (lower(address)) where removed_at is null;

-- A person (manual 4.2). Removal hides the row and keeps its mail for the retention time.
create table local_accounts (
    id             bigint generated always as identity primary key,
    address        text not null check (octet_length(address) <= 200),
    enabled        boolean not null default true,
    password_hash  text not null,                    -- argon2id, PHC string
    user_name      text not null,
    aliases        text[] not null default '{}',     -- further names
    former_names   text[] not null default '{}',     -- user names of before, kept by themselves at a change
    addresses      text[] not null default '{}',     -- further local addresses
    external_id    bigint not null references external_accounts,
    delegate_id    bigint references local_accounts,
    created_at     timestamptz not null default now(),
    removed_at     timestamptz
);
create unique index local_accounts_address on local_accounts (lower(address)) where removed_at is null;
create index local_accounts_external on local_accounts (external_id) where removed_at is null;

-- ---------------------------------------------------------------------------------------------- bytes
-- Owner: shared/store/blobs.py

-- The bytes of one fetch, submission or notice, once: CRLF line ends, not dot-stuffed.
-- A row goes when nothing refers to it any more; the foreign keys guard that.
create table blobs (
    id          bigint generated always as identity primary key,
    octets      bigint not null,                     -- of the whole mail
    sha256      bytea not null,                      -- of the whole mail
    head        bytea not null,                      -- the first 256 KiB
    created_at  timestamptz not null default now()
);
alter table blobs alter column head set storage external;

-- What follows the head, in pieces of 1 MiB; a mail of up to 256 KiB has none.
create table blob_chunks (
    blob_id  bigint not null references blobs on delete cascade,
    position    integer not null,                    -- 0, 1, 2 …
    bytes       bytea not null,
    primary key (blob_id, position)
);
alter table blob_chunks alter column bytes set storage external;

-- Submissions and inbound mail take their ids from one sequence: a number names one mail in the whole system.
create sequence mail_ids;

-- ---------------------------------------------------------------------------------------------- submission
-- Owners: shared/store/submissions.py; shared/store/relay_queue.py while it is queued; shared/store/relay_status.py; shared/store/sent_mail.py (authors)

-- A mail that a local account handed in by SMTP.
-- state: submitted -> queued            the sender has put the local recipients inside and has some to relay
--        submitted -> done              … and has none
--        queued -> claimed              a sender holds it (claim_owner, until claim_expires; renewed)
--        claimed -> sent_unanswered     committed just before the final dot
--        claimed | sent_unanswered -> queued   some recipients wait for another try (next_try_at);
--                                       found in sent_unanswered with the claim expired: sent again once, uncertain
--        claimed | sent_unanswered -> done     every recipient is settled
--        queued -> done                 given up after five days; or cancelled by the operator
--        submitted | queued | claimed | sent_unanswered -> parked   five tries of its own failed in us (error, origin)
--                                       or a restore held it (origin restore)
--        parked -> submitted | queued   requeued by the operator
--        parked -> done                 cancelled by the operator
create table submissions (
    id                bigint primary key default nextval('mail_ids'),
    author_id         bigint not null references local_accounts,
    external_id       bigint not null references external_accounts,
    blob_id        bigint not null references blobs,
    envelope_from     text not null,                 -- '' for <>
    message_id         text not null,                 -- Message-ID without the angle brackets; made if it had none
    body_8bit         boolean not null,
    smtputf8          boolean not null,
    state             text not null default 'submitted'
                      check (state in ('submitted', 'queued', 'claimed', 'sent_unanswered', 'done', 'parked')),
    claim_owner       text,
    claim_expires     timestamptz,
    next_try_at       timestamptz not null default now(),
    tries             integer not null default 0,    -- temporary refusals by the provider
    uncertain         boolean not null default false,-- it was sent without an answer once: a duplicate is possible
    delay_noticed_at  timestamptz,
    faults            integer not null default 0,    -- exceptions in us while working on it alone
    error             text,
    origin            text,
    swept_at          timestamptz,
    state_at          timestamptz not null default now(),
    created_at        timestamptz not null default now()
);
create index submissions_due on submissions (external_id, next_try_at, id) where state = 'queued';
create index submissions_open on submissions (state, state_at) where state <> 'done';
create index submissions_message_id on submissions (message_id);

-- kind:  relay     through the author's external account
--        local     a local account (target_id), delivered inside unrewritten
--        external  an external account of ours (target_id), delivered by its routing rules
-- state: waiting -> relayed | failed | cancelled     (relay)
--        waiting -> delivered | cancelled            (local, external: handed to inbound)
create table submission_recipients (
    submission_id  bigint not null references submissions on delete cascade,
    position       integer not null,
    address        text not null,
    kind           text not null check (kind in ('relay', 'local', 'external')),
    target_id      bigint,
    state          text not null default 'waiting'
                   check (state in ('waiting', 'relayed', 'failed', 'delivered', 'cancelled')),
    reply          text,                             -- the provider's last reply about this recipient
    settled_at     timestamptz,
    primary key (submission_id, position)
);

-- Ids of mails that we sent, with their authors: what an answer refers to. The earliest row of an id names its author.
create table authors (
    message_id      text not null,
    external_id    bigint not null references external_accounts,
    author_id      bigint not null references local_accounts,
    submission_id  bigint references submissions on delete set null,
    recorded_at    timestamptz not null default now(),
    primary key (message_id, external_id)
);

-- How relaying through an external account goes; one row an account, made with it.
create table relays (
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

-- ---------------------------------------------------------------------------------------------- inbound
-- Owner: shared/store/inbound.py

-- A mail on its way into mailboxes.
-- source: fetched    from the maildrop of external_id; the router decides
--         submitted  submitted to the address of external_id, an account of ours; the router decides
--         local      submitted to local addresses: the deliveries are known from the start
--         notice     made by us: for known people (as local), or for whoever routing finds (external_id set)
-- state: fetched -> routed | held | parked
--        routed -> delivered | parked
--        routed -> fetched             a recipient was removed meanwhile: decided anew
--        routed -> held                … and it was sent to that person's local address
--        held -> fetched | routed      somebody shares the account now | the recipient is back
--        parked -> fetched | routed    requeued
--        parked -> discarded
create table inbound (
    id             bigint primary key default nextval('mail_ids'),
    source         text not null check (source in ('fetched', 'submitted', 'local', 'notice')),
    external_id    bigint references external_accounts,
    blob_id     bigint not null references blobs,
    author_id      bigint references local_accounts, -- source submitted and local
    submission_id  bigint references submissions,
    message_id      text,                             -- Message-ID without the angle brackets, if it has one
    state          text not null
                   check (state in ('fetched', 'routed', 'delivered', 'held', 'parked', 'discarded')),
    rule           smallint,                         -- 1 to 5, see shared/routing.py
    reason         text,
    own_copy       boolean not null default false,   -- a mail of ours that came back: stored as already deleted
    faults         integer not null default 0,       -- exceptions in us while working on it alone
    error          text,
    origin         text,
    swept_at       timestamptz,
    state_at       timestamptz not null default now(),
    created_at     timestamptz not null default now()
);
create index inbound_open on inbound (state, state_at) where state in ('fetched', 'routed', 'held', 'parked');
create index inbound_message_id on inbound (message_id);
create index inbound_books on inbound (external_id, state) where source = 'fetched';
create index inbound_blob on inbound (blob_id);

-- The router's decision, a row a recipient; done_at is set by the mailbox service.
create table deliveries (
    inbound_id  bigint not null references inbound on delete cascade,
    local_id    bigint not null references local_accounts,
    rule        smallint,
    reason      text not null,
    done_at     timestamptz,
    primary key (inbound_id, local_id)
);

-- ---------------------------------------------------------------------------------------------- mailboxes
-- Owner: shared/store/maildrops.py

-- One row a local account, made with it. version counts changes: whoever writes a mailbox locks this row first,
-- so versions are in the order of commits and a reader asks for what is newer than what it has.
create table maildrops (
    local_id  bigint primary key references local_accounts,
    stamp     text not null,                         -- first part of each UIDL: a mailbox made anew never repeats one
    version   bigint not null default 0
);

create sequence maildrop_uids;

-- A copy of a mail in a mailbox. A tombstone (deleted_at) keeps the row, so nothing delivers it again.
create table maildrop_mails (
    id            bigint generated always as identity primary key,
    local_id      bigint not null references maildrops,
    blob_id    bigint not null references blobs,
    inbound_id    bigint not null references inbound,
    uid           bigint not null default nextval('maildrop_uids'),  -- UIDL = stamp || uid; undelete takes a new one
    octets        bigint not null,
    version       bigint not null,                   -- of the maildrop when this row last changed
    delivered_at  timestamptz not null default now(),
    deleted_at    timestamptz,
    unique (local_id, inbound_id)
);
create index maildrop_mails_version on maildrop_mails (local_id, version);
create index maildrop_mails_blob on maildrop_mails (blob_id);
create index maildrop_mails_deleted on maildrop_mails (deleted_at) where deleted_at is not null;

-- ---------------------------------------------------------------------------------------------- fetching
-- Owners: shared/store/polls.py, shared/store/uidl_ledger.py

-- How polling an external account goes; one row an account, made with it.
create table polls (
    external_id       bigint primary key references external_accounts,
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
    backlog           bigint                         -- mails listed and not yet fetched, at the last poll
);

-- The ledger: what we know of each mail in a provider's maildrop, by UIDL.
-- state: history            stood there at first contact and is not wanted (history: from_now)
--        fetched            its bytes are committed here
--        skipped            could not be fetched or stored (reason); stays upstream
--        deleting           committed before DELE is sent
--        vanished           gone from the list, and we did not delete it; same bytes under a new UIDL are this mail
--        closed             we deleted it and it is gone: the same UIDL later is a new mail
-- history -> fetched | vanished; fetched -> deleting | vanished; skipped -> fetched | vanished;
-- deleting -> closed | vanished (the account was pointed at another maildrop); vanished -> fetched | history | skipped (seen again, or renumbered: uidl is replaced)
create table upstream_mails (
    id             bigint generated always as identity primary key,
    external_id    bigint not null references external_accounts,
    uidl           text not null,
    state          text not null
                   check (state in ('history', 'fetched', 'skipped', 'deleting', 'vanished', 'closed')),
    before         text check (before in ('history', 'fetched', 'skipped')),  -- the state before vanished
    was_history    boolean not null default false,   -- stood there at first contact
    octets         bigint,
    sha256         bytea,                            -- of the bytes as stored
    inbound_id     bigint references inbound on delete set null,
    reason         text,
    tries          integer not null default 0,       -- of a skipped mail; none for one that is too large
    next_try_at    timestamptz,                      -- of a skipped mail; null: only when the size limit has grown
    first_seen_at  timestamptz not null default now(),
    fetched_at     timestamptz,
    state_at       timestamptz not null default now()
);
create unique index upstream_mails_uidl on upstream_mails (external_id, uidl) where state <> 'closed';
create index upstream_mails_vanished on upstream_mails (external_id, sha256) where state = 'vanished';
create index upstream_mails_inbound on upstream_mails (inbound_id);

-- ---------------------------------------------------------------------------------------------- trace
-- Owner: shared/store/maillog.py

-- The history of every mail, a row an event, written in the transaction that it tells of.
create table events (
    id             bigint generated always as identity primary key,
    at             timestamptz not null default now(),
    event          text not null,
    inbound_id     bigint,
    submission_id  bigint,
    external       text,                             -- address of the external account
    who            text,                             -- address of the person or recipient it concerns
    rule           smallint,
    reply          text                              -- the other side's answer, or the reason
);
create index events_inbound on events (inbound_id) where inbound_id is not null;
create index events_submission on events (submission_id) where submission_id is not null;
