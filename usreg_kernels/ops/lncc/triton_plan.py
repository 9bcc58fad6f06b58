"""How a call of the z-march of local normalised cross-correlation is cut into programs.

A plan decides the order of sums, and so the last digits of a result. So it follows from what a call says (shape, dtype,
window, device) and from what the kernel compiles to, and from nothing that changes between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch

from usreg_kernels.ops.triton_backend import OPTIONS
from usreg_kernels.windows import Weights

LARGEST_WINDOW = 15
"""Beyond it the unfinished sums of a thread's voxels outgrow the registers."""

LARGEST_WITH_ALL_MAPS = 13
"""The largest window whose backward march keeps the sums of five maps in registers; above, a march per gradient."""

_WARPS = 4  # per program: four programs of 128 registers per thread fill a multiprocessor
_USUAL_PROGRAMS = 4  # per multiprocessor, where there is no device to ask
_PARTITIONS = 4  # of a multiprocessor: each serves a quarter of the warps
_REGISTERS_PER_PARTITION = 16384  # of every NVIDIA GPU that Triton supports
_REGISTERS_AT_ONCE = 256  # the step in which a warp gets registers
_COST_OF_FOUR_COLUMNS = 0.87  # against two, in instructions per voxel of the main loop


@dataclass(frozen=True)
class Tile:
    """The part of a plane that a program marches with.

    Attributes:
        columns: voxels per lane, 2 or 4.
        lanes: along x, a power of two up to 32: within a warp, where lanes can exchange values.
        rows: along y.
        warps: of 32 threads.
        registers: the most per thread; None leaves it to the compiler.
    """

    columns: int
    lanes: int
    rows: int
    warps: int = 4
    registers: int | None = None

    def whole(self, width: int) -> bool:
        """Whether the lanes hold whole rows."""
        return self.columns * self.lanes >= width

    def along_x(self, width: int, halo: int) -> int:
        """How many tiles a row takes, where lanes at a tile's ends may serve only as halo."""
        if self.whole(width):
            return 1
        owned = self.lanes - 2 * ceil_div(halo, self.columns)
        return ceil_div(ceil_div(width, self.columns), owned)


@dataclass(frozen=True)
class Plan:
    """A launch: where the volumes' voxels lie, and which of them each program takes.

    Attributes:
        programs: the grid.
        pitch: elements from row to row of images.
        numbers: arguments of both kernels, from ``D`` to ``chunk``.
        constants: keyword arguments of the kernel, with the compiler's options.
    """

    programs: int
    pitch: int
    numbers: tuple[int, ...]
    constants: Mapping[str, Any]

    @property
    def joins_planes(self) -> bool:
        """Whether windows reach from plane to plane; else the planes of all volumes are taken as those of one."""
        return bool(self.constants["HALO_Z"])


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


def map_shape(shape: Sequence[int], needs_grad: Sequence[bool]) -> tuple[int, ...]:
    """The shape of the maps that forward saves: none, three for one gradient, or five for both, row by row."""
    maps = {0: 0, 1: 3, 2: 5}[sum(needs_grad)]
    return (*shape[:-1], maps, _map_pitch(shape[-1]))


def _map_pitch(width: int) -> int:
    """Rows of maps begin at multiples of 16 bytes, whatever the tile's columns."""
    return ceil_div(width, 4) * 4


def _extents(shape: Sequence[int], weights: Weights) -> tuple[int, int, int, int]:
    """Volumes, planes, rows, width: planes that no window joins are those of one volume, and rows of one plane."""
    missing = 5 - len(shape)
    volumes, depth, height, width = prod(shape[:2]), *[1] * missing, *shape[2:]
    if len(weights[0]) == 1:
        volumes, depth = 1, volumes * depth
        if len(weights[1]) == 1:
            depth, height = 1, depth * height
    return volumes, depth, height, width


def _most_registers(window: int, box: bool, backward: bool, all_maps: bool) -> int | None:
    """The most registers per thread of a march with two columns per lane; None leaves it to the compiler.

    With 96 registers five programs fit a multiprocessor, with 128 four, with 168 three. Left to itself, the compiler
    may take a few registers more than that, or spill a few to take no more; which one differs from version to version.
    """
    limits: dict[int, int | None]
    if all_maps:
        limits = {5: 128, 7: None, 9: 168} if box else {5: 128}
    else:
        limits = {5: 96, 7: 128, 11: 168} if box and not backward else {7: 128}
    return next((registers for largest, registers in limits.items() if window <= largest), None)


def tiles_by_counts(weights: Weights, height: int, *, backward: bool, sums: int) -> list[Tile]:
    """The tiles that suit a window: of 128 threads where there are rows enough for them, and lanes to match the width.

    Four columns per lane take an eighth to a fifth fewer instructions per voxel than two, and about 1.7 times the
    registers: they are left to windows that keep 128 or fewer, with which four programs fit a multiprocessor.
    """
    window = max(map(len, weights))
    box = all(set(row) == {1.0} for row in weights)
    all_maps = backward and sums == 5
    largest_with_four_columns = 5 if backward and box and not all_maps else 3
    tiles = []
    for columns in (2, 4) if window <= largest_with_four_columns else (2,):
        registers = _most_registers(window, box, backward, all_maps) if columns == 2 else None
        for lanes in (32, 16, 8):
            rows = min(_WARPS * 32 // lanes, 1 << (height - 1).bit_length())
            if lanes > 2 * ceil_div(len(weights[2]) // 2, columns) and rows * lanes >= 32:
                tiles.append(Tile(columns, lanes, rows, rows * lanes // 32, registers))
    return tiles


@lru_cache(maxsize=1024)
def best_by_counts(shape: tuple[int, ...], weights: Weights, backward: bool, sums: int) -> Tile:
    """The tile that takes the fewest instructions, by the lanes that own no voxel and the columns per lane.

    Args:
        shape: of the images.
        weights: of the window.
        backward: for which of the two kernels.
        sums: how many quantities the kernel marches.
    """
    _, _, height, width = _extents(shape, weights)

    def cost(tile: Tile) -> float:
        lanes = tile.along_x(width, len(weights[2]) // 2) * tile.lanes * tile.columns / width
        rows = ceil_div(height, tile.rows) * tile.rows / height
        return lanes * rows * (_COST_OF_FOUR_COLUMNS if tile.columns == 4 else 1.0)

    return min(tiles_by_counts(weights, height, backward=backward, sums=sums), key=cost)


def tiles_to_measure() -> list[Tile]:
    """The tiles that may be the fastest on some GPU, beside the one by counts."""
    return [
        Tile(columns, 32, rows, rows, registers)
        for columns in (2, 4)
        for rows in (4, 8, 2)
        for registers in (None, 128, 168)
    ]


def make_plan(
    shape: Sequence[int],
    weights: Weights,
    tile: Tile,
    flags: Mapping[str, Any],
    device: torch.device,
    registers: Callable[[Mapping[str, Any]], int | None],
) -> Plan:
    """The launch of one of the two kernels.

    Args:
        shape: of the images, (B, C, spatial...).
        weights: of the window.
        tile: of a program.
        flags: the kernel's constants that do not follow from shape, window and tile.
        device: of the images.
        registers: says how many registers per thread the kernel takes, by its constants; None where nobody knows.
    """
    volumes, depth, height, width = _extents(shape, weights)
    halos = [len(row) // 2 for row in weights]
    map_pitch = _map_pitch(width)
    names = [None if set(row) == {1.0} else row for row in weights]
    constants: dict[str, Any] = {
        "W": width,
        "PITCH": ceil_div(width, tile.columns) * tile.columns,
        "MAP_PITCH": map_pitch,
        **dict(zip(("HALO_Z", "HALO_Y", "HALO_X"), halos, strict=True)),
        **dict(zip(("WEIGHTS_Z", "WEIGHTS_Y", "WEIGHTS_X"), names, strict=True)),
        "WIDE": height * 5 * map_pitch >= 2**31,
        "WHOLE": tile.whole(width),
        "TX": tile.columns,
        "BY": tile.rows,
        "BG": tile.lanes,
        "num_warps": tile.warps,
        **flags,
        **OPTIONS,
    }
    if tile.registers is not None and torch.version.hip is None:
        constants["maxnreg"] = tile.registers
    y_tiles, x_tiles = ceil_div(height, tile.rows), tile.along_x(width, halos[2])
    columns = volumes * y_tiles * x_tiles
    chunk = _chunk(depth, halos[0], columns, _slots(device, tile, registers(constants)))
    z_chunks = ceil_div(depth, chunk)
    numbers = (depth, height, y_tiles, x_tiles, z_chunks, chunk)
    return Plan(columns * z_chunks, constants["PITCH"], numbers, constants)


def registers_of(kernel: Any, arguments: Sequence[Any], constants: Mapping[str, Any]) -> int | None:
    """How many registers per thread a kernel takes on the current GPU. Compiles it, as its first launch would.

    Args:
        kernel: the Triton function.
        arguments: its positional arguments, with dtypes for tensors: all of them count as aligned, so that the answer,
            and with it the plan, does not depend on which tensors come first.
        constants: its keyword arguments.
    """
    if torch.version.hip is not None:
        return None  # registers are shared out in another way there
    compiled = kernel.warmup(*arguments, grid=(1,), **constants)
    _ = compiled.run  # loads the kernel, which is when the driver says what it takes
    return int(compiled.n_regs)


def programs_per_multiprocessor(registers: int, warps: int, most_threads: int) -> int:
    """How many programs a multiprocessor holds at once.

    Args:
        registers: per thread.
        warps: per program.
        most_threads: that a multiprocessor holds.
    """
    per_warp = ceil_div(registers * 32, _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    fitting_warps = min(_PARTITIONS * (_REGISTERS_PER_PARTITION // per_warp), most_threads // 32)
    return max(1, fitting_warps // warps)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _slots(device: torch.device, tile: Tile, registers: int | None) -> int:
    """How many programs run at once."""
    each = _USUAL_PROGRAMS
    if registers is not None:
        most_threads = torch.cuda.get_device_properties(device).max_threads_per_multi_processor
        each = programs_per_multiprocessor(registers, tile.warps, most_threads)
    return each * _multiprocessors(device)


def _chunk(depth: int, halo: int, columns: int, slots: int) -> int:
    """How many planes a program takes, out of those that finish first by the number of planes marched.

    Each chunk marches its halos again, but more of them fill more of the slots that programs run in at once.
    """
    best = min(range(1, depth + 1), key=lambda n: (ceil_div(columns * n, slots) * (ceil_div(depth, n) + 2 * halo), n))
    return ceil_div(depth, best)
