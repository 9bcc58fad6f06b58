r"""MIND-SSC in plain PyTorch: the oracle of every other backend.

For the pairs (p, q) of a voxel's neighbours at a distance of ``dilation`` along two different axes, numbered k::

    D_k(x)    = mean over the window of (I(. + p_k) - I(. + q_k))^2
    E_k(x)    = D_k(x) - min_k D_k(x)
    V(x)      = mean_k E_k(x), limited to [1e-3, 1e3] times its mean over the image
    MIND_k(x) = exp(-E_k(x) / V(x))

The image, and then the squared difference, is repeated at the border. The limits of V are constants for all
derivatives. Where V is 0, which is so only where the whole image is constant, MIND is 1. A NaN or an infinite value
makes all of its image's descriptor NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from usreg_kernels.ops.mind_ssc.pairs import pairs
from usreg_kernels.ops.operator import compute_dtype, loss_dtype

LIMITS = (1e-3, 1e3)
"""Of V, as multiples of its mean over the image."""


def descriptor_like(image: torch.Tensor, **params: Any) -> torch.Tensor:
    """An empty descriptor of an image (B, C, spatial...): (B, C K, spatial...) with K channels for each of its."""
    channels = image.shape[1] * len(pairs(image.ndim - 2))
    return image.new_empty((image.shape[0], channels, *image.shape[2:]), dtype=loss_dtype(image.dtype))


class Descriptor(NamedTuple):
    """What the gradient needs. Of an image (B, C, spatial...), in tensors (B, C, K or 1, spatial...) but for the first.

    Attributes:
        differences: K times (B, C, spatial...), I(. + p) - I(. + q).
        excess: E.
        variance: V, limited; 1 where it is 0.
        is_free: whether V lies within its limits.
        lowest: which channel has the smallest D, the first of several.
        values: the descriptor.
    """

    differences: list[torch.Tensor]
    excess: torch.Tensor
    variance: torch.Tensor
    is_free: torch.Tensor
    lowest: torch.Tensor
    values: torch.Tensor


def describe(image: torch.Tensor, radius: int, dilation: int) -> Descriptor:
    """The descriptor of an image (B, C, spatial...), which is in the dtype to compute in."""
    axes = range(2, image.ndim)
    neighbours = [_shifted(image, axis, step) for axis in axes for step in (-dilation, dilation)]
    differences = [neighbours[p] - neighbours[q] for p, q in pairs(len(axes))]
    distances = torch.stack([_window_mean(difference**2, radius) for difference in differences], dim=2)
    lowest = distances.argmin(dim=2, keepdim=True)
    excess = distances - distances.gather(2, lowest)
    variance = excess.mean(dim=2, keepdim=True)
    mean = variance.detach()
    for _ in axes:
        mean = mean.mean(dim=-1)  # an axis at a time: in an order that does not depend on threads
    mean = mean.reshape(*mean.shape, *[1] * len(axes))
    lower, upper = (limit * mean for limit in LIMITS)
    is_free = (variance >= lower) & (variance <= upper)
    limited = torch.where(is_free, variance, torch.where(variance < lower, lower, upper)) + 0.0 * mean
    limited = torch.where(limited == 0, 1.0, limited)
    return Descriptor(differences, excess, limited, is_free, lowest, torch.exp(-excess / limited))


def gradient(incoming: torch.Tensor, found: Descriptor, radius: int, dilation: int) -> torch.Tensor:
    """The gradient (B, C, spatial...) of the image, from that of its descriptor (B, C, K, spatial...)."""
    count = len(found.differences)
    towards = incoming * found.values / found.variance
    by_variance = (towards * found.excess).sum(dim=2, keepdim=True) / found.variance
    by_excess = torch.where(found.is_free, by_variance / count, 0.0) - towards
    channels = torch.arange(count, device=incoming.device).view(1, 1, -1, *[1] * (incoming.ndim - 3))
    by_distance = by_excess - torch.where(channels == found.lowest, by_excess.sum(dim=2, keepdim=True), 0.0)
    by_neighbour: list[torch.Tensor | None] = [None] * (2 * (incoming.ndim - 3))
    for k, (p, q) in enumerate(pairs(incoming.ndim - 3)):
        pull = 2.0 * _window_mean_adjoint(by_distance[:, :, k], radius) * found.differences[k]
        for neighbour, signed in ((p, pull), (q, -pull)):
            so_far = by_neighbour[neighbour]
            by_neighbour[neighbour] = signed if so_far is None else so_far + signed
    total = torch.zeros_like(found.differences[0])
    for neighbour, share in enumerate(by_neighbour):
        assert share is not None
        total = total + _shifted_adjoint(share, 2 + neighbour // 2, dilation if neighbour % 2 else -dilation)
    return total


def forward(image: torch.Tensor, *, radius: int, dilation: int) -> torch.Tensor:
    """The descriptor (B, C K, spatial...): those of the first channel, then those of the second, and so on."""
    found = describe(image.to(compute_dtype(image)), radius, dilation)
    return found.values.flatten(1, 2).to(loss_dtype(image.dtype))


def backward(
    grad_output: torch.Tensor, image: torch.Tensor, *, needs_grad: list[bool], radius: int, dilation: int
) -> list[torch.Tensor]:
    """The gradient of the image, if it is needed."""
    if not needs_grad[0]:
        return []
    found = describe(image.to(compute_dtype(image)), radius, dilation)
    incoming = grad_output.to(found.values.dtype).reshape(found.values.shape)
    return [gradient(incoming, found, radius, dilation).to(image.dtype)]


def _shifted(x: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """x(. + step) along an axis, with the edge repeated."""
    size = x.shape[axis]
    if size == 0:
        return x
    places = (torch.arange(size, device=x.device) + step).clamp(0, size - 1)
    return x.index_select(axis, places)


def _shifted_adjoint(y: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """The adjoint of :func:`_shifted`: each voxel gives what it has to the one that it was read from."""
    size = y.shape[axis]
    if size == 0:
        return y
    inside = max(size - abs(step), 0)
    before = size - inside
    after = [0, 0] * (y.ndim - 1 - axis)
    if step >= 0:
        moved = F.pad(y.narrow(axis, 0, inside), [*after, before, 0])
        edge = F.pad(y.narrow(axis, inside, before).sum(axis, keepdim=True), [*after, size - 1, 0])
    else:
        moved = F.pad(y.narrow(axis, before, inside), [*after, 0, before])
        edge = F.pad(y.narrow(axis, 0, before).sum(axis, keepdim=True), [*after, 0, size - 1])
    return moved + edge


def _window_mean(x: torch.Tensor, radius: int) -> torch.Tensor:
    """The mean over the window around each voxel of x (B, C, spatial...), with the edge repeated."""
    for axis in range(2, x.ndim):
        total = x
        for step in range(1, radius + 1):
            total = total + (_shifted(x, axis, -step) + _shifted(x, axis, step))
        x = total / (2 * radius + 1)
    return x


def _window_mean_adjoint(y: torch.Tensor, radius: int) -> torch.Tensor:
    for axis in range(2, y.ndim):
        total = y
        for step in range(1, radius + 1):
            total = total + (_shifted_adjoint(y, axis, -step) + _shifted_adjoint(y, axis, step))
        y = total / (2 * radius + 1)
    return y
