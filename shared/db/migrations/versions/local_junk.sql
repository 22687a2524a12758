-- junk: mail that is junk goes into the person's folder Junk; otherwise into INBOX, as all mail.
alter table local_accounts add column junk boolean not null default false;
