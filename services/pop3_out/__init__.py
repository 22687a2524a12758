"""Serves the mailboxes to mail clients by POP3.

Summary: RFC 1939 with UIDL and TOP, CAPA (RFC 2449), STLS (RFC 2595), UTF8 (RFC 6856), AUTH PLAIN (RFC 5034) and
response codes (RFC 2449, RFC 3206) on POP3_PORT (STLS optional) and POP3S_PORT (TLS from the start). A session works on
a snapshot of the mailbox: message numbers do not change, and mail that another session deletes stays readable. QUIT
deletes all marked mails, or none. Mails are read ahead, by queries that serve many sessions at once.

Consumes: nothing from the broker.

Publishes: ``changed.<local>``, after the commit of deletions; it wakes IMAP sessions in IDLE.

Tables: reads local_accounts, last_logins, folders, folder_mails (INBOX), blobs, blob_chunks; writes folders,
folder_mails (tombstones), last_logins and maillog.

Security: passwords are accepted with TLS, and without TLS where ALLOW_PLAINTEXT_AUTH allows it; pipelined input after
STLS is dropped. The client address of a PROXY header is used only from load balancers that the settings name
(shared/net/proxy_protocol.py). Failed logins are throttled (shared/auth/authenticator.py), and close the connection
after a few tries. Connections are limited per network and in all, sessions per account, lines by length, sessions by
idle time and total time, clients that read by a least rate. Sessions of accounts that were disabled, removed or given
another password end within two seconds. A slow client uses the memory of about one piece of a mail. Mails that are read
ahead, and larger pieces, use one memory budget of the process, of which each account has a share (readahead.py). The
mailboxes of all open sessions have a limit, too (mailbox_store.py); above it logins fail temporarily.

On failure: the database is unavailable: commands are answered ``-ERR [SYS/TEMP]`` and the session continues; in the
middle of a mail the connection is closed, which no client takes for the end of the mail. A connection that breaks
before QUIT deletes nothing. A crash of the service loses only the connections.
"""
