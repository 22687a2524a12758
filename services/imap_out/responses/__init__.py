"""Formats the responses to mail clients (RFC 3501 and RFC 9051, section 7)."""
