"""Logins of mail clients: password check, throttle, last logins."""
