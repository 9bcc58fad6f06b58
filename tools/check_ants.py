"""Do ANTs and usreg read each other's transforms alike? The check behind docs/apply.md, where antspyx is installed.

Run by an interpreter that has antspyx (0.6.3) and NumPy; usreg is run by another one, given by ``--usreg``:

    python3 -m venv /tmp/env-ants && /tmp/env-ants/bin/pip install antspyx==0.6.3
    /tmp/env-ants/bin/python tools/check_ants.py FIXED MOVING [MOVING_LABEL] --usreg .venv/bin/python

It registers the pair once with each program, warps with both programs through the files of each, and prints by how much
the results differ. Exit status 1 where they do: images by more than 1e-3 (relative, two voxels inside the border),
labels in more than 1 voxel of 1,000, points by more than 0.01 mm.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ants  # type: ignore[import-not-found]
import numpy as np

MOST = {"image": 1e-3, "labels": 1e-3, "points": 0.01}
MARGIN = 2  # voxels beside the border that do not count


class Check:
    """Warps with both programs and compares.

    Args:
        usreg: an interpreter that has usreg.
        fixed: the fixed image's file.
        moving: the moving image's file.
        label: the moving label's file, or None.
        folder: for results.
    """

    def __init__(self, usreg: str, fixed: str, moving: str, label: str | None, folder: Path) -> None:
        self.usreg, self.fixed, self.moving, self.label, self.folder = usreg, fixed, moving, label, folder
        self.good = True

    def run_usreg(self, command: str, *arguments: object) -> None:
        """Run a command of usreg."""
        subprocess.run([self.usreg, "-m", f"usreg.{command}", *map(str, arguments)], check=True, stdout=sys.stderr)

    def compare(self, name: str, transforms: Sequence[str], inverse: Sequence[bool], swapped: bool = False) -> None:
        """Print how far the two programs' results through a chain of files differ.

        Args:
            name: of the chain.
            transforms: files, in ANTs's order.
            inverse: of which of them the inverse is meant.
            swapped: the chain leads from the moving image to the fixed one.
        """
        fixed, moving = (self.moving, self.fixed) if swapped else (self.fixed, self.moving)
        chain = [f"[{file},1]" if undo else file for file, undo in zip(transforms, inverse, strict=True)]
        same: dict[str, object] = {"transformlist": list(transforms), "whichtoinvert": list(inverse)}
        on = ants.image_read(fixed)
        theirs = ants.apply_transforms(on, ants.image_read(moving), interpolator="linear", **same).numpy()
        ours = self._apply(chain, moving, fixed)
        inside = tuple(slice(MARGIN, -MARGIN) for _ in range(3))
        everywhere = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        found = {"image": np.linalg.norm((ours - theirs)[inside]) / np.linalg.norm(theirs[inside])}
        if self.label is not None and not swapped:
            label = ants.image_read(self.label)
            theirs = ants.apply_transforms(on, label, interpolator="genericLabel", **same).numpy()
            found["labels"] = float((self._apply(chain, self.label, fixed, "--label") != theirs).mean())
        found["points"] = self._points(chain, same, on)
        values = ", ".join(f"{what} {value:.1e}" for what, value in found.items())
        print(f"| {name} | {values} | {everywhere:.1e} |")
        self.good &= all(value <= MOST[what] for what, value in found.items())

    def _apply(self, chain: Sequence[str], moving: str, fixed: str, *options: str) -> np.ndarray:
        out = self.folder / "out.nii.gz"
        self.run_usreg("apply", *options, "--moving", moving, "--fixed", fixed, "--out", out, "--transform", *chain)
        return ants.image_read(str(out)).numpy()

    def _points(self, chain: Sequence[str], same: dict[str, object], on: ants.ANTsImage) -> float:
        """The largest distance in mm between where the two programs send points of an image."""
        import pandas  # type: ignore[import-untyped]  # a dependency of antspyx

        steps = np.stack(np.meshgrid(*([np.linspace(0.2, 0.8, 5)] * 3), indexing="ij"), -1).reshape(-1, 3)
        points = on.origin + (steps * on.shape * on.spacing) @ np.array(on.direction).T
        frame = pandas.DataFrame(points, columns=["x", "y", "z"])
        theirs = ants.apply_transforms_to_points(3, frame, **same)[["x", "y", "z"]].to_numpy()
        given, out = self.folder / "points.csv", self.folder / "mapped.csv"
        np.savetxt(given, points, delimiter=",", header="L,P,S", comments="")
        self.run_usreg("apply", "--points", given, "--out", out, "--transform", *chain)
        ours = np.loadtxt(out, delimiter=",", skiprows=1)
        return float(np.linalg.norm(ours - theirs, axis=1).max())


def turned(file: str, out: Path, axes: tuple[int, int, int]) -> str:
    """A copy of an image on an oblique, anisotropic, left-handed grid, its array's axes exchanged; the new file.

    Images that lay in one world still do: all are turned and stretched about one point.
    """
    image = ants.image_read(file)
    turn = np.linalg.qr(np.array([[1.0, 0.3, -0.2], [-0.25, 1.0, 0.35], [0.2, -0.3, 1.0]]))[0]
    world = turn @ np.diag([-0.9, 1.3, 1.1])
    steps = world @ np.array(image.direction) @ np.diag(image.spacing)
    steps = steps[:, axes]
    spacing = np.linalg.norm(steps, axis=0)
    origin = world @ np.array(image.origin)
    array = np.ascontiguousarray(image.numpy().transpose(axes))
    ants.image_write(
        ants.from_numpy(array, origin.tolist(), spacing.tolist(), steps / spacing).clone(image.pixeltype), str(out)
    )
    return str(out)


def main() -> int:
    """Compare; 0 where both programs agree, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixed")
    parser.add_argument("moving")
    parser.add_argument("label", nargs="?", help="labels of the moving image")
    parser.add_argument("--turned", action="store_true", help="first put the images on oblique, left-handed grids")
    parser.add_argument("--usreg", metavar="PYTHON", default=sys.executable, help="an interpreter that has usreg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.turned:
            options.fixed = turned(options.fixed, folder / "fixed.nii.gz", (2, 0, 1))
            options.moving = turned(options.moving, folder / "moving.nii.gz", (0, 1, 2))
            if options.label is not None:
                options.label = turned(options.label, folder / "label.nii.gz", (0, 1, 2))
        check = Check(options.usreg, options.fixed, options.moving, options.label, folder)
        images = [ants.image_read(file) for file in (options.fixed, options.moving)]
        ants.registration(*images, "SyN", outprefix=str(folder / "ants_"), random_seed=1)
        check.run_usreg("register", "--fixed", options.fixed, "--moving", options.moving, "--out", folder / "ours")
        print("| transforms | differences (points in mm) | image, border too |\n|---|---|---|")
        affine, warp, back = (
            str(folder / f"ants_{n}") for n in ("0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz")
        )
        check.compare("ANTs, forward", [warp, affine], [False, False])
        check.compare("ANTs, back", [affine, back], [True, False], swapped=True)
        affine, warp, back = (str(folder / "ours" / n) for n in ("affine.mat", "field.nii.gz", "inverse_field.nii.gz"))
        check.compare("usreg, forward", [warp, affine], [False, False])
        check.compare("usreg, back", [affine, back], [True, False], swapped=True)
        warped = ants.image_read(str(folder / "ours" / "warped.nii.gz")).numpy()
        theirs = ants.apply_transforms(*images, [warp, affine], interpolator="linear").numpy()
        inside = tuple(slice(MARGIN, -MARGIN) for _ in range(3))
        error = float(np.linalg.norm((warped - theirs)[inside]) / np.linalg.norm(theirs[inside]))
        print(f"| warped.nii.gz of usreg.register, against ANTs through its files | image {error:.1e} | |")
        check.good &= error <= MOST["image"]
    return 0 if check.good else 1


if __name__ == "__main__":
    sys.exit(main())
