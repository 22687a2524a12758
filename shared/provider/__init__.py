"""Connections to providers: POP3 and SMTP clients, OAuth, sealed credentials. Fetcher, sender and admin build them."""
