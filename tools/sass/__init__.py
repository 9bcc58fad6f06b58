"""What the kernels for GPUs compile to, without a GPU: ``python -m tools.sass``."""
