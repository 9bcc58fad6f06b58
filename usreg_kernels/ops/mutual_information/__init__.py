"""Mutual information of two images."""

from usreg_kernels.ops.mutual_information import reference
from usreg_kernels.ops.mutual_information.native import Native
from usreg_kernels.ops.operator import Op

OP = Op(
    name="mutual_information",
    tensors=("Tensor pred", "Tensor target"),
    constants=("Tensor? mask",),
    params="int num_bins, str kernel_type, bool normalized, float sigma_ratio, str reduction, float smooth_nr, "
    "float smooth_dr",
    outputs_like=reference.loss_like,
    reference=reference,
    backends=(Native("cpu"),),
)
