-- The submissions of an author with one Message-ID, in order: the nearest are read however many there are.
create index concurrently if not exists submissions_author on submissions (message_id, author_id, id);
drop index concurrently if exists submissions_message_id;
