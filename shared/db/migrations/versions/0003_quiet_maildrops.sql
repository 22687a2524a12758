-- Owner: shared/store/polls.py

-- A maildrop whose list is the same as when there was nothing to do with it needs no comparison with the ledger, which
-- may have a hundred thousand rows. Every transaction of a poll that may write the ledger clears the mark first.
alter table polls
    add column quiet_list   bytea,        -- digest of the list, and of what else the decision depends on
    add column quiet_until  timestamptz;  -- then something falls due (a retry, a deletion); at most an hour ahead
