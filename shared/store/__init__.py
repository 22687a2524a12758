"""The tables that more than one service uses: one module for each table, with all SQL on it."""
