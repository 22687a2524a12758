"""Users of the console: passwords, sessions, API tokens, and the audit log of what they change."""
