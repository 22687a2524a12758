"""Fuzz tests of the code that reads untrusted bytes.

``targets.py`` has the properties that must hold for any input (the judges), ``test_targets.py`` checks them briefly,
and ``python -m tests.fuzz.explore`` (``make fuzz``) searches longer, guided by coverage.
"""
