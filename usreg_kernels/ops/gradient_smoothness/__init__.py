"""First-order smoothness of a displacement field."""
