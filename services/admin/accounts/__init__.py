"""External and local accounts: accounts file, changes, connection check, OAuth consent, client autoconfiguration."""
