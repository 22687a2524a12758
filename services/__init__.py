"""The services of mailgroup, a process each. None imports another; they share what is in ``shared``."""
