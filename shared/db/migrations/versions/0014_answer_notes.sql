-- Owner: shared/store/accounts.py. Whether those who share an account are told when one of them has answered a mail to everyone.
alter table external_accounts add column answer_notes boolean not null default false;
