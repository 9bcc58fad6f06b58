"""Mutual information of two images."""

from typing import Any

from usreg_kernels.backend import Tensors
from usreg_kernels.ops.mutual_information import reference
from usreg_kernels.ops.mutual_information.native import Native, out_of_range
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend


class Triton(TritonBackend):
    """Matrix products of windows, without a table of all voxels by bins."""

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """The same bins and gaussians as in C++."""
        return out_of_range(**params) or super().declines(tensors, **params)


OP = Op(
    name="mutual_information",
    tensors=("Tensor pred", "Tensor target"),
    constants=("Tensor? mask",),
    params="int num_bins, str kernel_type, bool normalized, float sigma_ratio, str reduction, float smooth_nr, "
    "float smooth_dr",
    outputs_like=reference.loss_like,
    reference=reference,
    backends=(Native("cpu"), Triton("mutual_information"), Native("cuda")),
)
