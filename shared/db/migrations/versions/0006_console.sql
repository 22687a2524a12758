-- Owner of all of this: services/admin/access/users.py

-- Who runs the system in a browser. Local accounts sign in to the console too; they need no row here.
-- An administrator does everything; an observer changes nothing and sees no mail's body.
create table console_users (
    id             bigint generated always as identity primary key,
    name           text not null check (name not like '%@%' and octet_length(name) <= 100),
    role           text not null check (role in ('administrator', 'observer')),
    password_hash  text not null,                    -- argon2id, PHC string
    given_hash     text,                             -- of the password that the setting ADMIN_PASSWORD gave last
    created_at     timestamptz not null default now(),
    signed_in_at   timestamptz
);
create unique index console_users_name on console_users (lower(name));

-- A browser that is signed in, as a user of the console or as a local account. It ends when it is signed out, when the
-- password is another one, when the account is disabled or removed, and when it is idle or old.
create table console_sessions (
    id             bigint generated always as identity primary key,
    token_sha256   bytea not null unique,            -- of what the browser's cookie holds
    user_id        bigint references console_users on delete cascade,
    local_id       bigint references local_accounts on delete cascade,
    password_hash  text not null,                    -- the stored one when it began
    peer           text not null,                    -- the browser's IP address
    agent          text not null,                    -- what the browser calls itself
    notices        text[] not null default '{}',     -- what the next page is to say
    created_at     timestamptz not null default now(),
    seen_at        timestamptz not null default now(),
    check ((user_id is null) <> (local_id is null))
);
create index console_sessions_user on console_sessions (user_id);
create index console_sessions_local on console_sessions (local_id);
