"""MIND-SSC in Triton: the kernels of the descriptor, which its loss shares, and how they go through a volume.

A volume is taken in slabs of planes, so that no channel is kept for more than a slab:

1. ``sum_z`` sums the squared differences of all pairs along z, straight from the image.
2. The rows kernel of :mod:`usreg_kernels.ops.gaussian_smooth.triton` averages along y.
3. ``add_variances``, ``write_descriptor`` and ``write_slopes`` sum along x, which gives the distances D, and go on from
   there: to the mean of V (a turn through all slabs that comes first, as V is limited by it), the descriptor, or the
   slope of a result by each distance.
4. For a gradient, the adjoint filters average the slopes along x and y. ``pull`` sums them along z, and multiplies them
   by the differences: what each voxel pulls at its neighbours. ``gather`` adds up, for each voxel, the pulls at it.

Nothing is ever subtracted from a sum, and each voxel's sums have one order, so that the same input gives the same bits.
Arithmetic is float32: an image whose squared differences overflow it is NaN.

The maps of a slab are (volumes, H, planes, K, W) with K pairs, so that the filter along y takes long rows: those of all
planes and maps. An image of two axes is a volume with one row per plane: its y is z here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.gaussian_smooth.triton import BORDER, filter_axis
from usreg_kernels.ops.mind_ssc.pairs import pairs
from usreg_kernels.ops.mind_ssc.reference import LIMITS, descriptor_like
from usreg_kernels.ops.triton_backend import OPTIONS, device_guard
from usreg_kernels.ops.triton_fields import load_real, locate

BLOCK = 128  # voxels per program
WORKSPACE = 192 << 20
"""Bytes of a slab's maps, where that is planes enough."""

LOWER, UPPER = (tl.constexpr(limit) for limit in LIMITS)


# ---- kernels ---------------------------------------------------------------------------------------------------------


@triton.jit
def _clamped(position, size):
    return tl.minimum(tl.maximum(position, 0), size - 1)


@triton.jit
def _differences(plane_0, z, y, x, D, H: tl.constexpr, W: tl.constexpr, dilation, inside, DIMS: tl.constexpr):
    """The differences of the neighbours of voxels, by pair. plane_0: the volume; z, y, x lie inside."""
    row = y * W + x
    here = plane_0 + z.to(tl.int64) * (H * W)
    before_z = load_real(plane_0 + _clamped(z - dilation, D).to(tl.int64) * (H * W) + row, inside)
    after_z = load_real(plane_0 + _clamped(z + dilation, D).to(tl.int64) * (H * W) + row, inside)
    before_x = load_real(here + (row - x + _clamped(x - dilation, W)), inside)
    after_x = load_real(here + (row - x + _clamped(x + dilation, W)), inside)
    neighbours = (before_z, after_z, before_x, after_x)
    if DIMS == 3:
        before_y = load_real(here + (_clamped(y - dilation, H) * W + x), inside)
        after_y = load_real(here + (_clamped(y + dilation, H) * W + x), inside)
        neighbours = (before_z, after_z, before_y, after_y, before_x, after_x)
    found = ()
    for first in tl.static_range(DIMS - 1):
        for second in tl.static_range(first + 1, DIMS):
            for p in tl.static_range(2):
                for q in tl.static_range(2):
                    found = found + (neighbours[2 * first + p] - neighbours[2 * second + q],)
    return found


@triton.jit
def _zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros((BLOCK,), tl.float32),)
    return found


@triton.jit
def maps_at(pieces, z, y, x, planes, H: tl.constexpr, W: tl.constexpr, MAPS: tl.constexpr):
    """Where this program's maps begin, and where in them the first of voxels of these planes lies."""
    start = (tl.program_id(0) // pieces).to(tl.int64) * planes * (H * W * MAPS)
    return start, (y * planes + z) * (MAPS * W) + x


@triton.jit
def sum_z(
    image, sums, pieces, planes, H: tl.constexpr, W: tl.constexpr, D, first_volume, first_plane, radius, dilation,
    DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums along z of the squared differences, by pair, for a slab's planes from first_plane on."""
    PAIRS: tl.constexpr = 2 * DIMS * (DIMS - 1)
    _, _, _, inside, z, y, x = locate(pieces, planes, H, W, WIDE, BLOCK)
    start, at = maps_at(pieces, z, y, x, planes, H, W, PAIRS)
    volume = (first_volume + tl.program_id(0) // pieces).to(tl.int64)
    totals = _zeros(PAIRS, BLOCK)
    for step in range(-radius, radius + 1):
        plane = _clamped(first_plane + z + step, D)
        differences = _differences(image + volume * D * (H * W), plane, y, x, D, H, W, dilation, inside, DIMS)
        added = ()
        for k in tl.static_range(PAIRS):
            added = added + (totals[k] + differences[k] * differences[k],)
        totals = added
    for k in tl.static_range(PAIRS):
        tl.store(sums + start + (at + k * W), totals[k], mask=inside)


@triton.jit
def distances(
    sums, pieces, z, y, x, planes, H: tl.constexpr, W: tl.constexpr, radius, scale, inside,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """D of this program's voxels, by pair, from the sums along z and y."""
    start, at = maps_at(pieces, z, y, x, planes, H, W, PAIRS)
    totals = _zeros(PAIRS, BLOCK)
    for step in range(-radius, radius + 1):
        here = sums + start + (at - x + _clamped(x + step, W))
        added = ()
        for k in tl.static_range(PAIRS):
            added = added + (totals[k] + tl.load(here + k * W, mask=inside, other=0.0),)
        totals = added
    found = ()
    for k in tl.static_range(PAIRS):
        found = found + (totals[k] * scale,)
    return found


@triton.jit
def _excesses(found, PAIRS: tl.constexpr):
    """E of voxels, by pair; V before it is limited; which pair is lowest, the first of several."""
    lowest = found[0]
    which = tl.zeros_like(lowest).to(tl.int32)
    for k in tl.static_range(1, PAIRS):
        which = tl.where(found[k] < lowest, k, which)
        lowest = tl.where(found[k] < lowest, found[k], lowest)
    excesses = ()
    variance = tl.zeros_like(lowest)
    for k in tl.static_range(PAIRS):
        excesses = excesses + (found[k] - lowest,)
        variance += found[k] - lowest
    return excesses, variance / PAIRS, which


@triton.jit
def describe(found, mean, PAIRS: tl.constexpr):
    """From D of voxels: the descriptor and E, by pair; 1 / V; whether V is within its limits; the lowest pair."""
    excesses, variance, which = _excesses(found, PAIRS)
    lower = LOWER * mean
    upper = UPPER * mean
    is_free = (variance >= lower) & (variance <= upper)
    limited = tl.where(is_free, variance, tl.where(variance < lower, lower, upper)) + 0.0 * mean
    inverse = 1.0 / tl.where(limited == 0.0, 1.0, limited)
    values = ()
    for k in tl.static_range(PAIRS):
        values = values + (tl.exp(-excesses[k] * inverse),)
    return values, excesses, inverse, is_free, which


@triton.jit
def store_slopes(
    slopes, incoming, values, excesses, inverse, is_free, which, sign, inside, W: tl.constexpr, PAIRS: tl.constexpr
):
    """Write the slope of a result by each distance, from its slope by the descriptor: sign times incoming."""
    by_variance = tl.zeros_like(inverse)
    towards = ()
    for k in tl.static_range(PAIRS):
        towards = towards + (sign * incoming[k] * values[k] * inverse,)
        by_variance += sign * incoming[k] * values[k] * inverse * excesses[k]
    by_variance = tl.where(is_free, by_variance * inverse / PAIRS, 0.0)
    total = tl.zeros_like(inverse)
    for k in tl.static_range(PAIRS):
        total += by_variance - towards[k]
    for k in tl.static_range(PAIRS):
        slope = by_variance - towards[k] - tl.where(which == k, total, 0.0)
        tl.store(slopes + k * W, slope, mask=inside)


@triton.jit
def add_variances(
    sums, partials, pieces, planes, H: tl.constexpr, W: tl.constexpr, radius, scale, stride,
    DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of V over this program's voxels. stride: from the partial sums of a volume to those of the next."""
    PAIRS: tl.constexpr = 2 * DIMS * (DIMS - 1)
    _, _, _, inside, z, y, x = locate(pieces, planes, H, W, WIDE, BLOCK)
    found = distances(sums, pieces, z, y, x, planes, H, W, radius, scale, inside, PAIRS, BLOCK)
    _, variance, _ = _excesses(found, PAIRS)
    at = (tl.program_id(0) // pieces).to(tl.int64) * stride + tl.program_id(0) % pieces
    tl.store(partials + at, tl.sum(tl.where(inside, variance, 0.0)))


@triton.jit
def average(partials, means, count, voxels, BLOCK: tl.constexpr):
    """The mean of V of this program's volume, from its partial sums, in float64 and in one order."""
    start = tl.program_id(0).to(tl.int64) * count
    index = tl.arange(0, BLOCK)
    totals = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, count, BLOCK):
        inside = begin + index < count
        totals += tl.load(partials + start + begin + index, mask=inside, other=0.0).to(tl.float64)
    tl.store(means + tl.program_id(0), (tl.sum(totals) / voxels).to(tl.float32))


@triton.jit
def write_descriptor(
    sums, means, descriptor, pieces, planes, H: tl.constexpr, W: tl.constexpr, D, first_volume, first_plane,
    radius, scale, DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The descriptor of a slab."""
    PAIRS: tl.constexpr = 2 * DIMS * (DIMS - 1)
    _, _, index, inside, z, y, x = locate(pieces, planes, H, W, WIDE, BLOCK)
    volume = (first_volume + tl.program_id(0) // pieces).to(tl.int64)
    found = distances(sums, pieces, z, y, x, planes, H, W, radius, scale, inside, PAIRS, BLOCK)
    values, _, _, _, _ = describe(found, tl.load(means + volume), PAIRS)
    for k in tl.static_range(PAIRS):
        channel = descriptor + ((volume * PAIRS + k) * D + first_plane) * (H * W)
        tl.store(channel + index, values[k], mask=inside)


@triton.jit
def write_slopes(
    sums, means, grad_output, slopes, pieces, planes, H: tl.constexpr, W: tl.constexpr, D, first_volume, first_plane,
    radius, scale, DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The slopes by each distance in a slab, from those by the descriptor."""
    PAIRS: tl.constexpr = 2 * DIMS * (DIMS - 1)
    _, _, index, inside, z, y, x = locate(pieces, planes, H, W, WIDE, BLOCK)
    volume = (first_volume + tl.program_id(0) // pieces).to(tl.int64)
    found = distances(sums, pieces, z, y, x, planes, H, W, radius, scale, inside, PAIRS, BLOCK)
    values, excesses, inverse, is_free, which = describe(found, tl.load(means + volume), PAIRS)
    incoming = ()
    for k in tl.static_range(PAIRS):
        channel = grad_output + ((volume * PAIRS + k) * D + first_plane) * (H * W)
        incoming = incoming + (tl.load(channel + index, mask=inside, other=0.0),)
    start, at = maps_at(pieces, z, y, x, planes, H, W, PAIRS)
    store_slopes(
        slopes + start + at, incoming, values, excesses, inverse, is_free, which, 1.0, inside, W, PAIRS
    )  # fmt: skip


@triton.jit
def pull(
    image, slopes, pulls, pieces, planes, H: tl.constexpr, W: tl.constexpr, D, first_volume, first_plane,
    slope_planes, first_slope_plane, radius, dilation, scale,
    DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each voxel of a slab pulls at its neighbours, by neighbour, from slopes averaged along x and y.

    scale: what is left to multiply: the 2 of a square, over the planes of a window.
    """
    PAIRS: tl.constexpr = 2 * DIMS * (DIMS - 1)
    SIDES: tl.constexpr = 2 * DIMS
    _, _, _, inside, z, y, x = locate(pieces, planes, H, W, WIDE, BLOCK)
    to, at = maps_at(pieces, z, y, x, planes, H, W, SIDES)
    z += first_plane
    start, here_at = maps_at(pieces, z - first_slope_plane, y, x, slope_planes, H, W, PAIRS)
    totals = _zeros(PAIRS, BLOCK)
    for step in range(-radius, radius + 1):
        plane = z + step
        exists = inside & (plane >= 0) & (plane < D)
        # A voxel at an end is also what the windows see beyond it.
        count = 1 + tl.where(z == 0, radius - plane, 0) + tl.where(z == D - 1, radius - (D - 1 - plane), 0)
        weight = count.to(tl.float32)
        here = slopes + start + (here_at + step * (PAIRS * W))
        added = ()
        for k in tl.static_range(PAIRS):
            added = added + (totals[k] + weight * tl.load(here + k * W, mask=exists, other=0.0),)
        totals = added
    volume = (first_volume + tl.program_id(0) // pieces).to(tl.int64)
    differences = _differences(image + volume * D * (H * W), z, y, x, D, H, W, dilation, inside, DIMS)
    products = ()
    for k in tl.static_range(PAIRS):
        products = products + (totals[k] * differences[k] * scale,)
    for axis in tl.static_range(DIMS):
        for side in tl.static_range(2):
            total = tl.zeros((BLOCK,), tl.float32)
            for other in tl.static_range(DIMS):
                for o in tl.static_range(2):
                    if axis < other:
                        total += products[4 * (axis + other - 1) + 2 * side + o]
                    elif axis > other:
                        total -= products[4 * (axis + other - 1) + 2 * o + side]
            tl.store(pulls + to + (at + (2 * axis + side) * W), total, mask=inside)


@triton.jit
def _pulled_along(
    pulls, position, size, stride, dilation, inside, FIRST: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr
):
    """The pulls at voxels of those whose neighbours along an axis they are; at an end, of all that see it beyond.

    pulls: the voxels' own places in the first map. FIRST: the map of pulls at neighbours before; the next one is that
    of pulls at those after.
    """
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(dilation + 1):
        ahead = dilation - step
        exists = inside & (position + ahead < size) & ((step == 0) | (position == 0))
        total += tl.load(pulls + (ahead * stride + FIRST * W), mask=exists, other=0.0)
        exists = inside & (position >= ahead) & ((step == 0) | (position == size - 1))
        total += tl.load(pulls + ((FIRST + 1) * W - ahead * stride), mask=exists, other=0.0)
    return total


@triton.jit
def gather(
    pulls, gradient, pieces, planes, H: tl.constexpr, W: tl.constexpr, D, first_volume, first_plane,
    pull_planes, first_pull_plane, dilation, DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a slab's voxels, from the pulls of the voxels around them."""
    SIDES: tl.constexpr = 2 * DIMS
    _, _, index, inside, z, y, x = locate(pieces, planes, H, W, WIDE, BLOCK)
    z += first_plane
    start, at = maps_at(pieces, z - first_pull_plane, y, x, pull_planes, H, W, SIDES)
    here = pulls + start + at
    total = _pulled_along(here, z, D, W * SIDES, dilation, inside, 0, W, BLOCK)
    if DIMS == 3:
        total += _pulled_along(
            here, y, H, (tl.zeros((), tl.int64) + pull_planes) * (W * SIDES), dilation, inside, 2, W, BLOCK
        )
    total += _pulled_along(here, x, W, 1, dilation, inside, SIDES - 2, W, BLOCK)
    volume = (first_volume + tl.program_id(0) // pieces).to(tl.int64)
    target = gradient + (volume * D + first_plane) * (H * W) + index
    tl.store(target, total.to(gradient.dtype.element_ty), mask=inside)


# ---- slabs -----------------------------------------------------------------------------------------------------------


class Planes(NamedTuple):
    """A range of planes of a few volumes that follow on each other."""

    volume: int
    volumes: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Planes per volume."""
        return self.end - self.begin


class Volumes:
    """The volumes of images (B, C, spatial...), and how kernels go through them.

    Attributes:
        sizes: D, H, W.
        count: how many there are.
        pairs: maps per voxel.
    """

    def __init__(self, image: torch.Tensor, radius: int, dilation: int) -> None:
        self.dims = image.ndim - 2
        self.sizes = tuple(image.shape[2:]) if self.dims == 3 else (image.shape[2], 1, image.shape[3])
        self.count = image.shape[0] * image.shape[1]
        self.pairs = len(pairs(self.dims))
        self.radius, self.dilation = radius, dilation
        self.image = image

    @property
    def plane(self) -> int:
        """Voxels of a plane."""
        return self.sizes[1] * self.sizes[2]

    @property
    def filters_y(self) -> bool:
        """Whether windows reach along y."""
        return self.dims == 3 and self.radius > 0

    @property
    def scale(self) -> float:
        """What makes a mean of a sum along z and x."""
        return 1.0 / (2 * self.radius + 1) ** 2

    def widened(self, planes: Planes, reach: int) -> Planes:
        """With the planes around it."""
        return planes._replace(begin=max(planes.begin - reach, 0), end=min(planes.end + reach, self.sizes[0]))

    def slabs(self, buffers: int, reach: int) -> list[Planes]:
        """Slabs whose maps, in so many buffers, fit the workspace along with those of the planes around them."""
        depth = self.sizes[0]
        most = WORKSPACE // (4 * buffers * self.pairs * self.plane)
        if depth <= most:
            together = most // depth
            return [Planes(v, min(together, self.count - v), 0, depth) for v in range(0, self.count, together)]
        parts = triton.cdiv(depth, max(most - 2 * reach, 2 * reach, 1))
        ends = [depth * part // parts for part in range(parts + 1)]
        return [Planes(v, 1, a, b) for v in range(self.count) for a, b in pairwise(ends)]

    def buffers(self, slabs: list[Planes], count: int, reach: int = 0) -> list[torch.Tensor]:
        """Memory for the maps of any slab with the planes around it."""
        planes = max(slab.volumes * self.widened(slab, reach).size for slab in slabs)
        size = planes * self.plane * self.pairs
        return [self.image.new_empty(size, dtype=torch.float32) for _ in range(count)]

    def programs(self, planes: Planes) -> int:
        """How many programs a volume's planes take."""
        return triton.cdiv(planes.size * self.plane, BLOCK)

    def run(self, kernel: Any, tensors: list[Any], planes: Planes, *numbers: Any, **constants: Any) -> None:
        """``kernel(*tensors, pieces, planes, H, W, *numbers, DIMS, WIDE, BLOCK, **constants)``."""
        pieces = self.programs(planes)
        wide = (
            self.widened(planes, self.slopes_reach).size * self.plane * self.pairs >= 2**31
        )  # also slopes that it reads
        kernel[(planes.volumes * pieces,)](
            *tensors, pieces, planes.size, *self.sizes[1:], *numbers, DIMS=self.dims, WIDE=wide, BLOCK=BLOCK,
            **constants, **OPTIONS,
        )  # fmt: skip

    def _filter(self, source: torch.Tensor, target: torch.Tensor, planes: Planes, axis: str, adjoint: bool) -> None:
        """Average maps along an axis, or the adjoint of that."""
        _, height, width = self.sizes
        count = planes.volumes * height * planes.size * self.pairs * width
        shape = (planes.volumes, height, -1) if axis == "y" else (-1, width)
        first, second = (tensor[:count].view(shape) for tensor in (source, target))
        weights = (1.0 / (2 * self.radius + 1),) * (self.radius + 1)
        filter_axis(first, second, 1, weights, BORDER.value, adjoint)

    def sum_z_y(self, image: torch.Tensor, planes: Planes, spare: torch.Tensor, sums: torch.Tensor) -> None:
        """Fill sums with the squared differences, added up along z and averaged along y."""
        first = spare if self.filters_y else sums
        numbers = (self.sizes[0], planes.volume, planes.begin, self.radius, self.dilation)
        self.run(sum_z, [image, first], planes, *numbers)
        if self.filters_y:
            self._filter(spare, sums, planes, "y", adjoint=False)

    def mean_variances(self, image: torch.Tensor) -> torch.Tensor:
        """The mean of V of each volume, float32."""
        slabs = self.slabs(2, 0)
        spare, sums = self.buffers(slabs, 2)
        pieces = [self.programs(slab) for slab in slabs if slab.volume == 0]
        partials = image.new_empty((self.count, sum(pieces)), dtype=torch.float32)
        first = 0
        for slab in slabs:
            first = 0 if slab.begin == 0 else first
            self.sum_z_y(image, slab, spare, sums)
            into = partials[slab.volume :, first:]
            self.run(add_variances, [sums, into], slab, self.radius, self.scale, partials.shape[1])
            first += self.programs(slab)
        means = image.new_empty(self.count, dtype=torch.float32)
        voxels = self.sizes[0] * self.plane
        average[(self.count,)](partials, means, partials.shape[1], voxels, BLOCK=1024, **OPTIONS)
        return means

    @property
    def slopes_reach(self) -> int:
        """How far beyond a slab its gradient needs slopes."""
        return self.radius + self.dilation

    def write_gradient(
        self, image: torch.Tensor, slopes: torch.Tensor, spare: torch.Tensor, slab: Planes, gradient: torch.Tensor
    ) -> None:
        """Write the gradient of a slab, from the slopes of the slab and the planes around it."""
        wide = self.widened(slab, self.slopes_reach)
        if self.radius > 0:
            self._filter(slopes, spare, wide, "x", adjoint=True)
            slopes, spare = spare, slopes
        if self.filters_y:
            self._filter(slopes, spare, wide, "y", adjoint=True)
            slopes, spare = spare, slopes
        near = self.widened(slab, self.dilation)
        depth, scale = self.sizes[0], 2.0 / (2 * self.radius + 1)
        numbers = (depth, slab.volume, near.begin, wide.size, wide.begin, self.radius, self.dilation, scale)
        self.run(pull, [image, slopes, spare], near, *numbers)
        numbers = (depth, slab.volume, slab.begin, near.size, near.begin, self.dilation)
        self.run(gather, [spare, gradient], slab, *numbers)


# ---- the backend -----------------------------------------------------------------------------------------------------


def forward(
    image: torch.Tensor, *, needs_grad: list[bool], radius: int, dilation: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The descriptor; nothing is saved."""
    descriptor = descriptor_like(image)
    if image.numel() == 0:
        return descriptor, []
    source = image.contiguous()
    volumes = Volumes(source, radius, dilation)
    with device_guard(image):
        means = volumes.mean_variances(source)
        slabs = volumes.slabs(2, 0)
        spare, sums = volumes.buffers(slabs, 2)
        for slab in slabs:
            volumes.sum_z_y(source, slab, spare, sums)
            numbers = (volumes.sizes[0], slab.volume, slab.begin, radius, volumes.scale)
            volumes.run(write_descriptor, [sums, means, descriptor], slab, *numbers)
    return descriptor, []


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    image: torch.Tensor,
    *,
    needs_grad: list[bool],
    radius: int,
    dilation: int,
) -> list[torch.Tensor]:
    """The gradient of the image, if it is needed."""
    if not needs_grad[0]:
        return []
    source, incoming = image.contiguous(), grad_output.contiguous()
    gradient = torch.empty_like(source)
    if image.numel() == 0:
        return [gradient]
    volumes = Volumes(source, radius, dilation)
    reach = volumes.slopes_reach
    with device_guard(image):
        means = volumes.mean_variances(source)
        slabs = volumes.slabs(2, reach)
        spare, sums = volumes.buffers(slabs, 2, reach)
        for slab in slabs:
            wide = volumes.widened(slab, reach)
            volumes.sum_z_y(source, wide, spare, sums)
            numbers = (volumes.sizes[0], wide.volume, wide.begin, radius, volumes.scale)
            volumes.run(write_slopes, [sums, means, incoming, spare], wide, *numbers)
            volumes.write_gradient(source, spare, sums, slab, gradient)
    return [gradient]
