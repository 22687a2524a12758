"""Pure tests: no server, no network."""
