"""Decides who gets a fetched mail.

Summary: reads the header of each mail and the accounts as they are now, and writes down the recipients with the rule
that chose each (``shared.routing.decide``, a pure function).

Consumes: queue ``router`` (``fetched.<external>``).
Publishes: ``routed.<local>`` for the mailbox service.
Tables: reads external_accounts, local_accounts, blobs, sent_mail; writes inbound (state), deliveries, poison,
events.
Security: works on headers that anyone on the Internet may write. They are data: bounded in size and time, never part of
SQL; what cannot be read goes to everyone who shares the account.
On failure: a mail that fails here five times by itself is parked with its traceback, and so is one that five times ends
the process, handled alone; the others go on. Nobody enabled to share the account: the mail is held, shown in
``status``, and routed as soon as somebody is.
"""
