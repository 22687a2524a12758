-- watcher: the fetcher that waits for news of the mailbox by IMAP IDLE, until watch_expires.
alter table polls
    add column watcher text,
    add column watch_expires timestamptz;
