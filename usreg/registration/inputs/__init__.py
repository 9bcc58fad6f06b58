"""What a registration is given: files or arrays, read, checked, and made into the two sides of a pair."""
