"""Activation checkpointing: the same training with fewer activations kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from usreg.models import build_model
from usreg.models.checkpointing import checkpoint_parts

KEYS = {
    "globalnet3d": {"num_channel_initial": 2, "depth": 2},
    "localnet3d": {"num_channel_initial": 2, "depth": 2},
    "unetreg3d": {"channels": [4, 8, 16], "strides": [2, 2]},
    "voxelmorph3d": {"integration_steps": 3},
    "transmorph3d": {"feature_size": 12, "num_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1], "window_size": 2},
}
SIZES = dict.fromkeys(KEYS, (16, 16, 16)) | {"transmorph3d": (32, 32, 32)}
EVERY_MODEL = pytest.mark.parametrize("name", list(KEYS))


def model(name: str, checkpointing: bool) -> nn.Module:
    torch.manual_seed(0)
    made = build_model({"name": name, **KEYS[name], "checkpointing": checkpointing}, SIZES[name])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():  # the last layer, whose zeros would hide every gradient before it
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return made


def pair(name: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 1, *SIZES[name], generator=generator) for _ in range(2)]


def step(network: nn.Module, name: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients and running statistics after a step, by name, and the bytes that autograd kept for it."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    moving, fixed = pair(name)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        warped, ddf = network(moving, fixed)
        loss = (warped - fixed).square().mean() + ddf.square().mean()
        bytes_kept = sum(size for pointer, size in kept.items() if pointer not in own)
    loss.backward()
    found = {f"gradient of {key}": p.grad for key, p in network.named_parameters()}
    return found | dict(network.named_buffers()), bytes_kept  # type: ignore[return-value]


@EVERY_MODEL
def test_changes_no_bit_and_keeps_less(name: str) -> None:
    plain, plain_bytes = step(model(name, False), name)
    checkpointed, checkpointed_bytes = step(model(name, True), name)
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        assert torch.equal(value, checkpointed[key]), key
    assert checkpointed_bytes < 0.8 * plain_bytes


def test_running_statistics_take_each_batch_once() -> None:
    """Without care, the second pass through a part would count it again."""
    network = model("localnet3d", True)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert norms
    step(network, "localnet3d")
    assert all(norm.num_batches_tracked == 1 for norm in norms)


def test_dropout_draws_the_same_numbers_again() -> None:
    part = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5))
    checkpointed = copy.deepcopy(part)
    checkpoint_parts([checkpointed])
    for network in (part, checkpointed):
        torch.manual_seed(3)
        network(torch.ones(8, 64)).square().sum().backward()
        assert not torch.equal(network(torch.ones(8, 64)), network(torch.ones(8, 64)))
    assert torch.equal(part[0].weight.grad, checkpointed[0].weight.grad)


@EVERY_MODEL
def test_weights_fit_with_and_without(name: str) -> None:
    plain, checkpointed = model(name, False), model(name, True)
    checkpointed.load_state_dict(plain.state_dict())
    assert list(plain.state_dict()) == list(checkpointed.state_dict())


def test_a_copy_computes_with_its_own_weights() -> None:
    """As the moving average of the weights is one."""
    network = model("unetreg3d", True)
    average = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    moving, fixed = pair("unetreg3d")
    assert not network(moving, fixed)[1].any()
    assert average(moving, fixed)[1].any()


def test_autocast_reaches_the_second_pass() -> None:
    network = model("voxelmorph3d", True)
    types = []
    network.get_submodule("network.net.1.final_conv_0.conv").register_forward_hook(
        lambda _module, _arguments, result: types.append(result.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ddf = network(*pair("voxelmorph3d"))[1]
    ddf.square().mean().backward()
    assert types == [torch.bfloat16, torch.bfloat16]


def test_a_part_is_checkpointed_once() -> None:
    part = nn.Linear(2, 2)
    checkpoint_parts([part, part])
    assert [kind.__name__ for kind in type(part).__mro__[:3]] == ["CheckpointedLinear", "_Checkpointed", "Linear"]
