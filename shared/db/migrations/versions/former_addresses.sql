-- Addresses that a person had until some days ago. A mail that was submitted before may contain one, and leaves later: a
-- customer must not see it. The trigger also sees what code before this revision changes.
create table former_addresses (
    local_id    bigint not null,               -- the account; its row is never deleted
    address     text not null,
    given_up_at timestamptz not null default now(),
    primary key (local_id, address)
);
create index former_addresses_address on former_addresses (lower(address));

create function keep_former_addresses() returns trigger language plpgsql as $$
begin
    delete from former_addresses where given_up_at < now() - interval '30 days';  -- longer than any mail waits
    insert into former_addresses (local_id, address)
    select distinct old.id, given_up from unnest(old.addresses || old.address) given_up
    where lower(given_up) <> all (lower_all(new.addresses || new.address))
    on conflict (local_id, address) do update set given_up_at = now();
    return null;
end $$;

create trigger local_accounts_former_addresses after update on local_accounts for each row
    when ((old.address, old.addresses) is distinct from (new.address, new.addresses))
    execute function keep_former_addresses();
