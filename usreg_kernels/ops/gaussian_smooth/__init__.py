"""Smoothing of images and fields with a gaussian."""

from typing import Any

from usreg_kernels.backend import Tensors
from usreg_kernels.ops.gaussian_smooth import reference
from usreg_kernels.ops.gaussian_smooth.native import Native
from usreg_kernels.ops.gaussian_smooth.weights import LARGEST_UNROLLED, radius_of
from usreg_kernels.ops.operator import Op, same_shape_like
from usreg_kernels.ops.triton_backend import TritonBackend


class Triton(TritonBackend):
    """A pass over the image per axis."""

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """The weights are arguments of the kernels, whose loops over them are unrolled."""
        largest = max(radius_of(sigma, params["truncate"]) for sigma in params["sigma"])
        if largest > LARGEST_UNROLLED:
            return f"its filters reach up to {LARGEST_UNROLLED} voxels, and this one {largest}"
        return super().declines(tensors, **params)


OP = Op(
    name="gaussian_smooth",
    tensors=("Tensor x",),
    params="float[] sigma, float truncate, str padding_mode",
    outputs_like=same_shape_like,
    reference=reference,
    backends=(Native("cpu"), Triton("gaussian_smooth"), Native("cuda")),
)
