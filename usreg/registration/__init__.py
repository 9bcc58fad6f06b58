"""Registration of one pair by optimisation: linear, then deformable, coarse to fine."""

from __future__ import annotations

from .convergence import Convergence
from .free_fields import FreeField, register_free_field
from .greedy import Greedy, register_greedy
from .levels import Level, make_levels, move_field
from .linear import Linear, register_linear

__all__ = [
    "Convergence",
    "FreeField",
    "Greedy",
    "Level",
    "Linear",
    "make_levels",
    "move_field",
    "register_free_field",
    "register_greedy",
    "register_linear",
]
