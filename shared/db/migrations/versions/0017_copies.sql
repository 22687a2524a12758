-- Owner: shared/store/maildrops.py
-- A mailbox's row refers to a mail (inbound_id), and that one to its bytes: this forbids to delete them. To refer to them
-- once more cost every copy of a mail another look-up and an entry in an index that nobody asks.
alter table maildrop_mails drop constraint maildrop_mails_blob_id_fkey;
drop index maildrop_mails_blob;

-- Owner: shared/store/inbound.py
-- deliveries.done_at is null also where the mail is delivered, which says so for all of its copies: it is set only for
-- those of a mail that some have and others are to get.
