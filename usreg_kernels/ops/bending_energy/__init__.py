"""Bending energy of a displacement field."""
