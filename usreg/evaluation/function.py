"""``usreg.evaluate``: trained networks, and registration without one, on a list of cases."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import Progress

from ..config import Config, load_config
from ..errors import ConfigError, DataError, UsageError
from ..training.checkpoints import find_checkpoint
from ..training.run_folder import make_run_folder
from ..training.setup import make_accelerator
from .methods import Method, method_of_checkpoint, method_of_registration
from .results import CASES, CaseResult, Results
from .running import cases_of, run_method
from .saving import SAVED, save_case
from .tables import show

logger = logging.getLogger(__name__)

REGISTRATION = "register"
"""The name of the method without a network."""

_DIFFERENT = 1e-4


def evaluate(
    checkpoint: str | Path | Sequence[str | Path] = (),
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    register: bool | str | Path = False,
    split: str | None = None,
    out: str | Path | None = None,
    save: Collection[str] = (),
    worst: int = 5,
    console: Console | None = None,
) -> Results:
    """Evaluate trained networks on a list of cases, with the metrics of the validation in training.

    Where several processes run this (``accelerate launch``, ``torchrun``), they share the cases.

    Args:
        checkpoint: one or several: checkpoints, or folders of runs (the checkpoint with the lowest validation loss,
            else the last one).
        config: a YAML file in place of the configs in the checkpoints.
        overrides: ``key=value``, for every config.
        register: compare with registration without a network: True for its packaged default, or its YAML file.
        split: the list of cases: ``"test"``, ``"val"`` or ``"train"``; None takes ``test``, and ``val`` where the
            manifest has none.
        out: the folder for results, which is made; a taken name gets a number. None writes nothing.
        save: what to write for each case: some of ``"warped"``, ``"labels"``, ``"fields"`` and ``"pictures"``.
        worst: how many of the worst cases are shown.
        console: shows tables; quiet where it is missing.

    Returns:
        Metrics by case, before and after.

    Raises:
        UsageError: no or a damaged checkpoint, one of another model, no such list, files that cannot be used, runs of
            other cases, or a folder that cannot be written.
    """
    runs = [Path(one) for one in ([checkpoint] if isinstance(checkpoint, str | Path) else checkpoint)]
    wanted = _checked_save(save, out)
    methods = _methods(runs, None if config is None else Path(config), overrides, register)
    accelerator = make_accelerator(methods[0].config)
    lists = _lists(methods, split)
    folder = _folder(accelerator, out)
    console = console if console is not None and accelerator.is_main_process else Console(quiet=True)
    found: dict[str, list[CaseResult]] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for method, (dataset, _) in zip(methods, lists, strict=True):
            console.print(f"{method.name}: {method.source}, {len(dataset)} cases", markup=False, soft_wrap=True)
            task = bar.add_task(method.name, total=-(-len(dataset) // accelerator.num_processes))
            observe = partial(_save, folder, method, wanted)
            found[method.name] = run_method(method, dataset, accelerator, observe, partial(bar.advance, task))
            _check_cases(found)
    results = Results(lists[0][1], found, folder)
    if folder is not None and accelerator.is_main_process:
        results.write(folder)
    show(results, console, worst)
    accelerator.wait_for_everyone()
    return results


def _checked_save(save: Collection[str], out: str | Path | None) -> set[str]:
    if unknown := sorted(set(save) - set(SAVED)):
        raise ConfigError(f"save is {', '.join(unknown)}; it must be some of {', '.join(SAVED)}")
    if save and out is None:
        raise ConfigError("what is saved needs a folder: give out")
    return set(save)


def _methods(
    runs: Sequence[Path], config: Path | None, overrides: Sequence[str], register: bool | str | Path
) -> list[Method]:
    """All methods, networks first; the first one's config says which cases the registration gets."""
    if not runs and config is None:
        raise UsageError("there is no checkpoint; registration by itself needs --config FILE, which says which cases")
    if not runs and not register:
        raise UsageError("there is nothing to evaluate: give a checkpoint, or register")
    names = _names(runs)
    methods = [method_of_checkpoint(run, name, config, overrides) for run, name in zip(runs, names, strict=True)]
    if register:
        file = None if register is True else Path(register)
        cases: Config = methods[0].config if methods else load_config(config, overrides)
        methods.append(method_of_registration(file, REGISTRATION, cases))
    return methods


def _names(runs: Sequence[Path]) -> list[str]:
    """Short names that differ: the run's folder, with the checkpoint where a file is given, as far up as is needed."""
    found = [find_checkpoint(run).resolve() for run in runs]
    if len(set(found)) < len(found):
        raise UsageError(f"a checkpoint is given twice: {', '.join(map(str, runs))}")
    places = [path if run.is_file() else path.parent for run, path in zip(runs, found, strict=True)]
    places = [place.with_suffix("") if place.is_file() else place for place in places]
    for depth in range(1, max((len(place.parts) for place in places), default=1) + 1):
        names = ["-".join(place.parts[-depth - (run.is_file()) :]) for run, place in zip(runs, places, strict=True)]
        if len({*names, REGISTRATION}) == len(names) + 1:
            break
    return names if runs else []


def _lists(methods: Sequence[Method], split: str | None) -> list[tuple[Any, str]]:
    """The cases of each method; the same object where the configs ask for the same."""
    lists: list[tuple[Any, str]] = []
    for number, method in enumerate(methods):
        alike = (n for n in range(number) if _same_cases(methods[n].config, method.config))
        known = next(alike, None)
        lists.append(lists[known] if known is not None else cases_of(method.config, split))
    sizes = {method.name: len(dataset) for method, (dataset, _) in zip(methods, lists, strict=True)}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"the runs have different numbers of cases: {listed}; give one config for all by --config")
    return lists


def _same_cases(one: Config, other: Config) -> bool:
    keys = ("val_dataset", "train_dataset", "image_size")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


def _check_cases(found: dict[str, list[CaseResult]]) -> None:
    """Raise DataError where the last method had other cases than the first; warn where it saw them differently."""
    first, last = next(iter(found)), next(reversed(found))
    for one, other in zip(found[first], found[last], strict=True):
        if one.case != other.case:
            raise DataError(
                f"the runs have different cases: {one.case} of {first} is {other.case} of {last}; give one config for "
                "all by --config"
            )
    different = sorted(
        {
            name
            for one, other in zip(found[first], found[last], strict=True)
            for name in one.before.keys() & other.before.keys()
            if abs(one.before[name] - other.before[name]) > _DIFFERENT * max(1.0, abs(one.before[name]))
        }
    )
    if different:
        logger.warning(
            "%s and %s prepare the cases differently (image_size, intensities): %s differ before registration, so that "
            "a comparison of these is no comparison of the methods",
            *(first, last, ", ".join(different)),
        )


def _folder(accelerator: Accelerator, out: str | Path | None) -> Path | None:
    """The folder, made by the main process, known to all."""
    if out is None:
        return None
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = make_run_folder(str(out), None, option="--out DIR", claim=CASES)
        except UsageError as error:
            outcome[0] = error
    outcome = broadcast_object_list(outcome)
    if isinstance(outcome[0], UsageError):
        raise outcome[0]
    return outcome[0]


def _save(folder: Path | None, method: Method, wanted: set[str], index: int, inputs: dict[str, Any]) -> None:
    if folder is not None and wanted:
        section = method.config.val_dataset or method.config.train_dataset
        save_case(folder / method.name, index, inputs, wanted, section.get("labels"))
