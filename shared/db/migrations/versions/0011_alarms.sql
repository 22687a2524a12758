-- Owner: shared/db/leases.py

-- Work that one process does for the whole system: who has it, until when. It is renewed while it is done.
create table leases (
    name     text primary key,
    owner    text not null,
    expires  timestamptz not null
);

-- Owner: shared/store/alerts.py

-- What is wrong or was lately; a row for each kind of trouble with one thing (subject; '' for the whole system).
-- state: pending -> raised      it has lasted for a while; a person is told
--        raised -> calm         it is over, and has been for a while; a person is told
--        calm -> raised         it is there again: another flap
-- A row that was pending is deleted when the trouble is over; a calm one after a day.
create table alarms (
    kind       text not null,
    subject    text not null,
    state      text not null check (state in ('pending', 'raised', 'calm')),
    what       text not null,                        -- in words, as it was last seen
    flaps      integer not null default 0,           -- how often it came back: then it has to be over for longer
    changed_at timestamptz not null,                 -- when it came into its state
    seen_at    timestamptz not null,                 -- when it was there last
    primary key (kind, subject)
);

-- What is to be posted to ALERT_WEBHOOK, until it is.
create table alarm_posts (
    id           bigint generated always as identity primary key,
    body         jsonb not null,
    tries        integer not null default 0,
    next_try_at  timestamptz not null default now(),
    created_at   timestamptz not null default now()
);

-- Owner: shared/store/inbound.py
create index inbound_discarded on inbound (state_at) where state = 'discarded';
