"""The stages, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from tools.gpu import checks, measurements
from tools.gpu.runner import Stage

STAGES: tuple[Stage, ...] = (
    Stage("machine", "the GPU, versions, and which backend runs", 120, checks.machine),
    Stage("build", "both libraries for this GPU, in place", 900, checks.build),
    Stage("smoke", "every kernel once against the float64 reference", 300, checks.smoke, gate=True),
    Stage("tests", "the tests marked gpu, in several processes", 900, checks.tests),
    Stage("large", "the slow gpu tests (more than 2^31 voxels), a process each", 600, checks.large),
    Stage("sanitize", "compute-sanitizer: memcheck, racecheck, synccheck", 900, checks.sanitize),
    Stage("times", "kernel times of all losses and backends", 900, measurements.times),
    Stage("tiles", "tiles of the Triton march, programs per multiprocessor", 1200, measurements.tiles),
    Stage("profile", "ncu's counters of each kernel", 600, measurements.profile),
    Stage("bench", "the benchmark and its report", 2400, measurements.bench),
)


def choose(names: Sequence[str]) -> list[Stage]:
    """The stages of these names, in their own order; all of them where none is named.

    Raises:
        ValueError: there is no stage of that name.
    """
    known = {stage.name: stage for stage in STAGES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown stage {', '.join(unknown)}; valid: {', '.join(known)}")
    return [stage for stage in STAGES if not names or stage.name in names]
