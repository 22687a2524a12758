-- junk: why a mail is junk; null: it is not.
--   folder  it was fetched from the junk folder of the provider
--   header  a rule of the operator on its header applies (setting JUNK_HEADERS)
--   left    it was moved out of that folder at the provider; the copies in Junk are to be moved, too
-- null -> folder (with the row) | header (by the router); folder -> left (by the fetcher); left -> null (by the mailbox
-- service, once the mail is delivered and its copies are moved).
alter table inbound add column junk text check (junk in ('folder', 'header', 'left'));
