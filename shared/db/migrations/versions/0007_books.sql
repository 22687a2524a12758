-- Owner: shared/store/polls.py
-- Mails ever fetched for an account, counted with the ledger's rows: what the books compare with what became of them.
alter table polls add column fetched bigint not null default 0;
update polls p set fetched = (
    select count(*) from upstream_mails u where u.external_id = p.external_id and u.fetched_at is not null);

-- Owner: shared/store/inbound.py
-- Fetched mails whose rows are purged, by where they were.
create table purged_mails (
    external_id  bigint primary key references external_accounts,
    delivered    bigint not null default 0,
    own_copies   bigint not null default 0
);
-- Counted from the index alone.
drop index inbound_books;
create index inbound_books on inbound (external_id, state, own_copy) where source = 'fetched';
-- A submission is purged long before the mail that it was to colleagues.
create index inbound_submission on inbound (submission_id) where submission_id is not null;
alter table inbound drop constraint inbound_submission_id_fkey,
    add constraint inbound_submission_id_fkey foreign key (submission_id) references submissions on delete set null;

-- Owner: shared/store/maildrops.py
-- The same key the other way round: it also finds the copies of a mail.
alter table maildrop_mails drop constraint maildrop_mails_local_id_inbound_id_key, add unique (inbound_id, local_id);

-- Owners: shared/store/submissions.py, shared/store/relay_queue.py, shared/store/sent_mail.py
-- cancelled: why the operator ended it, until its author is told.
alter table submissions add column cancelled text;
create index submissions_cancelled on submissions (id) where cancelled is not null;
create index submissions_blob on submissions (blob_id);
-- Authorship outlives the submission, which is then no row any more; its number is not given again.
alter table authors drop constraint authors_submission_id_fkey;
