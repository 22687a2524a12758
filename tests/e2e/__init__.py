"""End-to-end tests: the whole system, used as its users use it."""
