"""All of mailgroup on one machine, without containers.

- instance.py: the steps of ``up``. It writes DATA/run.json when everything is ready, and removes it at the stop.
- supervise.py: keeps the processes running; writes supervisord's configuration and controls it. programs.py: one
  process. launch.py: starts a service with the secrets that it needs, and no others.
- postgres.py, rabbitmq.py: the private PostgreSQL and RabbitMQ. servers.py: their ports and passwords.
- folders.py: where their data and sockets are stored if the data folder belongs to root alone.
- ports.py: which ports are used.
- dovecot_postfix.py, provider_config.py, dovecot.py, certificates.py: the stand-in provider of the demo and the tests.

The data folder contains run.json (for other commands: how to reach the running system), secret.key (seals the upstream
passwords; without it they must be entered again), admin.password, servers.json, environment/ (of each service, while
``up`` runs), postgres/, rabbitmq/, tls/, log/ (a file for each program, at most 40 MB each), supervisord.conf and
up.lock.

The script ``mailgroup`` installs Debian's packages before any Python runs.
"""
