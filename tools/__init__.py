"""Tools of a clone of the repository; no wheel holds them."""
