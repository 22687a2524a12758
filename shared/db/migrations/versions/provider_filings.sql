-- imap_answered: mark what was answered as \Answered. imap_sent: the folder that gets a copy of sent mail; '': the one
-- that the provider marks as \Sent; null: none does.
alter table external_accounts
    add column imap_answered boolean not null default false,
    add column imap_sent text;

-- Owner: shared/store/provider_filings.py
-- Work at the provider's IMAP server that follows a relayed mail; a row is deleted when it is done, and after five days.
-- sent: append a copy of the mail to the folder for sent mail, unless one with its Message-ID is there.
-- answered: mark the mails that it answers as \Answered.
create table provider_filings (
    submission_id  bigint not null references submissions on delete cascade,
    kind           text not null check (kind in ('sent', 'answered')),
    external_id    bigint not null references external_accounts on delete cascade,
    tries          integer not null default 0,       -- failed ones
    next_try_at    timestamptz not null default now(),  -- while a process works on it: when another one may
    error          text,                             -- of the latest try, for people
    created_at     timestamptz not null default now(),
    primary key (submission_id, kind)
);
create index provider_filings_due on provider_filings (external_id, next_try_at);
