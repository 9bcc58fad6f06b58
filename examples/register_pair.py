"""Register a pair in Python, judge the result, and draw it.

    python examples/register_pair.py [FOLDER] [--scale 0.5]

The pair is made up, so that the true answer is known: the abdomen of a person who turned and breathed between two
scans. Writes pictures into FOLDER (example_pair).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import usreg
from usreg.registration.demo import make_pair
from usreg.registration.measures import measure
from usreg.registration.results import Inputs, make_results
from usreg.spatial import Affine
from usreg.viz.pair_pictures import PairVolumes, draw_before_after, draw_deformation


def main() -> None:
    parser = argparse.ArgumentParser(description="Register a made-up pair.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("example_pair"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of voxels along each axis")
    options = parser.parse_args()

    # Two images on grids of their own. Yours come from files: usreg.registration.pair.Volume(voxels, grid).
    pair = make_pair(options.scale)
    found = usreg.register(pair.fixed, pair.moving)

    # Labels and landmarks say how good it is. "before" is where the headers put the two images.
    inputs = Inputs(
        fixed=pair.fixed,
        moving=pair.moving,
        start=Affine(np.eye(4)),
        fixed_label=pair.fixed_label,
        moving_label=pair.moving_label,
        fixed_points=pair.fixed_points,
        moving_points=pair.moving_points,
    )
    results = make_results(inputs, found)
    print(f"{'measure':<22}{'before':>10}{'after':>10}")
    for name, values in measure(inputs, found, results).items():
        numbers = ("" if value is None else f"{value:.3g}" for value in (values["before"], values["after"]))
        print(f"{name:<22}" + "".join(f"{number:>10}" for number in numbers), values.get("unit", ""))

    options.folder.mkdir(parents=True, exist_ok=True)
    volumes = PairVolumes.of(inputs, found, results)
    (options.folder / "before_after.png").write_bytes(draw_before_after(volumes))
    (options.folder / "deformation.png").write_bytes(draw_deformation(volumes))
    print(f"pictures in {options.folder}/")


if __name__ == "__main__":
    main()
