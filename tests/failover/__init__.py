"""Failovers of PostgreSQL and RabbitMQ while mail is under way, judged by the books of ``tests.faults``."""
