"""Benchmarks: figures of this machine, for comparison within one run. No test depends on them."""
