"""The sender delivers what mail clients submitted: to local accounts unchanged, to others by the external account.

Summary: a submission has local recipients, external accounts of ours, and others. The first two are written to
``inbound`` at once, whatever the state of the external account. The others are queued. A sender claims a queued mail,
rewrites its header (``header_rewriting``: local addresses become ``"user_name" <external address>``) and relays it
through an SMTP server of the account over several lanes (``account_relay``, ``lane``, ``transmission``); through the
next server while the first one does not work, or is full. Marks and results of many mails are committed together
(``claims``, ``outcomes``). ``retry_policy`` and ``dsn_report`` decide about retries and about notices of delay and
failure.

Consumes: queue ``sender`` (``submitted.<external>``). Queued mails are claimed from the database, not consumed.
Publishes: ``routed.<local>`` for the mailbox service (local recipients, notices), ``fetched.<external>`` for the
router. Tables: reads external_accounts, local_accounts, blobs, reply_tag_keys; writes submissions,
submission_recipients, sent_mail, relays (state, size limits), relay_usage, provider_filings, poison, inbound,
deliveries, blobs (notices), maillog, and in external_accounts a refresh token that the provider renewed. Security:
opens the sealed passwords of the external accounts, and connects only where shared/net/dial.py allows it, never with
less encryption than configured. Lines leave with CRLF only, which prevents SMTP smuggling. On failure: temporary
failures are retried for five days; a slow or unreachable provider delays no other account; refused credentials pause
the server and bounce nothing. A result is recorded again until the database has it, and no other mail is sent
meanwhile. Other senders take over the claims of a sender that has provably ended within seconds, other claims when
nobody renews them (``dead_owners``). Mail that was sent without a reply is sent once more and recorded as uncertain.
Before that, each mail of a dead sender is built alone, as it may be a poison message (``poison_check``). Five failures
of this software, or five crashes, park the mail.
"""
