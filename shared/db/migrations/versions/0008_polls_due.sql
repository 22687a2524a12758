-- Owner: shared/store/polls.py

-- Whoever looks for accounts that are due, up to twenty times a second, reads those and the one that is due next, not a
-- thousand others. So a poll's row tells whether its account is there and enabled; whoever changes an account, the row
-- is made and kept up in the same transaction.
alter table polls add column active boolean not null default true;  -- the account is enabled and not removed

create function keep_poll() returns trigger language plpgsql as $$
begin
    insert into polls (external_id, active) values (new.id, new.enabled and new.removed_at is null)
    on conflict (external_id) do update set active = excluded.active where polls.active <> excluded.active;
    return null;
end $$;
create trigger external_accounts_polled after insert or update of enabled, removed_at on external_accounts
    for each row execute function keep_poll();

insert into polls (external_id) select id from external_accounts on conflict do nothing;
update polls set active = false from external_accounts e
    where e.id = external_id and (not e.enabled or e.removed_at is not null);
create index polls_due on polls (greatest(next_poll_at, lease_expires)) where active;
