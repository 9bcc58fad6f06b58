"""Chains of transforms: how they are given, and what happens to points on their way through them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..errors import DataError, UsageError
from ..io.transforms import read_transform
from ..spatial import Affine, Chain, DisplacementField, Grid, InverseField, Transform
from ..spatial.grid import Points

TransformLike: TypeAlias = "Transform | Path | str"
"""A transform, or its file; ``[FILE,1]`` is the inverse of the one in a file, as ANTs writes it."""

_ANTS = re.compile(r"\[\s*(?P<file>.+?)\s*,\s*(?P<inverse>[01])\s*\]")
_RASTER = 12
_MOST_MISSED = 0.01
"""The share of an image's voxels that may have no inverse, where a field folds."""


@dataclass(frozen=True)
class Link:
    """One transform of a chain.

    Attributes:
        name: its file, or its place in the chain, for messages.
        transform: an affine, a field, or an inverse.
    """

    name: str
    transform: Transform


@dataclass
class Course:
    """What happened to the points that went through a chain.

    Attributes:
        points: how many went.
        outside: by the name of a field, how many met it outside its grid, where they stay.
        missed: by the name of an inverted field, how many have no inverse to its tolerance.
        farthest: by the same, the largest distance in mm by which they miss their way back.
    """

    points: int = 0
    outside: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    farthest: dict[str, float] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """What the user should know.

        Raises:
            DataError: more points than a few have no inverse.
        """
        said = [
            f"{name}: {_share(count, self.points)} lie outside the field's grid; they stay where they are, as in ITK"
            for name, count in self.outside.items()
            if count
        ]
        for name, count in self.missed.items():
            if count:
                text = (
                    f"{name}: {_share(count, self.points)} have no inverse, and miss their way back by up to "
                    f"{self.farthest[name]:.3g} mm: the field folds there or is too steep"
                )
                if count > _MOST_MISSED * self.points:
                    raise DataError(f"{text}. Use the inverse field that the registration wrote")
                said.append(text)
        return said


def _share(count: int, total: int) -> str:
    return f"{count} of {total} points ({100 * count / total:.2g} %)"


def links_of(given: TransformLike | Sequence[TransformLike], inverse: bool = False) -> list[Link]:
    """The transforms of a chain, read, in the order in which a point meets them.

    Args:
        given: one or several. The first is the first that a point of the fixed image meets, as on ANTs's command line.
        inverse: undo the whole chain: the inverses in the opposite order.

    Raises:
        UsageError: a file is missing or no transform; nothing is given.
    """
    several = [given] if isinstance(given, str | Path) or callable(given) else list(given)
    links = [link for number, one in enumerate(several, start=1) for link in _links(one, number)]
    if not links:
        raise UsageError("there is no transform; give one or more")
    return [_inverted(link) for link in reversed(links)] if inverse else links


def _links(given: TransformLike, number: int) -> list[Link]:
    inverse = False
    if isinstance(given, str | Path):
        name = str(given)
        if (match := _ANTS.fullmatch(name)) and not Path(name).exists():
            name, inverse = match["file"], match["inverse"] == "1"
        transform = read_transform(Path(name))
    else:
        name, transform = f"transform {number}", given
    links = [Link(name, part) for part in _flat(transform)]
    return [_inverted(link) for link in reversed(links)] if inverse else links


def _flat(transform: Transform) -> list[Transform]:
    if isinstance(transform, Chain):
        return [part for one in transform.transforms for part in _flat(one)]
    if isinstance(transform, DisplacementField):  # in float64, so that this happens once
        return [replace(transform, displacement=transform.displacement.cpu().double())]
    return [transform]


def _inverted(link: Link) -> Link:
    return Link(link.name, link.transform.inverse())


def mapped(links: Sequence[Link], points: Points, course: Course) -> Points:
    """Points (N, 3) in mm after a chain; what happens on the way is added to the course."""
    course.points += len(points)
    for link in links:
        transform = link.transform
        if isinstance(transform, DisplacementField):
            there = int((~transform.grid.holds(points)).sum())
            course.outside[link.name] = course.outside.get(link.name, 0) + there
        if isinstance(transform, InverseField):
            points, missed = transform.solve(points)
            count = int((missed > transform.tolerance_mm).sum())
            course.missed[link.name] = course.missed.get(link.name, 0) + count
            course.farthest[link.name] = max(course.farthest.get(link.name, 0.0), float(missed.max(initial=0.0)))
        else:
            points = transform(points)
    return points


def check_reach(links: Sequence[Link], fixed: Grid, moving: Grid) -> None:
    """Raise DataError where a chain cannot belong to two images, judged by a raster of points of the fixed one.

    That is: none of the points meets a field on its grid, or none ends in the moving image.
    """
    steps = (np.arange(_RASTER) + 0.5) / _RASTER
    raster = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = fixed.to_world(raster * fixed.size - 0.5)
    for link in links:
        transform = link.transform
        grid = transform.field.grid if isinstance(transform, InverseField) else getattr(transform, "grid", None)
        if grid is not None and not grid.holds(points).any():
            distance = float(np.linalg.norm(points.mean(axis=0) - grid.centre))
            raise DataError(
                f"{link.name}: the field covers no point of the fixed image that reaches it; the middles are "
                f"{distance:.1f} mm apart. Is it the field of this image, and the order of the transforms right? The "
                "first one is the first that a point of the fixed image meets"
            )
        points = transform.solve(points)[0] if isinstance(transform, InverseField) else transform(points)
    if not moving.holds(points).any():
        distance = float(np.linalg.norm(points.mean(axis=0) - moving.centre))
        raise DataError(
            "the transforms take no point of the fixed image into the moving image: the result would be empty. The "
            f"middle of the points ends {distance:.1f} mm from that of the moving image. Check the order of the "
            "transforms, and whether the inverse is meant"
        )


def is_affine(links: Sequence[Link]) -> bool:
    """Whether a chain holds nothing but affines."""
    return all(isinstance(link.transform, Affine) for link in links)
