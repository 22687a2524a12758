"""Takes mail from mail clients by SMTP (manual chapter 5; RFC 5321, RFC 6409) and answers 250 once it is committed.

Summary: a listener each for SMTP_PORT (plain, STARTTLS), SUBMISSION_PORT (STARTTLS, no password before it) and
SMTPS_PORT (TLS from the start). Every session logs in. ``engine.py`` reads commands and writes replies, ``protocol.py``
carries them out, ``data.py`` reads the bytes, ``register.py`` knows the accounts, ``recipients.py`` decides who is
inside and who is relayed, ``senders.py`` who may be in From; ``intake.py`` commits, all sessions
together. What a client asks to be told about the delivery (RFC 3461) is kept for the sender.

Consumes: SMTP. Publishes: ``submitted.<external>`` for the sender, after the commit. Tables: reads external_accounts,
local_accounts, accounts_version, last_logins; writes submissions, submission_recipients, sent_mail, blobs,
last_logins, maillog. Security: what comes from the network is bounded in line, header, mail, recipients, time, sessions
of an account and in all sessions together. Logins are throttled (shared/auth/authenticator.py); a load balancer that
the settings name is believed who the client is (shared/net/proxy_protocol.py). Nobody sends as somebody else; unknown
addresses of local domains never leave. The end of a mail is CRLF.CRLF and nothing else, so no mail can be smuggled
inside another (line ends are made CRLF). On failure: the database away or a commit failed: 451, the client tries again.
The broker away: the mail is taken, the sender's sweep finds it. A client that is gone after its last dot: the mail is
taken all the same.
"""
