-- Owner of these four: services/admin/mail/search_index.py, which writes them behind the mail's way, a few at a time.

-- What a mail is found by. One row for an inbound mail or a submission; their ids come from one sequence.
create table mail_terms (
    mail_id      bigint primary key,
    at           timestamptz not null,               -- when it came
    external_id  bigint references external_accounts,
    sender       text not null,                      -- as shown
    subject      text not null,
    terms        text[] not null                     -- words of the subject, addresses and their parts, ids; lower case
);
create index mail_terms_terms on mail_terms using gin (terms) with (fastupdate = off);
create index mail_terms_external on mail_terms (external_id, mail_id);
create index mail_terms_at on mail_terms using brin (at);

-- Mails that went to everyone who shares an account, until somebody has answered. Nothing but the answers changes a row.
create table common_mails (
    mail_id        bigint primary key references inbound on delete cascade,
    external_id    bigint not null references external_accounts,
    message_id      text not null,                    -- Message-ID without the angle brackets
    at             timestamptz not null,
    answered_by    bigint references local_accounts on delete set null,
    answered_at    timestamptz,
    submission_id  bigint                            -- the answer
);
create index common_mails_open on common_mails (external_id, mail_id) where answered_at is null;
create index common_mails_message_id on common_mails (message_id);

-- Names beside an external address that nobody who shares it has.
create table unknown_names (
    external_id   bigint not null references external_accounts,
    name          text not null,                     -- as names are compared
    shown         text not null,                     -- as it was written last
    mails         bigint not null,
    last_mail_id  bigint not null,
    last_at       timestamptz not null,
    primary key (external_id, name)
);

-- How far the catalogue goes: every mail up to this id is in it.
create table catalogued (
    up_to  bigint not null
);
insert into catalogued values (0);

-- Owner: services/admin/access/users.py. What scripts show instead of a password; only a digest is stored.
create table api_tokens (
    id            bigint generated always as identity primary key,
    name          text not null,
    role          text not null check (role in ('administrator', 'observer')),
    token_sha256  bytea not null unique,
    made_by       text not null,
    created_at    timestamptz not null default now(),
    used_at       timestamptz
);

-- Owners: shared/store/inbound.py, shared/store/submissions.py. For what came in the last hours: rows are in the order of time.
create index inbound_created on inbound using brin (created_at) with (pages_per_range = 32, autosummarize = on);
create index submissions_created on submissions using brin (created_at) with (pages_per_range = 32, autosummarize = on);
-- submissions, further transition: done -> queued   resent by the operator, with the recipients that did not get it
