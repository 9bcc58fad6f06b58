"""How a call of the z-march of local normalised cross-correlation is cut into programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        """How many tiles a row takes, where lanes at a tile's ends may serve as halo alone."""
        if self.whole(width):
            return 1
        owned = self.lanes - 2 * ceil_div(halo, self.columns)
        return ceil_div(ceil_div(width, self.columns), owned)


@dataclass(frozen=True)
class Plan:
    """A launch: where the volumes' voxels lie, and which of them each program takes.

    Attributes:
        volumes: how many volumes of independent windows there are.
        programs: the grid.
        pitch: elements from row to row of images.
        runtime_arguments: of both kernels, from ``D`` to ``chunk``.
        constants: keyword arguments of both kernels, with the compiler's options.
    """

    volumes: int
    programs: int
    pitch: int
    runtime_arguments: tuple[int, ...]
    constants: Mapping[str, Any]


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


def tiles_by_counts(weights: Weights, height: int, *, backward: bool, sums: int) -> list[Tile]:
    """The tiles that suit a window: of 128 threads where there are rows enough for them, and lanes to match the width.

    Four columns per lane take an eighth to a fifth fewer instructions per voxel than two, and about 1.7 times the
    registers: they are left to windows that keep 128 or fewer, with which four programs fit a multiprocessor.
    """
    window = max(map(len, weights))
    box = all(set(row) == {1.0} for row in weights)
    all_maps = backward and sums == 5
    largest_with_four_columns = 5 if backward and box and not all_maps else 3
    largest_in_128_registers = 5 if all_maps else 7
    tiles = []
    for columns in (2, 4) if window <= largest_with_four_columns else (2,):
        registers = 128 if window <= largest_in_128_registers and columns == 2 else None
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
    """The tiles that may be the fastest on some GPU."""
    return [
        Tile(columns, 32, rows, rows, registers)
        for columns in (2, 4)
        for rows in (4, 8, 2)
        for registers in (None, 128, 168)
    ]


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def make_plan(image: torch.Tensor, weights: Weights, tile: Tile) -> Plan:
    """The launch for images (B, C, spatial...) like this one, with a window and a tile."""
    return _make_plan(tuple(image.shape), weights, tile, _multiprocessors(image.device))


@lru_cache(maxsize=1024)
def _make_plan(shape: tuple[int, ...], weights: Weights, tile: Tile, multiprocessors: int) -> Plan:
    volumes, depth, height, width = _extents(shape, weights)
    halos = [len(row) // 2 for row in weights]
    y_tiles, x_tiles = ceil_div(height, tile.rows), tile.along_x(width, halos[2])
    columns = volumes * y_tiles * x_tiles
    chunk = _chunk(depth, halos[0], columns, slots=4 * multiprocessors)
    z_chunks = ceil_div(depth, chunk)
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
        **OPTIONS,
    }
    if tile.registers is not None and torch.version.hip is None:
        constants["maxnreg"] = tile.registers
    return Plan(
        volumes, columns * z_chunks, constants["PITCH"], (depth, height, y_tiles, x_tiles, z_chunks, chunk), constants
    )


def _chunk(depth: int, halo: int, columns: int, slots: int) -> int:
    """How many planes a program takes, out of those that finish first by the number of planes marched.

    Chunks cost their halos anew, but fill more of the slots that programs run in at once.
    """
    best = min(range(1, depth + 1), key=lambda n: (ceil_div(columns * n, slots) * (ceil_div(depth, n) + 2 * halo), n))
    return ceil_div(depth, best)
