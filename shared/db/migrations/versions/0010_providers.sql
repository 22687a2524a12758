-- Owner: shared/store/uidl_ledger.py

-- A mail that stays skipped is a problem until the operator says that this is known; another reason makes it one again.
alter table upstream_mails
    add column acknowledged_at  timestamptz;  -- of a skipped mail; null: nobody has said so
create index upstream_mails_skipped on upstream_mails (external_id) where state = 'skipped';

-- Owner: shared/store/accounts.py

-- How large a mail the provider takes: learnt, not configured, and forgotten when the account is changed or tested.
alter table external_accounts
    add column smtp_size        bigint,       -- octets, announced by its server (SIZE of EHLO); null: no limit told
    add column smtp_refused     bigint,       -- octets of the smallest mail that it refused as too large
    add column smtp_refused_at  timestamptz;  -- forgotten after a week: limits grow
