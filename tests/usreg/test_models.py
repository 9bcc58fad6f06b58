"""The models and the warp: shapes, the identity at the start, gradients, sizes, direction, order and units."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from usreg.errors import ConfigError
from usreg.models import MODEL_REGISTRY, RegistrationModel, build_model, register_model, warp
from usreg.models.base import padded_size
from usreg.models.globalnet import PACE
from usreg.models.voxelmorph import integrate, rescaled

TINY: dict[str, dict[str, Any]] = {
    "globalnet3d": {"num_channel_initial": 2, "depth": 2},
    "localnet3d": {"num_channel_initial": 2, "depth": 2},
    "unetreg3d": {"channels": [4, 8, 16], "strides": [2, 2]},
    "voxelmorph3d": {"integration_steps": 3},
    "transmorph3d": {"feature_size": 12, "num_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1], "window_size": 2},
}
SIZES = dict.fromkeys(TINY, (16, 12, 20)) | {"transmorph3d": (64, 32, 32)}
ODD_SIZE = (13, 18, 7)
LAST_LAYER = {
    "globalnet3d": "network.output_block",
    "localnet3d": "network.output_block",
    "unetreg3d": "network.1",
    "voxelmorph3d": "network.net.1.final_conv_out",
    "transmorph3d": "network.out",
}
EVERY_MODEL = pytest.mark.parametrize("name", list(TINY))


def tiny(name: str, image_size: tuple[int, ...] | None = None, **keys: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model({"name": name, **TINY[name], **keys}, image_size or SIZES[name])


def pair(size: tuple[int, ...], batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(batch, 1, *size, generator=generator) for _ in range(2))  # type: ignore[return-value]


def perturb(model: torch.nn.Module, name: str) -> None:
    """Move the last layer off its zeros, as the first training step does."""
    for parameter in model.get_submodule(LAST_LAYER[name]).parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)


def ramp(size: tuple[int, ...], axis: int) -> torch.Tensor:
    """(1, 1, D, H, W) whose value is the voxel coordinate along an axis (0 = z, 1 = y, 2 = x)."""
    shape = [1, 1, 1, 1, 1]
    shape[2 + axis] = size[axis]
    return torch.arange(size[axis], dtype=torch.float32).reshape(shape).expand(1, 1, *size).clone()


def test_every_built_in_is_tested() -> None:
    built_in = {name for name, factory in MODEL_REGISTRY.items() if factory.__module__.startswith("usreg.")}
    assert built_in == set(TINY)


@EVERY_MODEL
def test_starts_at_the_identity(name: str) -> None:
    moving, fixed = pair(SIZES[name], batch=2)
    warped, ddf = tiny(name)(moving, fixed)
    assert warped.shape == moving.shape
    assert ddf.shape == (2, 3, *SIZES[name])
    assert warped.dtype == ddf.dtype == torch.float32
    torch.testing.assert_close(ddf, torch.zeros_like(ddf), rtol=0, atol=1e-4)
    torch.testing.assert_close(warped, moving, rtol=0, atol=1e-3)


@EVERY_MODEL
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = tiny(name)
    moving, fixed = pair(SIZES[name])
    perturb(model, name)
    warped, ddf = model(moving, fixed)
    assert warped.isfinite().all()
    assert ddf.abs().max() > 0
    ((warped - fixed).square().mean() + ddf.square().mean()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    without = {key for key, p in model.named_parameters() if not p.grad.any()}  # type: ignore[union-attr]
    # A normalisation right after it cancels a convolution's bias: such gradients may round to exact zeros.
    assert all(key.endswith("bias") for key in without), without


@EVERY_MODEL
def test_first_step_leaves_the_identity(name: str) -> None:
    model = tiny(name)
    moving, fixed = pair(SIZES[name])
    warped, _ = model(moving, fixed)
    (warped - fixed).square().mean().backward()
    gradients = [p.grad for p in model.get_submodule(LAST_LAYER[name]).parameters()]
    assert all(g is not None and g.any() for g in gradients)


@EVERY_MODEL
@pytest.mark.parametrize("size", [ODD_SIZE, (30, 41, 27), (1, 9, 5), (4, 4, 4)])
def test_any_size_works(name: str, size: tuple[int, ...]) -> None:
    model = tiny(name, size)
    perturb(model, name)
    warped, ddf = model(*pair(size))
    assert warped.shape == (1, 1, *size)
    assert ddf.shape == (1, 3, *size)
    assert warped.isfinite().all()


@EVERY_MODEL
@pytest.mark.parametrize("across", [0, 1, 2])
def test_a_network_for_slices(name: str, across: int) -> None:
    """It has no weights in 3-D, and gives a slice along any axis the field of the 2-D image, with 0 across."""
    plane = (21, 34)
    size = (*plane[:across], 1, *plane[across:])
    model = tiny(name, size, spatial_dims=2).eval()
    perturb(model, name)
    assert not any(weight.dim() == 5 for weight in model.parameters())
    moving, fixed = pair(size, batch=2)
    warped, ddf = model(moving, fixed)
    flat_warped, flat_ddf = model(*(image.squeeze(2 + across) for image in (moving, fixed)))
    assert flat_ddf.shape == (2, 2, *plane)
    assert flat_ddf.abs().max() > 0
    assert not ddf[:, across].any()
    in_plane = [axis for axis in range(3) if axis != across]
    assert torch.equal(ddf[:, in_plane].squeeze(2 + across), flat_ddf)
    torch.testing.assert_close(warped.squeeze(2 + across), flat_warped, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"one for slices|was built for images of"):
        model(*pair((4, *plane)))


class Given(torch.nn.Module):
    """A network that returns a part of one field, whatever it gets."""

    def __init__(self, field: torch.Tensor) -> None:
        super().__init__()
        self.given = field

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return self.given[(..., *map(slice, pair.shape[2:]))]


@pytest.mark.parametrize("half_res", [False, True])
def test_an_integrated_field_of_a_slice_is_that_of_a_thick_one(half_res: bool) -> None:
    """A network in 3-D that gives all planes the same velocity moves each of them as one in 2-D does."""
    plane = build_model({"name": "voxelmorph3d", "half_res": half_res}, (20, 24))
    volume = build_model({"name": "voxelmorph3d", "half_res": half_res}, (8, 20, 24))
    velocity = torch.nn.functional.interpolate(torch.randn(1, 2, 4, 5), (32, 64), mode="bicubic")
    thick = torch.cat([torch.zeros(1, 1, 32, 64), velocity], 1)[:, :, None].expand(-1, -1, 32, -1, -1)
    plane.network, volume.network = Given(velocity), Given(thick)
    _, found = plane(*pair((1, 20, 24)))
    _, expected = volume(*pair((8, 20, 24)))
    torch.testing.assert_close(found[:, :, 0], expected[:, :, 3], rtol=1e-4, atol=1e-4)


def test_two_numbers_are_the_size_of_a_slice() -> None:
    for name in TINY:
        model = build_model({"name": name, **TINY[name]}, (12, 20))
        assert isinstance(model, RegistrationModel)
        assert model.spatial_dims == 2
        assert model(*pair((1, 12, 20)))[1].shape == (1, 3, 1, 12, 20)
    volumes = build_model({"name": "globalnet3d", "depth": 2}, (1, 12, 20))  # as checkpoints without the key
    assert volumes.spatial_dims == 3


@EVERY_MODEL
def test_keys_of_the_warp(name: str) -> None:
    model = tiny(name, warp_mode="nearest", warp_padding_mode="zeros")
    assert isinstance(model, RegistrationModel)
    assert (model.warp_mode, model.warp_padding_mode) == ("nearest", "zeros")
    with pytest.raises(ConfigError, match=rf"model '{name}': the warp mode is 'cubic'; .*bilinear, nearest"):
        tiny(name, warp_mode="cubic")
    with pytest.raises(ConfigError, match=r"the warp padding mode is 'wrap'; .*border, zeros, reflection"):
        tiny(name, warp_padding_mode="wrap")


@pytest.mark.parametrize("name", ["globalnet3d", "localnet3d", "voxelmorph3d"])
def test_autocast_gives_float32_fields(name: str) -> None:
    model = tiny(name).eval()
    moving, fixed = pair(SIZES[name])
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        warped, ddf = model(moving, fixed)
    assert warped.dtype == ddf.dtype == torch.float32
    torch.testing.assert_close(warped, moving, rtol=0, atol=1e-3)


def test_shapes_must_agree() -> None:
    model = tiny("localnet3d")
    with pytest.raises(ValueError, match=r"moving has shape \(1, 1, 8, 8, 8\) and fixed \(1, 1, 8, 8, 9\)"):
        model(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 9))
    with pytest.raises(ValueError, match=r"\(B, 1, D, H, W\)"):
        model(torch.zeros(1, 2, 8, 8, 8), torch.zeros(1, 2, 8, 8, 8))


@EVERY_MODEL
def test_images_of_several_channels(name: str) -> None:
    """Every channel counts for the field, which warps each of them."""
    model = tiny(name, image_channels=2).eval()
    generator = torch.Generator().manual_seed(1)
    moving, fixed = (torch.rand(1, 2, *SIZES[name], generator=generator) for _ in range(2))
    assert not model(moving, fixed)[1].any()
    perturb(model, name)
    warped, ddf = model(moving, fixed)
    assert ddf.shape == (1, 3, *SIZES[name])
    torch.testing.assert_close(warped, torch.cat([warp(moving[:, i : i + 1], ddf) for i in range(2)], dim=1))
    without_second = [torch.cat([image[:, :1], 0 * image[:, 1:]], dim=1) for image in (moving, fixed)]
    assert not torch.equal(model(without_second[0], fixed)[1], ddf)
    assert not torch.equal(model(moving, without_second[1])[1], ddf)
    with pytest.raises(ValueError, match=r"both must be the same \(B, 2, D, H, W\): .*'image_channels' .* here 2"):
        model(moving[:, :1], fixed[:, :1])


@EVERY_MODEL
def test_nothing_moves_along_an_axis_of_one_voxel(name: str) -> None:
    """Where the image ends in zeros, such a displacement would fade it; the gradient would seek that."""
    size = (1, *SIZES[name][1:])
    model = tiny(name, size, warp_padding_mode="zeros")
    perturb(model, name)
    moving, fixed = pair(size)
    warped, ddf = model(moving, fixed)
    assert not ddf[:, 0].any()
    assert ddf[:, 1].any()
    assert ddf[:, 2].any()
    (warped - fixed).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_globalnet_is_tied_to_its_size() -> None:
    with pytest.raises(ValueError, match=r"built for images of \[16, 12, 20\]; it got \[8, 8, 8\]"):
        tiny("globalnet3d")(*pair((8, 8, 8)))


@pytest.mark.parametrize("size", [(16, 12, 20), ODD_SIZE])
def test_globalnet_field_is_the_affine_in_voxels(size: tuple[int, int, int]) -> None:
    """Row p of the head's matrix gives the displacement of z, y or x, in half extents, from (z, y, x, 1) in these."""
    model = tiny("globalnet3d", size)
    matrix = torch.tensor([[0.1, 0.0, 0.02, 0.5], [0.0, -0.1, 0.0, -0.25], [0.05, 0.0, 0.0, 0.125]])
    model.get_parameter("network.output_block.affine.bias").data.copy_(matrix.flatten() / PACE)
    _, ddf = model(*pair(size))
    half = [(length - 1) / 2 for length in padded_size(size, model.multiple)]
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) / h - 1 for n, h in zip(size, half, strict=True)), indexing="ij")
    expected = torch.stack([0.1 * z + 0.02 * x + 0.5, -0.1 * y - 0.25, 0.05 * z + 0.125])
    torch.testing.assert_close(ddf[0], expected * torch.tensor(half).reshape(3, 1, 1, 1), rtol=1e-5, atol=1e-4)


def test_globalnet_moves_by_the_learning_rate_whatever_its_size() -> None:
    """A tenth of it or more, in half extents; MONAI's head moves the corners of the larger image by a whole extent."""
    for size, channels in (((16, 16, 16), 2), ((32, 32, 32), 4)):
        model = build_model({"name": "globalnet3d", "num_channel_initial": channels, "depth": 2}, image_size=size)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        model(*pair(size))[1].square().sum().backward()  # a gradient of 0: the field is 0
        model.zero_grad()
        (model(*pair(size))[1] - 5).square().mean().backward()
        optimizer.step()
        longest = model(*pair(size))[1].abs().max().item() / ((size[0] - 1) / 2)
        assert 1e-4 < longest < 2e-3


def test_globalnet_is_the_same_in_training_and_evaluation() -> None:
    model = tiny("globalnet3d")
    perturb(model, "globalnet3d")
    moving, fixed = pair(SIZES["globalnet3d"], batch=2)
    fields = [model.train(mode)(moving, fixed)[1] for mode in (True, False)]
    assert fields[0].abs().max() > 1e-3
    torch.testing.assert_close(*fields)
    torch.testing.assert_close(model(moving[:1], fixed[:1])[1], fields[0][:1])


def test_transmorph_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for use_checkpoint in (False, True):
        model = tiny("transmorph3d", use_checkpoint=use_checkpoint)
        perturb(model, "transmorph3d")
        model(*pair(SIZES["transmorph3d"]))[1].square().mean().backward()
        gradients.append(model.get_submodule("network.swinViT.layers1").parameters().__next__().grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("localnet3d", {"in_channels": 1}, "in_channels is 1; it must be 2"),
        ("localnet3d", {"depth": 0}, "depth is 0; it must be 1 or more"),
        ("localnet3d", {"out_channels": 2}, "out_channels is 2; it must be 3"),
        ("localnet3d", {"extract_levels": [0, 0]}, "extract_levels is .* different whole numbers"),
        ("localnet3d", {"extract_levels": []}, "extract_levels is .* different whole numbers"),
        ("localnet3d", {"depth": 2, "extract_levels": [0, 4]}, "depth is 2 and the largest of extract_levels 4"),
        ("voxelmorph3d", {"in_channels": 1}, "in_channels is 1; it must be 2"),
        ("voxelmorph3d", {"channels": [4, 8, 8]}, "channels is .* pairs"),
        ("voxelmorph3d", {"final_conv_channels": [0]}, "channels is 0"),
        ("unetreg3d", {"in_channels": 2, "image_channels": 2}, "in_channels is 2; it must be 4, .* of 2 channels each"),
        ("localnet3d", {"out_channels": 1, "spatial_dims": 2}, "out_channels is 1; it must be 3"),
        ("voxelmorph3d", {"spatial_dims": 1}, "spatial_dims is 1; it must be 3, for volumes, or 2, for slices"),
        ("globalnet3d", {"spatial_dims": 2}, r"image_size \[16, 12, 20\] is that of volumes: leave it out"),
        ("transmorph3d", {"image_channels": 0}, "image_channels is 0; it must be 1 or more"),
        ("globalnet3d", {"num_channel_initial": 0}, "num_channel_initial is 0"),
        ("unetreg3d", {"out_channels": 2}, "out_channels is 2; it must be 3"),
        ("unetreg3d", {"channels": [4, 8], "strides": [2, 2]}, "one stride fewer than levels"),
        ("unetreg3d", {"channels": [4], "strides": []}, "one stride fewer than levels"),
        ("unetreg3d", {"strides": [2, 0]}, "strides is 0"),
        ("voxelmorph3d", {"integration_steps": -1}, "integration_steps is -1"),
        ("transmorph3d", {"depths": [1, 1]}, "depths is .*4 entries"),
        ("transmorph3d", {"feature_size": 13}, "feature"),
    ],
)
def test_impossible_values(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(name, **keys)


def test_defaults_are_those_of_the_reference() -> None:
    shared = {"warp_mode": "bilinear", "warp_padding_mode": "border", "checkpointing": False}
    shared |= {"image_channels": 1, "spatial_dims": 3}
    reference: dict[str, dict[str, Any]] = {
        "globalnet3d": {"num_channel_initial": 16, "depth": 3},
        "localnet3d": {
            "num_channel_initial": 16,
            "depth": 3,
            "in_channels": None,  # 2 for images of one channel
            "extract_levels": None,
            "out_channels": 3,
            "pooling": True,
            "concat_skip": False,
        },
        "unetreg3d": {
            "in_channels": None,  # 2 for images of one channel
            "out_channels": 3,
            "channels": (16, 32, 64, 128, 256),
            "strides": (2, 2, 2, 2),
            "num_res_units": 2,
        },
        "voxelmorph3d": {
            "in_channels": None,  # 2 for images of one channel
            "unet_out_channels": 32,
            "channels": (16, 32, 32, 32, 32, 32),
            "final_conv_channels": (16, 16),
            "integration_steps": 7,
            "half_res": False,
        },
        "transmorph3d": {
            "feature_size": 48,
            "depths": (2, 2, 2, 2),
            "num_heads": (3, 6, 12, 24),
            "window_size": 7,
            "drop_rate": 0.0,
            "attn_drop_rate": 0.0,
            "dropout_path_rate": 0.0,
            "use_checkpoint": False,
        },
    }
    for name, defaults in reference.items():
        parameters = MODEL_REGISTRY.accepted(name).parameters
        assert {key: p.default for key, p in parameters.items() if key != "image_size"} == {**defaults, **shared}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("localnet3d", {"extract_levels": [0, 2]}),
        ("localnet3d", {"pooling": False}),
        ("localnet3d", {"concat_skip": True}),
        ("voxelmorph3d", {"channels": [4, 6], "unet_out_channels": 5, "final_conv_channels": [4]}),
        ("voxelmorph3d", {"channels": [4] * 8, "unet_out_channels": 5, "final_conv_channels": []}),
        ("voxelmorph3d", {"half_res": True}),
    ],
)
@pytest.mark.parametrize("size", [(16, 16, 16), ODD_SIZE])
def test_keys_of_the_networks(name: str, keys: dict[str, Any], size: tuple[int, ...]) -> None:
    model = tiny(name, size, **keys)
    moving, fixed = pair(size)
    assert not model(moving, fixed)[1].any()
    perturb(model, name)
    warped, ddf = model(moving, fixed)
    assert ddf.shape == (1, 3, *size)
    assert ddf.any()
    assert warped.isfinite().all()


def test_localnet_depth_is_the_levels_up_to_it() -> None:
    keys = {"num_channel_initial": 2}
    assert [key for key, _ in tiny("localnet3d", **keys, depth=2).named_parameters()] == [
        key for key, _ in tiny("localnet3d", **{**keys, "depth": 3}, extract_levels=[2, 0, 1]).named_parameters()
    ]


@pytest.mark.parametrize("size", [(12, 12, 12), (13, 18, 7)])
def test_a_field_on_another_grid_means_the_same(size: tuple[int, ...]) -> None:
    """A constant field of a fraction of the box stays that, in the voxels of either grid."""
    half = [-(-length // 2) for length in size]
    field = torch.stack([torch.full(size, 0.1 * length) for length in size])[None]
    there = rescaled(field, half)
    for axis, length in enumerate(half):
        torch.testing.assert_close(there[0, axis], torch.full_like(there[0, axis], 0.1 * length))
    torch.testing.assert_close(rescaled(there, size), field)


def test_own_model_gets_the_image_size() -> None:
    @register_model("test_models_own")
    def make(image_size: tuple[int, ...], width: int = 1) -> torch.nn.Module:
        return torch.nn.Linear(image_size[0], width)

    try:
        assert build_model({"name": "test_models_own", "width": 4}, [5, 6, 7]).weight.shape == (4, 5)
    finally:
        del MODEL_REGISTRY["test_models_own"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_warp_direction_order_and_units(axis: int) -> None:
    """A field of +1.5 along one axis shows at each voxel what lies 1.5 voxels further along that axis."""
    size = (5, 6, 7)
    ddf = torch.zeros(1, 3, *size)
    ddf[:, axis] = 1.5
    for along in range(3):
        image = ramp(size, along)
        expected = (image + 1.5).clamp(max=size[along] - 1) if along == axis else image
        torch.testing.assert_close(warp(image, ddf), expected)


def test_warp_padding_modes_and_nearest() -> None:
    image = ramp((4, 1, 1), 0) + 1
    ddf = torch.zeros(1, 3, 4, 1, 1)
    ddf[:, 0] = 2.0
    values = {
        mode: warp(image, ddf, padding_mode=mode).flatten().tolist() for mode in ("border", "zeros", "reflection")
    }
    assert values["border"] == pytest.approx([3, 4, 4, 4])
    assert values["zeros"] == pytest.approx([3, 4, 0, 0])
    assert values["reflection"] == pytest.approx([3, 4, 3, 2])
    ddf[:, 0] = 0.4
    assert warp(image, ddf, mode="nearest").flatten().tolist() == [1, 2, 3, 4]


def test_warp_promotes_half_and_keeps_double() -> None:
    size = (3, 4, 300)
    image, ddf = ramp(size, 2), torch.full((1, 3, *size), 0.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = warp(image.half(), ddf.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half[..., :-1], image[..., :-1] + 0.25, rtol=0, atol=1e-3)
    assert warp(image.double(), ddf).dtype == torch.float64


def test_warp_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 2, 3, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ddf = (torch.rand(1, 3, 3, 4, 3, generator=generator, dtype=torch.float64) * 0.4 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, ddf))


def test_warp_after_inference_mode_still_trains() -> None:
    size = (3, 5, 4)
    with torch.inference_mode():
        warp(ramp(size, 0), torch.zeros(1, 3, *size))
    ddf = torch.zeros(1, 3, *size, requires_grad=True)
    warp(ramp(size, 0), ddf).sum().backward()
    assert ddf.grad is not None


def test_warp_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="one spatial size"):
        warp(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 3, 4, 4, 5))
    with pytest.raises(ValueError, match="the warp mode is 'linear'"):
        warp(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4), mode="linear")


def test_integration_of_constant_and_linear_velocities() -> None:
    """x' = v gives x + v; x' = a x gives x exp(a)."""
    size = (4, 4, 33)
    constant = torch.zeros(1, 3, *size)
    constant[:, 1] = 1.75
    torch.testing.assert_close(integrate(constant, 7), constant)
    torch.testing.assert_close(integrate(constant, 0), constant)
    rate = -0.3
    linear = torch.zeros(1, 3, *size)
    linear[:, 2] = rate * ramp(size, 2)[:, 0]
    expected = (torch.tensor(rate).exp() - 1) * ramp(size, 2)[:, 0]
    torch.testing.assert_close(integrate(linear, 9)[:, 2], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [((16, 12, 20), 4, (16, 12, 20)), (ODD_SIZE, 8, (16, 24, 8)), ((4, 4, 4), 4, (4, 4, 8)), ((1, 1, 1), 1, (1, 1, 1))],
)
def test_padded_size(size: tuple[int, ...], multiple: int, expected: tuple[int, ...]) -> None:
    assert padded_size(size, multiple) == expected


def test_building_logs_and_warns_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """MONAI's Warp announces its backend each time; with warnings as errors this also shows that it is silenced."""
    with caplog.at_level(logging.WARNING):
        tiny("voxelmorph3d")(*pair((8, 8, 8)))
    assert not caplog.records
