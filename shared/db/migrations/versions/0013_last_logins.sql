-- Owner: shared/store/last_logins.py. When a person's mail client logged in last, by each protocol. Written by pop3_out and
-- smtp_in some minutes behind the logins, many at once; the latest time wins, whoever writes it.
create table last_logins (
    local_id  bigint not null references local_accounts on delete cascade,
    protocol  text not null check (protocol in ('pop3', 'smtp')),
    at        timestamptz not null,
    peer      text not null,                         -- the client's IP address
    primary key (local_id, protocol)
) with (fillfactor = 50);                            -- rows change all the time; no index on what changes in them
