"""Finds the parts of stored mails, and describes them as FETCH wants them (RFC 3501 sections 6.4.5 and 7.4.2)."""
