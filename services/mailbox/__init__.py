"""Puts mail into mailboxes.

Summary: delivers the copies that were decided, in batches; the only writer of new mail into mailboxes.

Consumes: queue ``mailbox`` (``routed.<local>``).
Publishes: ``fetched.<external>`` for a mail whose recipient was removed between decision and delivery. One
that was sent to that person's local address is held instead: it is nobody else's.
Tables: reads deliveries, inbound, blobs; writes maildrops, maildrop_mails, inbound (state), deliveries
(done_at, where a mail is delivered to some of its people only), poison, maillog.
Security: works on ids alone; no part of a mail is read.
On failure: a copy is delivered once however often its message comes: the mail's state, deliveries.done_at and a unique
key guard it, and a tombstone keeps a deleted mail deleted. A mail that fails here five times by itself, or
five times ends the process, is parked; the others go on.
"""
