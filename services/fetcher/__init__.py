"""Fetches mail from the providers' maildrops by POP3.

Summary: claims the external accounts that are due, compares each maildrop with the ledger (``plan``, pure), fetches
what is new (``poll``), commits it (``batch``), and deletes upstream what the account's settings and the ledger allow. A
list that is the same as when there was nothing to do is not compared again before something falls due, or an hour.

Consumes: nothing; it is driven by the clock.
Publishes: ``fetched.<external>`` for the router, after the commit.
Tables: reads external_accounts; writes polls, uidl_ledger, blobs, inbound, maillog, and in
external_accounts a refresh token that the provider renewed.
Security: talks to servers that anyone may name: ``shared.net.dial`` guards addresses, ports and certificates, every
read has a deadline and a bound, replies are shown trimmed. Passwords are opened just before a poll and never logged.
On failure: a failed poll is recorded with its kind and tried again after a pause; refused credentials pause the
account. A mail that cannot be fetched or stored is skipped, stays upstream, is tried again where that may help, and its
people get a notice. Without the database nothing is deleted. A killed process loses its leases to another one within
seconds. An account whose polls end the process again and again is shown in ``status`` and in the end polled
once a minute; from the fifth time on its mails are stored without a look into their headers.
"""
