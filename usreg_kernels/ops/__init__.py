"""The ops, one package each: schema and backends in __init__.py, maths in reference.py, speed in the other modules."""
