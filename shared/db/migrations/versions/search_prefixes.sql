-- Finds mails by the beginnings of their terms, which an index on arrays cannot. An empty term is no lexeme.
create index concurrently if not exists search_index_prefixes on search_index
    using gin (array_to_tsvector(array_remove(terms, ''))) with (fastupdate = off);
-- Of millions of recipients, the few that did not get their mail.
create index concurrently if not exists submission_recipients_ended on submission_recipients (submission_id, state)
    where state in ('failed', 'cancelled');
