-- tokens_of: address of the account whose access tokens are sent with the relay's own login; password is '' then. Code
-- before this revision has no password to open for such a relay, and so sends nothing by it. null: none.
alter table relays add column tokens_of text;

-- As for the other fields (relays.sql).
create trigger relays_changed_tokens after update of tokens_of on relays
    for each statement execute function renew_accounts_version();
create trigger relays_counted_tokens after update on relays for each row
    when (old.tokens_of is distinct from new.tokens_of) execute function count_relay_change();
