"""What two or more services need: the wiring, the tables, the mail format, the skeleton of a process."""
