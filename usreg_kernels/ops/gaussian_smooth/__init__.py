"""Smoothing of images and fields with a gaussian."""

from usreg_kernels.ops.gaussian_smooth import reference
from usreg_kernels.ops.gaussian_smooth.native import Native
from usreg_kernels.ops.operator import Op

OP = Op(
    name="gaussian_smooth",
    tensors=("Tensor x",),
    params="float[] sigma, float truncate, str padding_mode",
    outputs_like=reference.smoothed_like,
    reference=reference,
    backends=(Native("cpu"),),
)
