"""All of mailgroup on one machine, without containers.

Who looks for ...
- what ``up`` does, in which order: instance.py. It writes DATA/run.json once all is ready, and removes it at the stop.
- what keeps the processes running: supervise.py writes supervisord's configuration and talks to it. One process is a
  Program (programs.py).
- the private PostgreSQL and RabbitMQ: postgres.py, rabbitmq.py; their ports and passwords: servers.py.
- where the data of those two lie, if the data folder belongs to root alone, and PostgreSQL's socket: folders.py.
- which ports are used: ports.py.
- the stand-in provider of the demo and the tests: dovecot_postfix.py, provider_config.py, dovecot.py, certificates.py.

In a data folder: run.json (how other commands find what runs), secret.key (seals the upstream passwords; who loses it
enters those again), admin.password, servers.json, postgres/, rabbitmq/, tls/, log/ (a file a program, at most 40 MB
each), supervisord.conf and up.lock.

Debian's packages are installed by the script ``mailgroup``, before any Python runs.
"""
