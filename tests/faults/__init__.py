"""Tests of the whole system while parts of it are killed, wiped, cut off or get malformed input."""
