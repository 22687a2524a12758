"""The keys of SEARCH, SORT and THREAD (RFC 3501 section 6.4.4, RFC 5256), and the text that they are compared with."""
