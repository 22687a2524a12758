-- Owner: services/admin/accounts/oauth_requests.py
-- An external account's authorization that waits for a person at the provider's page, or how the latest one ended. A
-- row, so that it is one for all administrators and goes on in whatever process of the console is there.
-- State waits -> authorized (the grant was stored, in the same transaction), failed (words say why).
-- waits again under another key: it was begun anew.
create table authorizations (
    external_id  bigint primary key references external_accounts (id) on delete cascade,
    key          text not null,                      -- another one each time; names it in addresses of pages
    state        text not null check (state in ('waits', 'authorized', 'failed')),
    words        text not null default '',           -- why it failed, or what was wrong at the latest try; for people
    asked        bytea not null,                     -- what was asked of the provider, sealed; empty once it has ended
    begun_by     text not null,
    begun_at     timestamptz not null default now(),
    ends_at      timestamptz not null,               -- it is too late then
    next_try_at  timestamptz not null                -- the provider is asked again; infinity: a browser brings the answer
);
