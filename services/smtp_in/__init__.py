"""Accepts mail from mail clients by SMTP (manual chapter 5; RFC 5321, RFC 6409) and replies 250 after the commit.

Summary: one listener each for SMTP_PORT (STARTTLS optional), SUBMISSION_PORT (no password before STARTTLS) and
SMTPS_PORT (TLS from the start). Every session logs in. ``command_loop.py`` reads commands and writes replies,
``login.py`` and ``connection.py`` run them, ``data_reader.py`` reads the content, ``directory_cache.py`` holds the
accounts, ``recipient_policy.py`` decides which recipients are local and which are relayed, ``sender_policy.py`` checks
From, ``receive_memory.py`` limits memory, ``envelope_policy.py`` checks the complete mail, ``commit_queue.py`` commits
the mails of all sessions together. DSN parameters of the client (RFC 3461) are stored for the sender.

Cached accounts are enough to accept a command. The complete mail is checked once more, and is stored only if the
accounts are still those that it was checked by; author and local recipients are locked until the commit. The author
gets a notice about a recipient that was accepted and has no account any more.

Consumes: SMTP. Publishes: after the commit, ``submitted.<external>`` for the sender, and ``changed.<local>``
(transient) for programs that watch the author's folder Sent.

Tables: reads external_accounts, local_accounts, accounts_version, last_logins, inbound, deliveries; writes submissions,
submission_recipients, sent_mail, blobs, folders and folder_mails (a copy in Sent), last_logins, maillog.

Security: lines, header, mail, recipients, times, the rate of a mail, sessions and memory per account, connections per
network and the memory of all sessions are limited. Failed logins are throttled (shared/auth/authenticator.py). The
client address of a PROXY header is used only from load balancers that the settings name (shared/net/proxy_protocol.py).
An author can send only from its own addresses and those of its external account; mail to unknown addresses of local
domains never leaves. Only CRLF.CRLF ends a mail, and line ends are stored as CRLF, so no mail can be smuggled inside
another.

On failure: the database is unavailable or a commit failed: 451, the client tries again. The broker is unavailable: the
mail is committed, and the sender's sweep finds it. The client disconnects after the final dot: the mail is committed.
"""
