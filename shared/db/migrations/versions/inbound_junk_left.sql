-- Nearly always empty.
create index concurrently if not exists inbound_junk_left on inbound (id) where junk = 'left';
