"""Local normalised cross-correlation."""
