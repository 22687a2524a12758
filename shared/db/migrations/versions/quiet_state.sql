-- quiet_state: digest of the maildrop's state (RFC 7162) when it had quiet_list; null: the provider tells none.
alter table polls add column quiet_state bytea;
