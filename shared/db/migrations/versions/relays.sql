-- Owner: shared/store/relays.py
-- The SMTP servers of an external account (relays), with their state. Position 0 is the first choice; each other one is
-- used while all before it are in trouble: unreachable, refused, or full.
-- Code before this revision knows one server, in external_accounts.smtp_*, with its state in relay_status. So the first
-- relay is written there, too, and the trigger below copies what such code writes. A revision of a later version takes
-- smtp_* and relay_status away.
create table relays (
    external_id         bigint not null references external_accounts on delete cascade,
    position            integer not null,
    host                text not null,
    port                integer not null,
    tls                 text not null check (tls in ('none', 'starttls', 'implicit')),
    tls_fingerprint     text,                         -- SHA-256 of the pinned certificate, 64 hex digits
    auth                boolean not null,
    connections         integer not null,
    login               text,                         -- null: login and password are the account's
    password            bytea,                        -- sealed (shared/provider/vault.py)
    mails_per_minute    integer,                      -- limits of the provider, as the operator knows them; null: none
    recipients_per_day  integer,
    -- Server, port and own login: counts and uncertain mails refer to it, as an account may reorder its relays.
    place               text not null
                        generated always as (lower(host) || ':' || port::text || coalesce(' ' || login, '')) stored,
    size                bigint,                       -- octets, learnt from EHLO's SIZE; null: no limit
    refused             bigint,                       -- octets, learnt: the smallest mail that it refused as too large
    refused_at          timestamptz,                  -- forgotten after a week, as limits grow
    failures            integer not null default 0,   -- failures to connect or log in, one after the other
    next_try_at         timestamptz not null default now(),
    paused_at           timestamptz,                  -- credentials refused: one careful try an hour
    connections_limit   integer,                      -- lowered by 421 at connect; null: the relay's own
    full_until          timestamptz,                  -- a limit of the operator is reached until then
    full_why            text,                         -- "limit of 500 recipients a day reached"
    last_success_at     timestamptz,
    last_error          text,
    last_error_kind     text,
    last_error_at       timestamptz,
    primary key (external_id, position),
    check ((login is null) = (password is null))
);

-- Owner: shared/store/relay_usage.py
-- What relays with limits have taken, by interval; deleted when no limit counts the interval any more.
create table relay_usage (
    external_id  bigint not null references external_accounts on delete cascade,
    place        text not null,                       -- of the relay
    seconds      integer not null,                    -- length of the interval: 1 for the minute, 300 for the day
    began_at     timestamptz not null,
    mails        integer not null,
    recipients   integer not null,
    primary key (external_id, place, seconds, began_at)
);

-- 'relays.invalid': the first relay has a login of its own, which code before this revision does not know
-- (NO_SMTP of shared/store/account_changes.py). Such code cannot resolve this name, and so sends no password anywhere.
create function copy_first_relay() returns trigger language plpgsql as $$
begin
    insert into relays (external_id, position, host, port, tls, tls_fingerprint, auth, connections)
    values (new.id, 0, new.smtp_host, new.smtp_port, new.smtp_tls, new.smtp_tls_fingerprint, new.smtp_auth,
            new.smtp_connections)
    on conflict (external_id, position) do update
        set host = excluded.host, port = excluded.port, tls = excluded.tls, tls_fingerprint = excluded.tls_fingerprint,
            auth = excluded.auth, connections = excluded.connections, login = null, password = null;
    return null;
end $$;
create trigger external_accounts_relay_inserted after insert on external_accounts for each row
    when (new.smtp_host <> 'relays.invalid')
    execute function copy_first_relay();
create trigger external_accounts_relay_changed after update on external_accounts for each row
    when (new.smtp_host <> 'relays.invalid'
          and (old.smtp_host, old.smtp_port, old.smtp_tls, old.smtp_tls_fingerprint, old.smtp_auth,
               old.smtp_connections)
              is distinct from (new.smtp_host, new.smtp_port, new.smtp_tls, new.smtp_tls_fingerprint, new.smtp_auth,
                                new.smtp_connections))
    execute function copy_first_relay();

insert into relays (external_id, position, host, port, tls, tls_fingerprint, auth, connections, size, refused,
                    refused_at, failures, next_try_at, paused_at, connections_limit, last_success_at, last_error,
                    last_error_kind, last_error_at)
select e.id, 0, e.smtp_host, e.smtp_port, e.smtp_tls, e.smtp_tls_fingerprint, e.smtp_auth, e.smtp_connections,
    e.smtp_size, e.smtp_refused, e.smtp_refused_at, coalesce(s.failures, 0), coalesce(s.next_try_at, now()), s.paused_at,
    s.connections_limit, s.last_success_at, s.last_error, s.last_error_kind, s.last_error_at
from external_accounts e left join relay_status s on s.external_id = e.id;

-- Services that cache accounts know the learnt sizes, too; the state of a relay is no change of its account.
create trigger relays_changed after insert or delete or truncate on relays
    for each statement execute function renew_accounts_version();
create trigger relays_changed_fields
    after update of host, port, tls, tls_fingerprint, auth, connections, login, password, mails_per_minute,
        recipients_per_day, size, refused on relays
    for each statement execute function renew_accounts_version();

-- A mail that is built for one state of its relays is not completed for another one, as for a change of the account.
create function count_relay_change() returns trigger language plpgsql as $$
begin
    update external_accounts set smtp_version = smtp_version + 1
    where id = case when tg_op = 'DELETE' then old.external_id else new.external_id end;
    return null;
end $$;
create trigger relays_counted after insert or delete on relays for each row execute function count_relay_change();
create trigger relays_counted_fields after update on relays for each row
    when ((old.place, old.tls, old.tls_fingerprint, old.auth, old.password)
          is distinct from (new.place, new.tls, new.tls_fingerprint, new.auth, new.password))
    execute function count_relay_change();
