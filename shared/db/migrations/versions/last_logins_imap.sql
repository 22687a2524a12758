-- A login by IMAP is recorded, too. The rows from before satisfy the wider check, so it is not validated.
alter table last_logins drop constraint last_logins_protocol_check;
alter table last_logins add constraint last_logins_protocol_check check (protocol in ('imap', 'pop3', 'smtp')) not valid;
