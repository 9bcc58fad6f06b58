"""What ``python -m usreg.apply`` does: files in, a file out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import UsageError
from ..io.landmark_details import read_details
from ..io.landmark_writing import LANDMARK_SUFFIXES, write_landmarks
from ..io.landmarks import read_landmarks
from ..io.writing import check_output
from ..spatial import Grid
from .application import apply, grid_of_image, map_points
from .chains import links_of


def run(options: argparse.Namespace, console: Console) -> None:
    """Apply the transforms that the command line names.

    Raises:
        UsageError: something that the user can put right, found before any work where that is possible.
    """
    transforms = _split(options.transform)
    if options.points is not None:
        _run_points(options, transforms, console)
        return
    for name in ("moving", "fixed"):
        if getattr(options, name) is None:
            raise UsageError(f"--{name} is missing: an image needs --moving and --fixed; landmarks need --points FILE")
    interpolation = "nearest" if options.nearest else "label" if options.label else "linear"
    found = apply(
        transforms,
        options.moving,
        options.fixed,
        out=options.out,
        interpolation=interpolation,  # type: ignore[arg-type]
        inverse=options.inverse,
        outside=options.outside,
    )
    size = " x ".join(map(str, found.grid.size))
    channels = f", {len(found.voxels)} channels" if len(found.voxels) > 1 else ""
    console.print(
        f"{options.moving} on the grid of {options.fixed} ({size}{channels}): {options.out}",
        markup=False,
        soft_wrap=True,
    )


def _split(given: Sequence[str]) -> list[str]:
    """The transforms; ``[FILE, 1]`` arrives in two pieces where a shell splits it at the blank."""
    joined: list[str] = []
    for piece in given:
        if joined and joined[-1].startswith("[") and not joined[-1].endswith("]"):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _run_points(options: argparse.Namespace, transforms: Sequence[str], console: Console) -> None:
    if options.nearest or options.label:
        raise UsageError("--nearest and --label say how an image is sampled; --points maps landmarks")
    out, points = Path(options.out), Path(options.points)
    check_output(out, LANDMARK_SUFFIXES, [points])
    landmarks = read_landmarks(points)
    space = landmarks.settled_space(options.landmarks_space)
    images: dict[str, Grid | None] = dict.fromkeys(("fixed", "moving"))
    if space == "voxel":
        for name in images:
            if getattr(options, name) is None:
                raise UsageError(
                    f"{points}: its points are voxel indices; --fixed FILE says of which image, and --moving FILE the "
                    "image whose voxels they become"
                )
            images[name] = grid_of_image(getattr(options, name))
    links = links_of(transforms, options.inverse)
    here = images["fixed"]
    world = landmarks.to_world(here, space) if here is not None else landmarks.to_world(_NOWHERE, space)
    written = write_landmarks(out, map_points(links, world), space, images["moving"], read_details(points))
    console.print(
        f"{len(world)} points of the fixed image are where they belong in the moving one ({written}): {out}",
        markup=False,
        soft_wrap=True,
    )


_NOWHERE = Grid((1, 1, 1), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # type: ignore[arg-type]
"""For points in mm, which need no image."""
