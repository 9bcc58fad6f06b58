"""Benchmarks: what is timed (contenders), how (timing), and the tables."""
