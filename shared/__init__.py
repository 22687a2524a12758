"""What two or more services need: the wiring, the tables, the mail format, the skeleton of a process."""

from __future__ import annotations

__version__ = "0.1.0"
"""The version of the whole system. pyproject.toml says the same, and a test compares them."""
