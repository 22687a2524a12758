-- Every writer of a mailbox increments this column first, and every reader reads it: with another name, older code gets
-- temporary errors and waits. So the next revision finds mailboxes that nobody changes.
alter table maildrops rename column version to last_version;
