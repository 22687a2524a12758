"""Failovers of PostgreSQL and RabbitMQ while mail is in transit, judged by the books of ``tests.faults``."""
