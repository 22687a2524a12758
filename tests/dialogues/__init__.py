"""What client and server say to one another, in text files, and who plays them."""
