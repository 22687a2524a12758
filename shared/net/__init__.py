"""Sockets both ways: listening, PROXY protocol, server TLS; guarded connections to other hosts, one HTTP request."""
