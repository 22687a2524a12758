"""Fetches mail from the providers' maildrops by POP3 or IMAP.

Summary: claims due external accounts, logs in (``poll``), compares each maildrop with the ledger
(``maildrop_identity``; ``plan``, pure), fetches new mail (``fetch_session``), commits it (``committer``), and deletes
upstream what the account's settings and the ledger allow. A list that is the same as when there was nothing to do is
not compared again until the next due time, at most for an hour. Where an IMAP server offers IDLE, a session of its own
waits for new mail and makes the account due at once (``mailbox_watch``).

Consumes: nothing; a periodic check finds the due accounts.
Publishes: ``fetched.<external>`` for the router, after the commit; ``routed.<local>`` for a mail that was moved out of
the provider's junk folder, whose copies the mailbox service moves, too.
Tables: reads external_accounts; writes polls, uidl_ledger, blobs, inbound, maillog, and in
external_accounts a refresh token that the provider renewed.
Security: connects to servers that any account owner may choose: ``shared.net.dial`` checks addresses, ports and
certificates, every read has a deadline and a size limit, replies are trimmed before they are shown. Passwords are
decrypted just before a poll and never logged.
On failure: a failed poll is recorded with its kind and retried after a pause; refused credentials pause the account. A
mail that cannot be fetched or stored is skipped: it stays upstream, is retried where that may help, and its recipients
get a notice. Nothing is deleted while the database is unavailable. Another process takes over the leases of a killed
process within seconds. An account whose polls repeatedly crash the process is shown in ``status`` and polled less
often, in the end once a minute; from the fifth crash on its mails are stored without parsing their headers.
"""
