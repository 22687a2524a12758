"""Decides which people get a fetched mail.

Summary: reads the header of each mail and the current accounts, and records the recipients with the rule that chose
each (``shared.routing.decide``, a pure function). The operator's rules on the header decide what is junk
(``junk_headers``, pure).

Consumes: queue ``router`` (``fetched.<external>``).
Publishes: ``routed.<local>`` for the mailbox service.
Tables: reads external_accounts, local_accounts, blobs, sent_mail, reply_tag_keys; writes inbound (state),
deliveries, reply_tag_probes, poison, events.
Security: parses headers that anyone on the Internet may write. They are data: limited in size and time, never part of
SQL; mail with an unreadable header goes to everyone who shares the account.
On failure: a mail that fails here five times is parked with its traceback; so is a mail that crashes the process five
times while it is handled alone. Other mails continue. If no enabled user shares the account, the mail is held, shown in
``status``, and routed as soon as a user shares it.
"""
