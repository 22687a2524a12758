"""Header octets: addresses, encoded-words, display names, bounces, DSN options; dot-stuffing. Pure."""
