"""Delivers mail into mailboxes.

Summary: delivers the copies that the router decided, in batches; the only writer of new mail into mailboxes. Junk goes
into the folder Junk of each person who wants that, and from there to INBOX when the provider has moved it.

Consumes: queue ``mailbox`` (``routed.<local>``).
Publishes: ``fetched.<external>`` for a mail whose recipient was removed between decision and delivery. Mail that was
sent to that recipient's local address is held instead: it concerns no other user.
It also publishes ``changed.<local>`` (transient) for each mailbox that got mail, for programs that watch mailboxes.
Tables: reads deliveries, inbound, blobs; writes folders, folder_mails, delivered, inbound (state), deliveries
(done_at, for a mail that is delivered to some of its recipients only), poison, maillog.
Security: works on ids only; reads no part of a mail.
On failure: a copy is delivered once, however often its message is delivered: the mail's state, deliveries.done_at and
the table delivered prevent a second copy, also of a mail that its owner has moved or deleted. A mail that fails here
five times, or crashes the process five times, is parked; other mails continue.
"""
