"""Set-up of all tests: ``bench`` can be imported, and Triton kernels run where there is no GPU."""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # behind everything that is installed

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported
