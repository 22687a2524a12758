"""Provokes every alert of Prometheus once, on a running system: ``make alerts``."""
