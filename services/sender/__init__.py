"""Delivers what mail clients submitted: inside unrewritten, outside through the author's external account.

Summary: takes a submission apart. Local recipients, and external addresses of ours, are handed to ``inbound`` at once,
whatever the state of the external account. The others wait, grouped by submission, until a sender claims the group,
rewrites the header (``rewriting``: local addresses become ``"user_name" <external address>``) and relays it (``relay``)
by the account's SMTP server, in lanes (``relaying``, ``outlet``). What becomes of it is written down for many mails at
once (``claims``, ``settling``). Retries, notices of delay and failure: ``schedule`` and ``notices``.

Consumes: queue ``sender`` (``submitted.<external>``). What is to be relayed is claimed from the database, not queued.
Publishes: ``routed.<local>`` for the mailbox service (local recipients, notices), ``fetched.<external>`` for the
router. Tables: reads external_accounts, local_accounts, blobs; writes submissions, submission_recipients, sent_mail,
relay_status, poison, inbound, deliveries, blobs (notices), maillog, and in external_accounts a refresh token that the
provider renewed and the size of mails that it takes. Security: opens the sealed passwords of the external accounts, and
connects only where shared/net/dial.py allows it, never with less encryption than configured. Nothing but CRLF leaves as
a line end, so no second mail can be smuggled. On failure: a temporary refusal is tried again for five days; one
provider that is slow or away holds back no other account; refused credentials pause the account and bounce nothing.
What a sender had claimed that dies, others take up within seconds; what it had sent without an answer is sent once
more, marked uncertain. Before that each is rehearsed alone, as it may be what ended the sender (``rehearsal``). Five
failures of our own, or five such ends, park the mail.
"""
