"""Parses the commands of mail clients (RFC 3501 and RFC 9051, sections 6 and 9)."""
