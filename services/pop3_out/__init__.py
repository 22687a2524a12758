"""Serves the mailboxes to mail clients by POP3.

Summary: RFC 1939 with UIDL and TOP, CAPA (RFC 2449), STLS (RFC 2595), UTF8 (RFC 6856), AUTH PLAIN (RFC 5034) and
response codes (RFC 2449, RFC 3206) on POP3_PORT (clear, STLS) and POP3S_PORT (TLS from the start). A session works on a
snapshot of the mailbox: its numbers stay as they are, mail that another session deletes stays readable, and what this
one marks is deleted by QUIT, all at once, or not at all. Mails are read before they are asked for, by queries that
serve many sessions at once.

Consumes: nothing from the broker.

Publishes: nothing.

Tables: reads local_accounts, last_logins, maildrops, maildrop_mails, blobs, blob_chunks; writes maildrops,
maildrop_mails (tombstones), last_logins and maillog.

Security: passwords are taken over TLS, or in clear where ALLOW_PLAINTEXT_AUTH says so; what was sent in clear after
STLS is thrown away. A load balancer that the settings name is believed who the client is
(shared/net/proxy_protocol.py). Guessing is slowed by shared/auth/authenticator.py and ends the connection after a few
tries. Connections are bounded for each client address, for each account and in all, lines by their length, sessions by
idle and total time. Sessions of accounts that were disabled, removed or given a new password end within two seconds. A
slow client holds about one piece of a mail in memory, not the mail; what is read ahead, or in larger pieces, comes out
of one budget of the process (readahead.py), and so do the mails in the mailboxes that sessions have open (store.py):
who would need more waits, or is told to come later.

On failure: with the database away commands are answered ``-ERR [SYS/TEMP]`` and the session goes on; in the middle of a
mail the connection is cut, which no client takes for the mail's end. A session that is cut anywhere deletes nothing.
Killed, the service loses nothing but the connections.
"""
