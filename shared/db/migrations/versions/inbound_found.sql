-- found_by: how the recipients of a fetched mail were found, if it names a person or answers a mail; null for any other
-- mail, and for mail from before this revision.
alter table inbound add column found_by text
    check (found_by in ('name', 'tag', 'reference', 'report', 'nobody'));
