"""Compares imap_out with a real Dovecot: the same streams of commands, by several sessions on one mailbox.

``streams`` draws a stream from a seed, ``duel`` runs it on both servers, one command at a time over the open
connections, ``answers`` brings answers into a form that can be compared, ``client_view`` follows what each session
knows, ``differences`` lists where the two may differ, with the verdict of the RFC, and ``shrink`` looks for the
shortest stream that still fails. ``python -m tests.imap_oracle.run`` (``make imap``) runs for as long as one likes.
"""
