"""The operator's hands: the command line now, the console in a browser later; two faces of the same functions.

Summary: makes accounts what a file or a command says, shows how the mail flows and what became of each mail, tries and
repeats what is stuck, and brings the whole system up on one machine.

Consumes: nothing.
Publishes: nothing; what it changes is found by the sweeps within seconds.
Tables: reads all of them; writes external_accounts, local_accounts, and states of inbound and submissions.
Security: needs the database's URL and the key, so whoever runs it is the operator. No secret is shown again; exports
leave passwords out.
On failure: nothing is half done (one transaction a command); exit status 2 for misuse, 1 for failure, each with a line
that names the field, the value and what is allowed.
"""
