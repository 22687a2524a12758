"""What both sides of IMAP need, client and server: names of folders, sets of numbers. Pure."""
