"""The state of the system: problems, alerts, reconciliation, metrics that exist once."""
