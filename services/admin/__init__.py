"""The operator's hands: the command line, and the console in a browser (``web``); two faces of the same functions.

Summary: makes accounts what a file or a command says, shows how the mail flows and what became of each mail, tries and
repeats what is stuck, and brings the whole system up on one machine.

Consumes: nothing.
Publishes: nothing; what it changes is found by the sweeps within seconds.
Tables: reads all of them; writes alerts, alert_posts, leases, console_users, console_sessions, api_tokens, audit,
oauth_requests, search_index, shared_mails, unknown_names, search_progress, external_accounts, local_accounts, states of
inbound and submissions, and inbound (alarms as mail); purges what is old from all of them.
Security: the command line needs the database's URL and the key, so whoever runs it is the operator. The console asks
for a password (argon2id, slowed down as the mail doors are), keeps sessions in the database, takes changes from its own
pages only, and forbids browsers all that it does not need (web/guard.py). It listens on a loopback address unless the
operator says otherwise, and then speaks TLS. No secret is shown again; exports leave passwords out. One request changes
something without a session: a provider's answer that a browser brings (web/authorization.py), known by its state. The
settings of mail clients are told to anybody who asks (web/setting_up.py), and do not tell whose addresses there are.
On failure: nothing is half done (one transaction a command); exit status 2 for misuse, 1 for failure, each with a line
that names the field, the value and what is allowed.
"""
