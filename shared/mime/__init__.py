"""Header octets: addresses, encoded-words, display names, reading of bounces, RFC 3461 options. Pure."""
