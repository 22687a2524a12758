"""Serves the folders of mailboxes to mail clients by IMAP.

Summary: IMAP4rev1 (RFC 3501), IMAP4rev2 (RFC 9051) and the extensions that ``capabilities.py`` names, on IMAP_PORT
(STARTTLS) and IMAPS_PORT (TLS from the start). The protocol is pure: ``grammar`` parses commands, ``responses`` formats
answers, ``structure`` finds the parts of stored mails, ``search`` has the keys of SEARCH, SORT and THREAD. A session
shows its client a state of the selected folder (view.py), which all sessions with the same version share, and moves to
a later one where RFC 3501 allows updates. Texts of mails are streamed.

Consumes: the hints ``changed.<local>``, by a queue of the process alone; they wake sessions in IDLE, and end what the
process knows of a mailbox (current_folders.py). NOOP, CHECK, IDLE and SELECT ask the database in any case.

Publishes: ``changed.<local>``, after each change by a client.

Tables: reads local_accounts, last_logins, folders, folder_mails, blobs, blob_chunks; writes folders, folder_mails,
blobs, blob_chunks (APPEND), mail_structures (what FETCH needs of a mail; structures_ahead.py), last_logins, leases and
maillog (deletions).

Security: everything that a client or a mail can make long, deep or many has a limit, and each function takes time in
proportion to its input. Values that come from a client or a mail are quoted or sent as literals. Passwords are accepted
with TLS, and without TLS where ALLOW_PLAINTEXT_AUTH allows it (else LOGINDISABLED); input that arrived before STARTTLS
is dropped. Failed logins are throttled (shared/auth/authenticator.py), and close the connection after a few tries.
Connections are limited per network and in all, sessions per account and by time, clients that read or send a mail by a
least rate. Sessions of accounts that were disabled, removed or given another password end within two seconds.

On failure: a command that cannot be parsed is refused with a sentence that names the argument (``CommandError``). A
mail that is no valid MIME has a structure nevertheless, as other servers give it. The database is unavailable: commands
are answered NO [UNAVAILABLE]; in the middle of a literal the connection is closed. Without the broker, sessions in IDLE
hear of changes after two seconds at most. A crash loses only the connections, and leaves the octets of an APPEND that
was not complete to the purge.
"""
