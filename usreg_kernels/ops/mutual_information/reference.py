r"""Mutual information of two images in plain PyTorch: the oracle of every other backend.

A voxel adds the outer product of two windows, one over the bins of each image, to the joint histogram of its batch
item, which holds all channels. With ``p`` the histogram over its sum, ``p_a`` and ``p_b`` its sums along an axis, and
``q = p_a p_b``::

    loss = -sum p log((p + smooth_nr) / (q + smooth_dr) + smooth_dr)       as in MONAI 1.6
    loss = -(H_a + H_b + smooth_nr) / (H_ab + smooth_dr)                    normalized, with H = -sum p log p

**Windows.** ``gaussian``: the bins' centres divide [0, 1], values outside count as 0 or 1, and both images have a
window ``exp(-(x - centre)^2 / (2 sigma^2))``, divided by its sum. ``b-spline``: two bins stay free at each end of the
range of an image's values in the whole batch; ``pred`` has a cubic B-spline and ``target`` a box of one bin, whose
derivative is 0. Places in units of bins are float64 in every backend, by the same operations: the box has steps.

A voxel whose mask is 0 is left out, whatever its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import total

MARGIN = 2
"""Bins at each end of the range that a cubic B-spline needs."""

_CHUNK = 1 << 15
"""Voxels of an item whose windows are in memory at once."""


def loss_like(pred: torch.Tensor, *others: object, reduction: str, **params: object) -> torch.Tensor:
    """An uninitialised loss: one value per batch item for ``none``, else a scalar."""
    return pred.new_empty(pred.shape[:1] if reduction == "none" else (), dtype=loss_dtype(pred.dtype))


class Places(NamedTuple):
    """Where the voxels of an image lie among the bins.

    Attributes:
        values: (B, N), the image; 0 where it is left out.
        at: (B, N), in units of bins, the first centre being 0.
        moves: (B, N), whether ``at`` follows the value.
        lowest, highest: scalars, the range of the values; None for fixed bins.
        per_value: bins per unit of intensity: a scalar, 0 where all values are the same.
    """

    values: torch.Tensor
    at: torch.Tensor
    moves: torch.Tensor
    lowest: torch.Tensor | None
    highest: torch.Tensor | None
    per_value: torch.Tensor


def forward(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    num_bins: int,
    kernel_type: str,
    normalized: bool,
    sigma_ratio: float,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
) -> torch.Tensor:
    """The negated mutual information of each item, reduced."""
    weights = _weights(mask, pred)
    a, b = (_places(image, weights, kernel_type, num_bins) for image in (pred, target))
    joint = _joint(a, b, weights, kernel_type, num_bins, sigma_ratio)
    values = _score(joint / _total(a, weights), normalized, smooth_nr, smooth_dr)
    if reduction != "none":
        values = values.mean() if reduction == "mean" else values.sum()
    return values.to(loss_dtype(pred.dtype))


def backward(
    grad_output: torch.Tensor,
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    num_bins: int,
    kernel_type: str,
    normalized: bool,
    sigma_ratio: float,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
) -> list[torch.Tensor]:
    """The exact gradients: a voxel's windows, and the derivative of one, on the derivative by the joint histogram."""
    weights = _weights(mask, pred)
    a, b = (_places(image, weights, kernel_type, num_bins) for image in (pred, target))
    joint = _joint(a, b, weights, kernel_type, num_bins, sigma_ratio)
    count = _total(a, weights)
    incoming = grad_output.to(joint.dtype).expand(pred.shape[0])
    if reduction == "mean":
        incoming = incoming / max(pred.shape[0], 1)
    table = slopes(joint / count, normalized, smooth_nr, smooth_dr) * incoming[:, None, None] / count
    first, second = _windows_of(kernel_type)
    gradients = []
    if needs_grad[0]:
        found = _by_place(a, b, table, (first, second), num_bins, sigma_ratio)
        gradients.append(_by_value(found, a, weights, num_bins).reshape(pred.shape).to(pred.dtype))
    if needs_grad[1]:
        if second == "box":
            gradients.append(torch.zeros_like(target))
        else:
            found = _by_place(b, a, table.transpose(1, 2), (second, first), num_bins, sigma_ratio)
            gradients.append(_by_value(found, b, weights, num_bins).reshape(target.shape).to(target.dtype))
    return gradients


def _weights(mask: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor | None:
    """The mask of an image (B, C, spatial...) as (B, N)."""
    return None if mask is None else _flat(mask.to(compute_dtype(image)).expand(image.shape))


def _flat(image: torch.Tensor) -> torch.Tensor:
    return image.reshape(image.shape[0], image.shape[1:].numel())


def _total(places: Places, weights: torch.Tensor | None) -> torch.Tensor:
    """(B, 1, 1), what a histogram is divided by: the number of voxels, or the sum of the mask (1 where that is 0)."""
    if weights is None:
        size = float(places.at.shape[1])
        return torch.full((places.at.shape[0], 1, 1), size, dtype=places.at.dtype, device=places.at.device)
    sums = [total(item) for item in weights]
    count = torch.stack(sums) if sums else weights.new_zeros(0)
    return torch.where(count == 0, 1.0, count)[:, None, None]


def _places(image: torch.Tensor, weights: torch.Tensor | None, kernel_type: str, num_bins: int) -> Places:
    values = _flat(image.to(compute_dtype(image)))
    if weights is not None:
        values = torch.where(weights != 0, values, 0.0)
    if kernel_type == "gaussian":
        bounded = torch.where(values.isfinite(), values, torch.nan).clamp(0.0, 1.0)
        moves = (values >= 0) & (values <= 1)
        return Places(values, bounded * (num_bins - 1), moves, None, None, values.new_tensor(float(num_bins - 1)))
    lowest, highest = _range(values, weights)
    length = highest - lowest
    bin_size = torch.where(length == 0, torch.inf, length / (num_bins - 2 * MARGIN))
    bin_size = torch.where(length.isfinite(), bin_size, torch.nan)
    unbounded = (values - lowest) / bin_size + MARGIN
    if weights is not None:
        unbounded = torch.where(weights != 0, unbounded, float(MARGIN))
    last = num_bins - MARGIN - 1
    moves = (unbounded >= MARGIN) & (unbounded <= last)
    return Places(values, unbounded.clamp(MARGIN, last), moves, lowest, highest, 1.0 / bin_size)


def _range(values: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest value that is not left out; 0 and 0 where there is none."""
    if values.numel() == 0:
        return values.new_zeros(()), values.new_zeros(())
    if weights is None:
        return values.amin(), values.amax()
    lowest = torch.where(weights != 0, values, torch.inf).amin()
    highest = torch.where(weights != 0, values, -torch.inf).amax()
    nothing = lowest > highest
    return torch.where(nothing, 0.0, lowest), torch.where(nothing, 0.0, highest)


def _windows_of(kernel_type: str) -> tuple[str, str]:
    """The windows of pred and target."""
    return ("gaussian", "gaussian") if kernel_type == "gaussian" else ("cubic", "box")


def _window(at: torch.Tensor, name: str, num_bins: int, sigma: float) -> torch.Tensor:
    """(B, n, bins), the weight of each bin for voxels at (B, n); sums to 1 over the bins. NaN stays NaN."""
    distance = (at[..., None] - _bins(at, num_bins)).abs()
    if name == "gaussian":
        return torch.softmax(-(distance**2) / (2.0 * sigma**2), dim=-1)
    if name == "box":  # half of a voxel between two bins goes to either
        return torch.where(distance > 0.5, 0.0, torch.where(distance == 0.5, 0.5, 1.0 + (distance - distance)))
    near = (4.0 - 6.0 * distance**2 + 3.0 * distance**3) / 6.0
    far = (2.0 - distance) ** 3 / 6.0
    return torch.where(distance >= 2.0, 0.0, torch.where(distance >= 1.0, far, near))


def _window_slope(at: torch.Tensor, name: str, num_bins: int, sigma: float) -> torch.Tensor:
    """(B, n, bins), the derivative of :func:`_window` by ``at``."""
    bins = _bins(at, num_bins)
    if name == "gaussian":
        weight = _window(at, name, num_bins, sigma)
        mean = (weight * bins).sum(-1, keepdim=True)
        return weight * (bins - mean) / sigma**2
    offset = at[..., None] - bins
    distance = offset.abs()
    near = offset * (1.5 * distance - 2.0)
    far = -0.5 * offset.sign() * (2.0 - distance) ** 2
    return torch.where(distance >= 2.0, 0.0, torch.where(distance >= 1.0, far, near))


def _bins(like: torch.Tensor, num_bins: int) -> torch.Tensor:
    return torch.arange(num_bins, dtype=like.dtype, device=like.device)


def _chunks(count: int) -> Iterator[slice]:
    """Ranges of voxels, one at least."""
    for start in range(0, max(count, 1), _CHUNK):
        yield slice(start, start + _CHUNK)


def _joint(
    a: Places, b: Places, weights: torch.Tensor | None, kernel_type: str, num_bins: int, sigma: float
) -> torch.Tensor:
    """(B, bins of pred, bins of target), the sum of the outer products of the windows."""
    first, second = _windows_of(kernel_type)
    joint = a.at.new_zeros(a.at.shape[0], num_bins, num_bins)
    for part in _chunks(a.at.shape[1]):
        window = _window(a.at[:, part], first, num_bins, sigma)
        if weights is not None:
            window = window * weights[:, part, None]
        joint = joint + torch.bmm(window.transpose(1, 2), _window(b.at[:, part], second, num_bins, sigma))
    return joint


def _score(p: torch.Tensor, normalized: bool, smooth_nr: float, smooth_dr: float) -> torch.Tensor:
    """(B,), the loss of joint distributions (B, bins, bins)."""
    p_a, p_b = p.sum(2, keepdim=True), p.sum(1, keepdim=True)
    if normalized:
        entropies = _entropy(p_a) + _entropy(p_b)
        return -(entropies + smooth_nr) / (_entropy(p) + smooth_dr)
    return -(p * torch.log((p + smooth_nr) / (p_a * p_b + smooth_dr) + smooth_dr)).sum((1, 2))


def _log(p: torch.Tensor) -> torch.Tensor:
    """The logarithm; 0 where p is 0, for ``0 log 0 = 0`` and its derivative. NaN stays NaN."""
    return torch.log(torch.where(p == 0, 1.0, p))


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """(B,), that of distributions (B, m, n)."""
    return -(p * _log(p)).sum((1, 2))


def slopes(p: torch.Tensor, normalized: bool, smooth_nr: float, smooth_dr: float) -> torch.Tensor:
    """(B, bins, bins), the derivative of the loss by each entry of the joint distribution, also through its sums."""
    p_a, p_b = p.sum(2, keepdim=True), p.sum(1, keepdim=True)
    if normalized:
        below = (_entropy(p) + smooth_dr)[:, None, None]
        ratio = (_entropy(p_a) + _entropy(p_b) + smooth_nr)[:, None, None] / below
        return (_entropy_slope(p) * ratio - _entropy_slope(p_a) - _entropy_slope(p_b)) / below
    below = p_a * p_b + smooth_dr
    ratio = (p + smooth_nr) / below
    inverse = 1.0 / (ratio + smooth_dr)
    own = torch.log(ratio + smooth_dr) + p * inverse / below
    by_product = p * inverse * ratio / below
    through_a = (by_product * p_b).sum(2, keepdim=True)
    through_b = (by_product * p_a).sum(1, keepdim=True)
    return through_a + through_b - own


def _entropy_slope(p: torch.Tensor) -> torch.Tensor:
    return torch.where(p == 0, 0.0, -_log(p) - 1.0)


def _by_place(
    own: Places, other: Places, table: torch.Tensor, windows: tuple[str, str], num_bins: int, sigma: float
) -> torch.Tensor:
    """(B, N), the derivative by ``own.at`` of an item's loss, with the table (B, bins of own, bins of the other)."""
    found = []
    for part in _chunks(own.at.shape[1]):
        looked_up = torch.bmm(_window(other.at[:, part], windows[1], num_bins, sigma), table.transpose(1, 2))
        found.append((_window_slope(own.at[:, part], windows[0], num_bins, sigma) * looked_up).sum(-1))
    return torch.cat(found, dim=1)


def _by_value(by_place: torch.Tensor, places: Places, weights: torch.Tensor | None, num_bins: int) -> torch.Tensor:
    """(B, N), the derivative by the values; those at the ends of the range share what comes through it."""
    if weights is not None:
        by_place = torch.where(weights != 0, by_place * weights, 0.0)
    by_place = torch.where(places.moves, by_place, torch.where(places.at.isnan(), torch.nan, 0.0))
    gradient = by_place * places.per_value
    if places.lowest is None or places.highest is None:
        return gradient
    along = (places.at - MARGIN) / (num_bins - 2 * MARGIN)  # from 0 to 1 between the ends of the range
    through = {"lowest": total(gradient * (along - 1.0)), "highest": -total(gradient * along)}
    for name, sum_through in through.items():
        is_there = places.values == getattr(places, name)
        if weights is not None:
            is_there = is_there & (weights != 0)
        gradient = gradient + torch.where(is_there, sum_through / is_there.sum().clamp(min=1), 0.0)
    return gradient
