-- Counted by an index-only scan.
create index concurrently if not exists inbound_found on inbound (external_id, created_at, found_by)
    where found_by is not null;
