"""The ops, one package each: the contract in op.py, the maths in reference.py, the speed in the other modules."""
