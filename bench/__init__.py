"""The project's benchmark: mailgroup beside the programs that do the same work, on one machine, in turn.

``make bench`` runs all of it; ``./mailgroup bench --list`` tells what can be run alone. Who looks for ...
- what is measured, and with which goals: benchmarks.py, and the module of each group of works (serving.py,
  submission.py, pipeline.py, relay.py, latency.py, fanout.py, scaling.py, idle.py).
- what it is measured against: baselines.py (Dovecot, Postfix, smtp-sink), fetchers.py (mpop, fetchmail with maildrop).
- the gateway under test: gateway.py, started as ``up`` does; environment.py holds all that runs, each part from when it
  is first asked for.
- the load: pop3_load.py, smtp_load.py, delay.py, each a process of its own (processes.py); smtp_target.py; mails.py.
- a store that has grown: fill.py.
- how figures become lines: table.py (ratios of pairs, goals met or not), results.py (RESULTS.md), machine.py.
- processor time: processes.py (measured, cpu_seconds). Two checkouts in turn: paired.py, paired_side.py.

It is no test: nothing fails because a machine is slow. A mail that is missing or wrong ends it (Wrong).
"""


class Wrong(Exception):
    """A mail is missing, too many or not the same: a figure would mean nothing."""
