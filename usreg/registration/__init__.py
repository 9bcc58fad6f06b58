"""Registration of one pair by optimisation: linear, then deformable, coarse to fine.

``function.py`` and ``command.py`` are the two ways in; both call ``pair.py``. ``inputs/`` reads and checks what is
given, ``stages/`` runs the stages, ``transforms/`` holds their start and the inverse, ``outputs/`` the results and
their files, ``reports/`` the measures and what shows them. ``demo.py`` makes a pair with a known answer.
"""

from __future__ import annotations

from .stages.convergence import Convergence
from .stages.free_fields import FreeField, register_free_field
from .stages.greedy import Greedy, register_greedy
from .stages.levels import Level, make_levels, move_field
from .stages.linear import Linear, register_linear

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
