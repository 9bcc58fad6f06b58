"""The table of tolerances: how far a result may lie from the float64 reference, for tests, benchmark and tools.

Errors are relative: the L2 norm of the difference over that of the reference. A loss is at least float32; a gradient is
rounded to the dtype of its input.
"""

from __future__ import annotations

import torch

LOSS_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}

MAP_TOLERANCE = {**dict.fromkeys(LOSS_TOLERANCE, 3e-6), torch.float64: 1e-12}
"""Of loss maps, where sums are float32: their errors average out in a mean."""

OTHERS_LOSS_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
OTHERS_GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Above these the benchmark calls a contender that is not ours inexact: other formulas lose more in float32."""
