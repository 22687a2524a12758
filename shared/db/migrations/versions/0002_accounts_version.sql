-- Owner of all of this: shared/store/accounts.py

-- One row: another version with every change of an account, whoever makes it, in the same transaction. Who keeps accounts
-- in memory asks whether it is still the one that was read. Never the same twice, not even after a restored backup.
create table accounts_version (
    version  uuid not null default gen_random_uuid()
);
insert into accounts_version default values;

create function renew_accounts_version() returns trigger language plpgsql as $$
begin
    update accounts_version set version = gen_random_uuid();
    return null;
end $$;

create trigger external_accounts_changed after insert or update or delete or truncate on external_accounts
    for each statement execute function renew_accounts_version();
create trigger local_accounts_changed after insert or update or delete or truncate on local_accounts
    for each statement execute function renew_accounts_version();

create function lower_all(text[]) returns text[] language sql immutable strict parallel safe
    as 'select array(select lower(each) from unnest($1) each)';
create index local_accounts_addresses on local_accounts using gin (lower_all(addresses))
    where removed_at is null and addresses <> '{}';
