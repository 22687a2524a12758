"""Interoperation: real mail clients and providers' servers move the same three mails through the running system.

``make interop`` (``./mailgroup interop``) tries every client and server in each of their ways and writes what came of
it into docs/interoperation.md; ``./mailgroup interop mutt curl`` tries some and only prints it. A short form for every
test run is in tests/e2e/test_clients.py.
"""
