"""Where a registration starts, and the inverse of the field that it ends with."""
