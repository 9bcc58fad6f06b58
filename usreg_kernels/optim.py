"""Adam for displacement fields: the whole step in one pass, or in two where the longest vector sets its length.

With :class:`FieldAdam` the field is a parameter. :func:`adam_step` returns the update without applying it, for a
registration that composes it with the field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, overload

import torch
from torch.optim.optimizer import ParamsT

from usreg_kernels import checks
from usreg_kernels.ops.field_adam import OP as FIELD_ADAM

Scale = Literal["none", "longest"]

SCALES: tuple[Scale, ...] = get_args(Scale)

_DTYPES = (torch.float64, torch.float32)
_LEAST_EPS = torch.finfo(torch.float32).tiny

_OTHER_STEPS = ("weight_decay", "amsgrad", "maximize")
"""Arguments of ``torch.optim.Adam`` that change what a step is."""

_OTHER_WAYS = ("foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")
"""Those that change how it is computed."""


def adam_step(
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: torch.Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    scale: Scale = "none",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The update of a field by a step of Adam, which is not applied; the three tensors of the state change in place.

    To follow the gradient downhill, add the update to the field (its sign is in it), or compose it:
    ``compose_ddf(ddf, update)``. The state of a new run is ``exp_avg = torch.zeros_like(ddf)``, ``exp_avg_sq`` the
    same, and ``step = torch.zeros((), device=ddf.device)``::

        step       = step + 1
        exp_avg    = beta1 exp_avg    + (1 - beta1) grad
        exp_avg_sq = beta2 exp_avg_sq + (1 - beta2) grad^2
        direction  = exp_avg / (1 - beta1^step) / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps)

        update = -lr direction                                              scale="none"
        update = -lr direction / (longest vector of the sample's direction) scale="longest"

    Args:
        grad: (B, n, spatial...), the gradient of a loss to the field, with n = 1, 2 or 3 spatial axes; float32 or
            float64.
        exp_avg: running mean of the gradient; as ``grad`` in shape, dtype and device. Changed in place.
        exp_avg_sq: running mean of its square; the same. Changed in place.
        step: float32 scalar on the same device: how many steps were taken before. Increased by 1 in place.
        lr: the length of the step, at least 0. With ``scale="none"`` it is about the change of each component in the
            first steps; with ``scale="longest"`` it is the length of each sample's longest vector. In voxels.
        betas: how much of the running means stays at a step, in [0, 1).
        eps: keeps the division finite; at least 1.2e-38.
        scale: ``"none"``, or ``"longest"``: one factor per sample.
        out: as ``grad`` in shape, dtype and device, contiguous, and in other memory than the arguments: the update is
            written there, and returned. New memory where it is missing.

    Returns:
        (B, n, spatial...), in voxels, in the dtype of ``grad``, contiguous, without a gradient. A gradient that is 0
        gives an update of 0 as long as the moments are 0. A component that is NaN or infinite makes that component NaN,
        now and at all later steps; with ``scale="longest"`` all of its sample, also where only the square of a
        gradient overflows.

    Raises:
        TypeError: an argument is no tensor or no number, or of another dtype.
        ValueError: shapes or devices differ; a wrong number of components; a number out of its range; an unknown name.
    """
    _check_field("grad", grad)
    checks.check_pair("grad", grad, "exp_avg", exp_avg)
    checks.check_pair("grad", grad, "exp_avg_sq", exp_avg_sq)
    _check_step(step, grad)
    if out is not None:
        checks.check_pair("grad", grad, "out", out)
        if not out.is_contiguous() or out.requires_grad or _share_memory(out, (grad, exp_avg, exp_avg_sq)):
            raise ValueError(
                "out must be contiguous, need no gradient, and lie in other memory than grad, exp_avg and exp_avg_sq; "
                "leave it out for new memory"
            )
    numbers = _check_numbers({"lr": lr, "betas": betas, "eps": eps, "scale": scale})
    with torch.no_grad():
        update = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device) if out is None else out
        FIELD_ADAM(grad, exp_avg, exp_avg_sq, step, update, **numbers, replace=True)
    return update


class FieldAdam(torch.optim.Optimizer):
    """Adam for parameters that are displacement fields.

    With ``scale="none"`` its steps are those of ``torch.optim.Adam`` without weight decay, to rounding. With
    ``scale="longest"``, the longest vector of each sample's step is ``lr`` voxels long, whatever the loss. The formula,
    and what a gradient gives that is 0 or not finite, are described at :func:`adam_step`.

    The state has the keys of ``torch.optim.Adam``, and :meth:`load_state_dict` takes that of one. A step never waits
    for the device: the number of steps lies there. To capture a step in a CUDA graph, take at least one before, which
    makes the state. The graph keeps the ``lr`` that it was captured with.

    Args:
        params: fields (B, n, spatial...) with n = 1, 2 or 3 spatial axes, float32 or float64, or groups of them as
            dictionaries, each with options of its own. A field, or a gradient, that is not contiguous takes a copy at
            each step.
        lr, betas, eps, scale: as for :func:`adam_step`.
        others: refused, with the reason.

    Raises:
        TypeError: an option of ``torch.optim.Adam`` that is missing here; no number; a parameter of another dtype.
        ValueError: a parameter that is no field; a number out of its range; an unknown ``scale``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        scale: Scale = "none",
        **others: Any,
    ) -> None:
        for name in others:
            raise TypeError(_refusal(name))
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "scale": scale})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add fields, with options of their own.

        Raises:
            TypeError, ValueError: as for the class.
        """
        _refuse_others(param_group)
        _check_numbers({**self.defaults, **param_group})
        before = len(self.param_groups)
        super().add_param_group(param_group)
        try:
            for field in self.param_groups[-1]["params"]:
                _check_field("a parameter of FieldAdam", field)
        except (TypeError, ValueError):
            del self.param_groups[before:]
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move each field that has a gradient.

        Args:
            closure: computes the loss and its gradients once more; called before the step.

        Returns:
            What the closure returns, or None.

        Raises:
            TypeError, ValueError: an option of a group was set to something that is not valid, or a gradient is sparse.
            RuntimeError: the first step of a field is captured in a CUDA graph.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            numbers = _check_numbers(group)
            for field in group["params"]:
                if field.grad is None:
                    continue
                _check_gradient(field.grad, field)
                state = self.state[field]
                if not state:
                    state.update(_new_state(field))
                moments = state["exp_avg"], state["exp_avg_sq"]
                FIELD_ADAM(field.grad, *moments, state["step"], field, **numbers, replace=False)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, of this class or of ``torch.optim.Adam``.

        Options that the saved state does not have, such as ``scale`` in one of Adam, stay as they are.

        Raises:
            ValueError: it has other groups, or comes from an Adam with weight decay, ``amsgrad`` or ``maximize``.
        """
        groups = []
        for i, saved in enumerate(state_dict["param_groups"]):
            for name in _OTHER_STEPS:
                if saved.get(name):
                    raise ValueError(f"the state to load has {name}={saved[name]!r}. {_refusal(name)}")
            own = self.param_groups[i] if i < len(self.param_groups) else {}
            kept = {name: own[name] for name in self.defaults if name in own}
            kept |= {name: value for name, value in saved.items() if name not in (*_OTHER_STEPS, *_OTHER_WAYS)}
            groups.append(kept)
        super().load_state_dict({**state_dict, "param_groups": groups})
        for group in self.param_groups:
            for field in group["params"]:
                state = self.state.get(field)
                if state:
                    state |= {name: state[name].contiguous() for name in ("exp_avg", "exp_avg_sq")}
                    state["step"] = torch.as_tensor(state["step"]).to(field.device, torch.float32, copy=True)


def _new_state(field: torch.Tensor) -> dict[str, torch.Tensor]:
    if field.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("take a step before you capture one: each replay of the graph would set the moments to 0")
    state = {name: torch.zeros_like(field, memory_format=torch.contiguous_format) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), dtype=torch.float32, device=field.device), **state}


def _refusal(name: str) -> str:
    if name in _OTHER_WAYS:
        return (
            f"FieldAdam has no option {name}: there is one way to step, fused, without weight decay, that a CUDA graph "
            f"may capture; leave it out"
        )
    if name in _OTHER_STEPS:
        return f"FieldAdam has no option {name}: use torch.optim.Adam, or leave it out"
    return f"FieldAdam has no option {name!r}; valid: lr, betas, eps, scale"


def _refuse_others(group: dict[str, Any]) -> None:
    for name in (*_OTHER_STEPS, *_OTHER_WAYS):
        if group.get(name):
            raise TypeError(_refusal(name))


def _check_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a group as the op takes them."""
    lr, betas, eps = options["lr"], options["betas"], options["eps"]
    if isinstance(lr, torch.Tensor):
        raise TypeError("lr must be a number, not a tensor: a step would wait for the device to read it")
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {betas!r}")
    numbers = [checks.check_number("each of betas", beta, least=0) for beta in betas]
    if max(numbers) >= 1:
        raise ValueError(f"betas must lie in [0, 1), got {betas!r}")
    return {
        "lr": checks.check_number("lr", lr, least=0),
        "beta1": numbers[0],
        "beta2": numbers[1],
        "eps": checks.check_number("eps", eps, least=_LEAST_EPS),
        "longest": checks.check_choice("scale", options["scale"], SCALES) == "longest",
    }


def _check_dense(name: str, tensor: torch.Tensor) -> None:
    if isinstance(tensor, torch.Tensor) and tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got layout {tensor.layout}; convert it with .to_dense()")


def _check_field(name: str, field: torch.Tensor) -> None:
    _check_dense(name, field)
    checks.check_field(name, field)
    if field.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {field.dtype}: convert it with .float()")


def _share_memory(tensor: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    own = tensor.untyped_storage().data_ptr()
    return own != 0 and any(own == other.untyped_storage().data_ptr() for other in others)


def _check_gradient(grad: torch.Tensor, field: torch.Tensor) -> None:
    """Check the gradient of a parameter; torch checks its shape and device."""
    _check_dense("a gradient", grad)
    if grad.dtype != field.dtype:
        raise TypeError(f"a gradient must have the dtype of its field, {field.dtype}, got {grad.dtype}")


def _check_step(step: torch.Tensor, grad: torch.Tensor) -> None:
    valid = isinstance(step, torch.Tensor) and step.ndim == 0 and step.dtype == torch.float32
    if not valid or step.device != grad.device:
        given = f"{tuple(step.shape)}, {step.dtype}, {step.device}" if isinstance(step, torch.Tensor) else repr(step)
        start = f"torch.zeros((), device={str(grad.device)!r})"
        raise TypeError(f"step must be a float32 scalar tensor on {grad.device}, at first {start}; got {given}")


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {FIELD_ADAM.name: adam_step}
"""The function of each op, by the op's name."""
