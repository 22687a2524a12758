"""Serves the mailboxes to mail clients by IMAP: the protocol, without input and output.

Summary: the grammar of IMAP4rev1 and IMAP4rev2 (RFC 3501, RFC 9051) with the extensions of mail clients. ``grammar``
parses commands, ``responses`` formats answers, ``structure`` finds the parts of stored mails, ``search`` has the keys
of SEARCH, SORT and THREAD. All functions are pure: views and octets of mails are arguments.

Consumes: nothing.

Publishes: nothing.

Tables: none.

Security: everything that a client or a mail can make long, deep or many has a limit, and each function takes time in
proportion to its input. Values that come from a client or a mail are quoted or sent as literals.

On failure: a command that cannot be parsed is refused with a sentence that names the argument (``CommandError``). A
mail that is no valid MIME has a structure nevertheless, as other servers give it.
"""
