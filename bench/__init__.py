"""Benchmarks of mailgroup and of programs that do the same work, on one machine, alternately.

``make bench`` runs all benchmarks; ``./mailgroup bench --list`` lists those that can be run alone.
- benchmarks.py: the list. The module of each group (serving.py, submission.py, pipeline.py, relay.py, latency.py,
  fanout.py, scaling.py, idle.py) has its measurements and goals.
- baselines.py (Dovecot, Postfix, smtp-sink), fetchers.py (mpop, fetchmail with maildrop): the programs to compare with.
- gateway.py: the gateway under test, started as by ``up``. environment.py: all servers, each started on its first use.
- pop3_load.py, imap_load.py (both with load_sessions.py), smtp_load.py, delay.py: the load, each in its own process
  (processes.py); smtp_target.py; mails.py.
- fill.py: a large database. console_lists.py: the lists of the console with it, in milliseconds.
- table.py (ratios of pairs, goals), results.py (RESULTS.md), machine.py: the report.
- purge.py, partitions.py: the purge of old mail beside partitions by age (PURGE.md). sizing.py: mails of 75 KB, and a
  synchronous standby (SIZING.md).
- processes.py (measured, cpu_seconds): processor time. paired.py, paired_side.py: two checkouts alternately.

A slow machine makes no benchmark fail. A missing or wrong mail ends the run (Wrong).
"""


class Wrong(Exception):
    """A mail is missing, duplicate or changed, so that the figure would be meaningless."""
