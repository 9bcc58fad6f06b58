"""Calls of LNCC that reach every branch of the march that the Triton kernels make, on volumes of a few hundred voxels.

The tests run them in Triton's interpreter, and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import torch

import usreg_kernels as uk
from usreg_kernels.ops.lncc import triton_plan
from usreg_kernels.ops.lncc.triton_plan import Tile


@dataclass(frozen=True)
class Feature:
    """A call of LNCC with its gradients.

    Attributes:
        shape: (B, C, spatial...).
        arguments: of ``lncc_loss``, but for the mask.
        mask: channels of the mask; None for no mask.
        dtype: of the images.
        needs: which gradients are asked for: "p", "t" or both.
        incoming: ``grad_output`` of a scalar loss; a map loss gets noise.
        background: whether a part of both images is exactly 0.
        tile: None for the tile that the product chooses.
        chunk: planes per program; None for the product's choice.
    """

    shape: tuple[int, ...]
    arguments: dict[str, Any]
    mask: int | None = None
    dtype: torch.dtype = torch.float32
    needs: str = "pt"
    incoming: float = 1.0
    background: bool = False
    tile: Tile | None = None
    chunk: int | None = None

    def tensors(self) -> list[torch.Tensor]:
        """pred and target, correlated noise; and the mask, if any."""
        generator = torch.Generator().manual_seed(3)
        pred = torch.rand(self.shape, generator=generator)
        target = 0.6 * pred + 0.4 * torch.rand(self.shape, generator=generator)
        if self.background:
            for image in (pred, target):
                image[..., : self.shape[-1] // 2] = 0.0
        tensors = [pred.to(self.dtype), target.to(self.dtype)]
        if self.mask is not None:
            tensors.append(torch.rand(self.shape[0], self.mask, *self.shape[2:], generator=generator))
        return tensors

    def loss_and_gradients(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The loss, and the gradients that are asked for."""
        pred, target = (t.detach().requires_grad_(n in self.needs) for t, n in zip(tensors[:2], "pt", strict=True))
        loss = uk.lncc_loss(pred, target, mask=tensors[2] if self.mask is not None else None, **self.arguments)
        incoming = torch.full_like(loss, self.incoming)
        if loss.ndim:
            incoming *= torch.rand(loss.shape, generator=torch.Generator().manual_seed(4)).to(loss)
        leaves = [image for image in (pred, target) if image.requires_grad]
        return [loss.detach(), *torch.autograd.grad(loss, leaves, incoming)]

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """With the feature's tile and chunk in place of the product's choice."""
        from usreg_kernels.ops.lncc import triton

        with pytest.MonkeyPatch.context() as patch:
            if self.tile is not None:
                patch.setattr(triton, "best_by_counts", mock.Mock(return_value=self.tile))
            if self.chunk is not None:
                patch.setattr(triton_plan, "_chunk", mock.Mock(return_value=self.chunk))
            self._forget_plans()
            yield
        self._forget_plans()

    @staticmethod
    def _forget_plans() -> None:
        from usreg_kernels.ops.lncc import triton

        triton._plan_correlate.cache_clear()
        triton._plan_propagate.cache_clear()


def kernel(size: int | tuple[int, ...], kind: str = "rectangular", **arguments: Any) -> dict[str, Any]:
    return {"kernel_size": size, "kernel_type": kind, **arguments}


_SMALL = (1, 1, 4, 5, 6)

FEATURES = {
    # every window, and shapes below it
    **{f"window {size}": Feature(_SMALL, kernel(size)) for size in (1, 3, 5, 7, 9, 11, 13, 15)},
    **{f"triangular {size}": Feature(_SMALL, kernel(size, "triangular"), needs="p") for size in (3, 5, 9)},
    **{f"gaussian {size}": Feature(_SMALL, kernel(size, "gaussian"), needs="t") for size in (3, 7, 15)},
    "one voxel per axis": Feature((2, 1, 1, 1, 4), kernel(5)),
    "width 1": Feature((1, 1, 5, 6, 1), kernel(3)),
    "depth 1": Feature((1, 2, 1, 6, 7), kernel(5)),
    # windows that join no planes, or no rows
    "size per axis": Feature((1, 2, 5, 4, 6), kernel((7, 3, 5))),
    "planes apart": Feature((1, 2, 3, 4, 9), kernel((1, 5, 3))),
    "rows apart": Feature((1, 2, 3, 4, 9), kernel((1, 1, 7))),
    "columns apart": Feature((1, 1, 7, 6, 4), kernel((5, 3, 1), "gaussian")),
    "2-D": Feature((2, 2, 9, 10), kernel(5), mask=1),
    "2-D wide": Feature((1, 1, 5, 75), kernel(9), needs="p"),
    "1-D": Feature((2, 3, 40), kernel(15), mask=1),
    "1-D long": Feature((1, 1, 300), kernel(15)),
    # reductions and masks
    "sum, a mask for all channels": Feature((2, 2, 3, 4, 6), kernel(3, reduction="sum"), mask=1),
    "mean, a mask per channel": Feature((2, 2, 3, 4, 6), kernel(3), mask=2, incoming=-3.0),
    "map": Feature((2, 1, 3, 4, 7), kernel(3, reduction="none")),
    "map, mask": Feature((1, 2, 4, 4, 6), kernel(5, "gaussian", reduction="none"), mask=1, needs="t"),
    "smoothing": Feature(_SMALL, kernel(5, smooth_nr=1e-2, smooth_dr=0.3), incoming=2.5),
    # tiles
    "two columns, no halo lanes": Feature((1, 1, 3, 9, 31), kernel(7), tile=Tile(2, 16, 8), needs="p"),
    "two columns, halo lanes": Feature((1, 1, 3, 9, 34), kernel(7), tile=Tile(2, 16, 8), needs="p"),
    "four columns, no halo lanes": Feature((1, 1, 3, 9, 32), kernel(7), tile=Tile(4, 8, 16), needs="p"),
    "four columns, halo lanes": Feature((1, 1, 3, 9, 37), kernel(7), tile=Tile(4, 8, 16), mask=1),
    "four columns, wide halo": Feature((1, 1, 2, 3, 70), kernel(11), tile=Tile(4, 16, 4, 2), needs="t"),
    "four columns, window inside a lane": Feature((1, 1, 3, 5, 20), kernel(3), tile=Tile(4, 16, 8)),
    "four columns, weighted": Feature((1, 1, 3, 5, 38), kernel(5, "gaussian"), tile=Tile(4, 8, 16)),
    "four columns, map": Feature((1, 1, 3, 4, 11), kernel(3, reduction="none"), tile=Tile(4, 16, 8), mask=1),
    "tile borders": Feature((1, 1, 3, 8, 26), kernel(5), tile=Tile(2, 16, 4, 2), needs="p"),
    # chunks of planes
    "chunks": Feature((1, 1, 9, 4, 6), kernel(5), chunk=3),
    "chunks below the halo": Feature((1, 1, 5, 4, 6), kernel(9), chunk=2, needs="p"),
    "a shorter last chunk": Feature((2, 1, 7, 4, 6), kernel(3), chunk=4, mask=1),
    # values
    "background": Feature((1, 1, 6, 6, 20), kernel(9), background=True),
    "background, small window": Feature((1, 1, 6, 6, 20), kernel(3), background=True),
    "float16": Feature(_SMALL, kernel(5), dtype=torch.float16, incoming=65536.0),
    "float16 map": Feature(_SMALL, kernel(5, reduction="none"), dtype=torch.float16, mask=1),
    "bfloat16": Feature((1, 1, 4, 5, 7), kernel(7), dtype=torch.bfloat16),
}


def assert_recomputing_gives_the_same_bits(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients from maps that backward computes again, and from saved maps."""
    module = import_module(f"usreg_kernels.ops.lncc.{backend}")
    feature = FEATURES["mean, a mask per channel"]
    with uk.use_backend(backend):  # type: ignore[arg-type]
        saved = feature.loss_and_gradients(feature.tensors())
        monkeypatch.setattr(module, "RECOMPUTE", True)
        recomputed = feature.loss_and_gradients(feature.tensors())
    assert all(torch.equal(one, other) for one, other in zip(saved, recomputed, strict=True))
