-- Whether mails of the account leave with a Reply-To address that names their author (shared/mime/reply_tags.py).
alter table external_accounts add column reply_tag boolean not null default false;

-- Owner: shared/store/reply_tags.py
-- The keys of the MACs of reply tags. The latest one makes tags, all of them verify tags. They open nothing else, so the
-- router, which has no key of the passwords, can read them.
create table reply_tag_keys (
    id          bigint generated always as identity primary key,
    key         bytea not null check (octet_length(key) = 32),
    created_at  timestamptz not null default now()
);

-- Owner: shared/store/reply_tags.py
-- The latest probe mail of an account: sent to its own address with a tag, to find out whether the provider delivers it.
-- result: null -> arrived | untagged | refused | failed    fetched with the tag | fetched without it
--                                                          | a report says that it was not delivered | it did not leave
--         arrived | untagged -> refused                    a report came later
-- Nobody gets a probe mail: inbound.state fetched -> discarded, also of the reports on it.
-- Each probe mail replaces the row; earlier_ids are the Message-IDs of those before, which may come late.
create table reply_tag_probes (
    external_id  bigint primary key references external_accounts on delete cascade,
    message_id   text not null,
    tag          text not null,
    earlier_ids  text[] not null default '{}',       -- at most 20
    sent_at      timestamptz not null default now(),
    result       text check (result in ('arrived', 'untagged', 'refused', 'failed')),
    result_at    timestamptz,
    reply        text not null default ''            -- why it failed
);
