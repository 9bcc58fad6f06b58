"""What the kernels for GPUs may take, measured on sm_80 and sm_90 and rounded up by 4 percent and to 8 registers.

By kernel and call of ``tools.sass``, in float32 unless the call says another dtype: instructions per voxel of the main
loop, and registers per thread. 128 registers let four programs of four warps share a multiprocessor.

``TRITON`` is of the newest Triton that was measured, 3.9. ``make budgets`` compiles with older ones, and ``BEFORE_3_8``
and ``BEFORE_3_6`` hold what they need more. The march has no barrier and no exchange of layouts in any of them.
"""

Budgets = dict[tuple[str, str], tuple[int, int]]

TRITON: Budgets = {
    ("lncc.correlate", "window 3"): (95, 96),
    ("lncc.propagate", "window 3"): (44, 72),
    ("lncc.correlate", "window 5"): (138, 96),
    ("lncc.propagate", "window 5"): (68, 104),
    ("lncc.correlate", "window 7"): (166, 128),
    ("lncc.propagate", "window 7"): (99, 112),
    ("lncc.finish", "window 7"): (17, 48),
    ("lncc.correlate", "window 9"): (208, 168),
    ("lncc.propagate", "window 9"): (135, 96),
    ("lncc.correlate", "window 11"): (230, 168),
    ("lncc.propagate", "window 11"): (160, 112),
    ("lncc.correlate", "window 13"): (277, 224),
    ("lncc.propagate", "window 13"): (192, 144),
    ("lncc.correlate", "window 15"): (293, 255),
    ("lncc.propagate", "window 15"): (211, 152),
    ("lncc.correlate", "gaussian 3"): (109, 120),
    ("lncc.propagate", "gaussian 3"): (50, 72),
    ("lncc.correlate", "gaussian 7"): (218, 128),
    ("lncc.propagate", "gaussian 7"): (121, 112),
    ("lncc.correlate", "gaussian 9"): (277, 168),
    ("lncc.propagate", "gaussian 9"): (162, 128),
    ("lncc.correlate", "gaussian 15"): (446, 255),
    ("lncc.propagate", "gaussian 15"): (262, 176),
    ("lncc.correlate", "window 3, both gradients"): (104, 120),
    ("lncc.propagate", "window 3, both gradients"): (72, 104),
    ("lncc.correlate", "window 7, both gradients"): (175, 128),
    ("lncc.propagate", "window 7, both gradients"): (155, 112),
    ("lncc.correlate", "window 9, both gradients"): (218, 168),
    ("lncc.propagate", "window 9, both gradients"): (211, 168),
    ("lncc.correlate", "window 15, both gradients"): (305, 255),
    ("lncc.propagate", "window 15, both gradients"): (211, 152),
    ("lncc.correlate", "window 7, mask"): (174, 128),
    ("lncc.propagate", "window 7, mask"): (99, 112),
    ("lncc.correlate", "window 7, map"): (171, 128),
    ("lncc.propagate", "window 7, map"): (116, 128),
    ("lncc.correlate", "window 7, gradient to target"): (166, 128),
    ("lncc.propagate", "window 7, gradient to target"): (99, 112),
    ("lncc.correlate", "window 7, width 64"): (175, 128),
    ("lncc.propagate", "window 7, width 64"): (111, 120),
    ("lncc.correlate", "window 7, width 95"): (173, 128),
    ("lncc.propagate", "window 7, width 95"): (111, 128),
    ("lncc.correlate", "window 7, 2-D"): (130, 64),
    ("lncc.propagate", "window 7, 2-D"): (77, 72),
    ("lncc.correlate", "window 7, 1-D"): (81, 56),
    ("lncc.propagate", "window 7, 1-D"): (37, 48),
    ("gradient_smoothness.sum_penalties", "forward, l2"): (52, 32),
    ("gradient_smoothness.write_gradient", "forward, l2"): (65, 32),
    ("gradient_smoothness.sum_penalties", "central, l1"): (52, 32),
    ("gradient_smoothness.write_gradient", "central, l1"): (100, 48),
    ("gradient_smoothness.sum_penalties", "forward, l2, map"): (46, 32),
    ("gradient_smoothness.write_gradient", "forward, l2, map"): (71, 48),
    ("bending_energy.sum_energies", "mean"): (192, 32),
    ("bending_energy.write_gradient", "mean"): (416, 32),
    ("bending_energy.sum_energies", "map"): (184, 32),
    ("bending_energy.write_gradient", "map"): (466, 48),
    ("dvf_mse.sum_errors", "mean"): (11, 32),
    ("dvf_mse.write_gradients", "mean"): (17, 48),
    ("dvf_mse.sum_errors", "mask"): (18, 40),
    ("dvf_mse.write_gradients", "mask"): (21, 48),
    ("dvf_supervision.sum_terms", "mean"): (55, 32),
    ("dvf_supervision.write_gradients", "mean"): (67, 40),
    ("field_adam.count_step", "plain"): (533, 32),  # of one thread: a turn of its loop, times the 32 of a warp
    ("field_adam.step_field", "plain"): (28, 32),
    ("field_adam.update_moments", "longest"): (79, 72),
    ("field_adam.find_scale", "longest"): (13, 32),
    ("field_adam.write_field", "longest"): (23, 32),
    ("gaussian_smooth.filter_rows", "sigma 1"): (22, 64),
    ("gaussian_smooth.filter_columns", "sigma 1"): (43, 64),
    ("gaussian_smooth.filter_rows", "sigma 1, adjoint"): (25, 56),
    ("gaussian_smooth.filter_columns", "sigma 1, adjoint"): (30, 40),
    ("gaussian_smooth.filter_rows", "sigma 1, reflection"): (27, 64),
    ("gaussian_smooth.filter_columns", "sigma 1, reflection"): (48, 72),
    ("gaussian_smooth.filter_rows", "sigma 1, reflection, adjoint"): (30, 96),
    ("gaussian_smooth.filter_columns", "sigma 1, reflection, adjoint"): (57, 72),
    ("gaussian_smooth.filter_rows", "sigma 3"): (40, 56),
    ("gaussian_smooth.filter_columns", "sigma 3"): (140, 96),
    ("jacobian_determinant.write_determinants", "map"): (142, 40),
    ("jacobian_determinant.write_gradient", "map"): (616, 80),
    ("folding.sum_shortfalls", "mean"): (188, 48),
    ("folding.write_slopes", "mean"): (146, 48),
    ("folding.write_gradient", "mean"): (624, 80),
    ("folding.sum_shortfalls", "map"): (146, 40),
    ("folding.write_slopes", "map"): (150, 56),
    ("folding.write_gradient", "map"): (624, 80),
}

BEFORE_3_8: Budgets = {
    ("lncc.propagate", "window 9"): (135, 104),
    ("lncc.correlate", "window 11"): (240, 168),
    ("lncc.propagate", "window 11"): (160, 136),
    ("lncc.correlate", "window 13"): (277, 232),
    ("lncc.propagate", "gaussian 3"): (50, 80),
    ("lncc.propagate", "gaussian 15"): (262, 184),
    ("lncc.propagate", "window 7, both gradients"): (155, 128),
    ("lncc.correlate", "window 7, width 64"): (186, 128),
    ("gradient_smoothness.sum_penalties", "central, l1"): (57, 32),
    ("gradient_smoothness.write_gradient", "forward, l2, map"): (71, 56),
    ("bending_energy.write_gradient", "map"): (500, 48),
}
"""What differs with the compiler of Triton 3.6 and 3.7: a few registers, and a few instructions per voxel."""

BEFORE_3_6: Budgets = {
    ("lncc.correlate", "window 3"): (95, 104),
    ("lncc.propagate", "window 3"): (44, 80),
    ("lncc.correlate", "window 5"): (148, 96),
    ("lncc.correlate", "window 7"): (185, 128),
    ("lncc.correlate", "window 11"): (285, 168),
    ("lncc.correlate", "window 15"): (320, 255),
    ("lncc.correlate", "gaussian 3"): (115, 128),
    ("lncc.correlate", "window 7, both gradients"): (184, 128),
    ("lncc.correlate", "window 9, both gradients"): (228, 168),
    ("lncc.correlate", "window 15, both gradients"): (330, 255),
    ("lncc.correlate", "window 7, mask"): (190, 128),
    ("lncc.correlate", "window 7, map"): (185, 128),
    ("lncc.correlate", "window 7, gradient to target"): (185, 128),
    ("lncc.correlate", "window 7, width 64"): (204, 128),
    ("lncc.correlate", "window 7, width 95"): (189, 128),
}
"""What differs further with Triton 3.5: it moves unfinished sums in pairs, which takes more moves between registers."""


def triton_budgets(version: str) -> Budgets:
    """The budgets of a version of Triton, such as "3.6.0"."""
    major, minor = (int(part) for part in version.split(".")[:2])
    found = dict(TRITON)
    if (major, minor) < (3, 8):
        found |= BEFORE_3_8
    if (major, minor) < (3, 6):
        found |= BEFORE_3_6
    return found


CUDA: Budgets = {
    ("lncc.march_forward", "window 3"): (109, 64),
    ("lncc.march_backward", "window 3"): (69, 56),
    ("lncc.march_forward", "window 5"): (147, 96),
    ("lncc.march_backward", "window 5"): (98, 80),
    ("lncc.march_forward", "window 7"): (175, 128),
    ("lncc.march_backward", "window 7"): (115, 104),
    ("lncc.march_forward", "window 9"): (220, 152),
    ("lncc.march_backward", "window 9"): (149, 128),
    ("lncc.march_forward", "window 11"): (263, 208),
    ("lncc.march_backward", "window 11"): (175, 160),
    ("lncc.march_forward", "window 13"): (291, 216),
    ("lncc.march_backward", "window 13"): (206, 184),
    ("lncc.march_forward", "window 15"): (397, 255),
    ("lncc.march_backward", "window 15"): (281, 168),
    ("lncc.march_forward", "window 7, fp16"): (201, 120),
    ("lncc.march_backward", "window 7, fp16"): (123, 104),
    ("lncc.march_forward", "window 7, bf16"): (201, 120),
    ("lncc.march_backward", "window 7, bf16"): (123, 104),
    ("lncc.march_forward", "window 7, no gradient"): (159, 128),
    ("lncc.march_forward", "window 7, both gradients"): (186, 128),
    ("lncc.march_backward", "window 7, both gradients"): (188, 128),
    ("lncc.march_forward", "gaussian 7"): (321, 128),
    ("lncc.march_backward", "gaussian 7"): (259, 96),
    ("gradient_smoothness.sum_penalties", "forward, l2"): (21, 32),
    ("gradient_smoothness.write_gradient", "forward, l2"): (35, 56),
    ("gradient_smoothness.sum_penalties", "central, l1"): (30, 40),
    ("gradient_smoothness.write_gradient", "central, l1"): (63, 56),
    ("gradient_smoothness.sum_penalties", "forward, l2, map"): (25, 32),
    ("gradient_smoothness.write_gradient", "forward, l2, map"): (60, 64),
    ("bending_energy.sum_penalties", "mean"): (54, 40),
    ("bending_energy.write_gradient", "mean"): (125, 64),
    ("bending_energy.sum_penalties", "map"): (57, 40),
    ("bending_energy.write_gradient", "map"): (177, 144),
    ("dvf_mse.sum_errors", "mean"): (18, 32),
    ("dvf_mse.write_gradients", "mean"): (24, 32),
    ("field_adam.step_field", "plain"): (51, 32),
    ("field_adam.update_moments", "longest"): (49, 40),
    ("field_adam.write_field", "longest"): (39, 32),
    ("gaussian_smooth.filter_rows", "sigma 1"): (18, 48),
    ("gaussian_smooth.filter_columns", "sigma 1"): (24, 40),
    ("jacobian_determinant.write_determinants", "map"): (149, 64),
    ("jacobian_determinant.write_gradient", "map"): (618, 64),
    ("folding.sum_shortfalls", "mean"): (167, 56),
    ("folding.write_slopes", "mean"): (174, 48),
    ("folding.sum_shortfalls", "map"): (152, 64),
    ("folding.write_slopes", "map"): (174, 48),
    ("folding.write_gradient", "mean"): (678, 64),
}

STACK = {("lncc.correlate", "gaussian 15", "sm_90"): 56}
"""Bytes per thread that spill in Triton, where any do: 255 registers are all there are."""

SHARED = 1024
"""Bytes of shared memory per block of the CUDA C++ kernels: what sm_90 keeps for itself."""
