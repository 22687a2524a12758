"""Administration: the command line and the console in a browser (``web``), two interfaces to the same functions.

Summary: changes accounts, shows the state of the system and the history of each mail, retries or cancels stuck mail,
and starts the whole system on one machine.

Consumes: nothing.
Publishes: routed mail for the notices and alerts that it stores, and ``changed.<local>`` after it has changed a mailbox
(undelete, give, hand-over); the sweeps of the services find its other changes within seconds.
Tables: reads all of them; writes alerts, alert_posts, leases, console_users, console_sessions, api_tokens, audit,
oauth_requests, applied_passwords, search_index, shared_mails, unknown_names, search_progress, external_accounts,
local_accounts, states of inbound and submissions, and inbound (alerts as mail); purges old rows from all of them.
Security: the command line needs the database's URL and the key, so its user is the operator. The console requires a
password (argon2id, with the login throttle of the mail services), keeps sessions in the database, accepts changes from
its own pages only, and forbids browsers all that it does not need (web/request_guard.py). Connections and requests have
limits and deadlines (web/connection.py). It listens on a loopback
address by default, and speaks TLS on any other. No secret is shown again; exports leave passwords out. One request
changes data without a session: a provider's OAuth answer that a browser brings (web/authorization.py), verified by its
state. The settings of mail clients are public (web/client_autoconfig.py) and do not reveal which addresses exist.
On failure: no change is half done (one transaction a command); exit status 2 for misuse, 1 for failure, each with a
line that names the field, the value and what is allowed.
"""
