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
    ("warp.pull", "field"): (166, 32),
    ("warp.slopes", "field"): (216, 32),
    ("warp.pull", "field, gradient to image"): (166, 32),
    ("warp.measure", "field, gradient to image"): (15, 24),
    ("warp.scatter", "field, gradient to image"): (341, 32),
    ("warp.convert", "field, gradient to image"): (22, 32),
    ("warp.pull", "affine"): (174, 32),
    ("warp.slopes", "affine"): (140, 64),
    ("warp.add_up", "affine"): (16, 56),
    ("warp.pull", "zeros"): (183, 32),
    ("warp.slopes", "zeros"): (232, 32),
    ("warp.pull", "zeros, gradient to image"): (183, 32),
    ("warp.measure", "zeros, gradient to image"): (15, 24),
    ("warp.scatter", "zeros, gradient to image"): (332, 32),
    ("warp.convert", "zeros, gradient to image"): (22, 32),
    ("warp.pull", "reflection"): (191, 32),
    ("warp.slopes", "reflection"): (266, 40),
    ("warp.pull", "nearest"): (149, 24),
    ("warp.measure", "nearest"): (15, 24),
    ("warp.scatter", "nearest"): (191, 24),
    ("warp.convert", "nearest"): (22, 32),
    ("warp.pull", "three channels"): (171, 32),
    ("warp.slopes", "three channels"): (71, 32),
    ("compose_ddf.pull", "border"): (203, 32),
    ("compose_ddf.measure", "border"): (15, 24),
    ("compose_ddf.scatter", "border"): (189, 48),
    ("compose_ddf.convert", "border"): (22, 32),
    ("compose_ddf.slopes", "border"): (71, 32),
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
    ("warp.slopes", "field"): (73, 40),
    ("warp.slopes", "affine"): (631, 64),
    ("warp.slopes", "zeros"): (76, 40),
    ("warp.scatter", "field, gradient to image"): (196, 40),
    ("warp.values", "field"): (64, 32),
    ("warp.values", "zeros"): (83, 40),
    ("warp.measure", "field, gradient to image"): (24, 32),
    ("warp.convert", "field, gradient to image"): (66, 16),
}

STACK = {("lncc.correlate", "gaussian 15", "sm_90"): 56}
"""Bytes per thread that spill in Triton, where any do: 255 registers are all there are."""

SHARED = 1024
"""Bytes of shared memory per block of the CUDA C++ kernels: what sm_90 keeps for itself."""
