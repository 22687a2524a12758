"""Tables that more than one service uses: one module a table, all SQL on it."""
