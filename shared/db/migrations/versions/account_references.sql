-- An account is removed by removed_at: its row is never deleted, and its id never changes. A service that stores a mail
-- has read the accounts for it, so a check of each reference finds nothing. The checks took 43 of the 151 us of processor
-- time that a submission in a batch of eight costs PostgreSQL. Each statement locks its tables for a moment only.
alter table submissions drop constraint if exists submissions_author_id_fkey;
alter table submissions drop constraint if exists submissions_external_id_fkey;
alter table sent_mail drop constraint if exists sent_mail_author_id_fkey;
alter table sent_mail drop constraint if exists sent_mail_external_id_fkey;
alter table inbound drop constraint if exists inbound_author_id_fkey;
alter table inbound drop constraint if exists inbound_external_id_fkey;
alter table deliveries drop constraint if exists deliveries_local_id_fkey;
alter table uidl_ledger drop constraint if exists uidl_ledger_external_id_fkey;
alter table purged_mails drop constraint if exists purged_mails_external_id_fkey;
alter table search_index drop constraint if exists search_index_external_id_fkey;
alter table shared_mails drop constraint if exists shared_mails_external_id_fkey;
alter table shared_mails drop constraint if exists shared_mails_answered_by_fkey;
