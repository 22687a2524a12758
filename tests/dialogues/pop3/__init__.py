"""Dialogues with the POP3 server (*.txt), played by stand.py."""
