-- Owner: services/admin/access/audit.py

-- What people did to the system, by the console, the API or the command line, in the transaction that it tells of; and
-- whose mail they looked into. Nothing changes or deletes a row.
create table audit (
    id      bigint generated always as identity primary key,
    at      timestamptz not null default now(),
    who     text not null,                           -- name of the user, address of the person, or user of the machine
    did     text not null,                           -- a verb and its object, as "changed external account"
    target  text not null default '',                -- which one: an address, the id of a mail
    detail  text not null default ''
);
create index audit_target on audit (lower(target), id);
create index audit_who on audit (lower(who), id);
