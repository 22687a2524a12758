"""Interoperability tests: real mail clients and providers' servers transfer three mails through the running system.

``make interop`` (``./mailgroup interop``) tests every client and server in each TLS mode and writes the results to
docs/interoperation.md; ``./mailgroup interop mutt curl`` tests the named ones and only prints the results. A short form
for every test run is in tests/e2e/test_clients.py.
"""
