-- Owner: shared/store/poison.py
-- Mails that were in hand when a process ended without a word, and may have ended it. No row: never, or handled since.
-- Nothing is written here on a mail's ordinary way. id: of inbound or submissions, whichever the stage works on; a row
-- whose mail has gone its way is dropped when its turn comes.
create table suspects (
    stage        text not null,                      -- router, mailbox, sender; relay: of a letter to be written
    id           bigint not null,
    deaths       integer not null default 0,         -- tries alone that were not survived, or are under way
    next_try_at  timestamptz not null default now(), -- when it is tried alone
    primary key (stage, id)
);
