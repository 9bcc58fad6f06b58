"""How well losses register an MR to an ultrasound volume from displaced starts: ``python -m bench.displaced FOLDER``.

The folder is case 24 of RESECT (Xiao et al., "REtroSpective Evaluation of Cerebral Tumors (RESECT)", Medical Physics 44
(2017) 3875-3882), with landmarks of both images. The headers put them on each other; each start moves the MR rigidly
away from there, by a mean of 2 to 8 mm over the landmarks. A rigid registration then looks for the way back. The table
has the mean target registration error (TRE) in mm. ANTs' Mattes takes part with ``--ants PYTHON``, the interpreter of
an environment with antspyx.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

import usreg
from bench.tables import table
from usreg.io import read_landmarks
from usreg.io.transforms import read_transform, write_affine
from usreg.spatial import Affine

Points = npt.NDArray[np.float64]

FIXED, MOVING = "Case24-US_fixed.nii.gz", "Case24-T1_moving.nii.gz"
LANDMARKS = "Case24-MRI-beforeUS.tag"
SMALLEST, LARGEST = 2.0, 8.0
LOSSES = {
    "lncc": "{name: lncc, kernel_size: 11, smooth_nr: 0, smooth_dr: 1e-3, clamp_smoothing: false}",
    "mutual_information": "{name: mutual_information}",
}
STAGE = "stages=[{{stage: rigid, levels: [4, 2], iterations: [100, 50], loss: {loss}}}]"


def landmarks(folder: Path) -> tuple[Points, Points]:
    """(N, 3) mm, RAS: the points of the fixed image, and where they are in the moving one."""
    file = folder / LANDMARKS
    moving, fixed = (read_landmarks(Path(f"{file}#{volume}")).points for volume in (1, 2))
    return fixed, moving


def displacements(count: int, seed: int, points: Points) -> list[Affine]:
    """Rigid maps about the landmarks' centre, whose mean distances over them run evenly from 2 to 8 mm."""
    generator = np.random.default_rng(seed)
    centre = points.mean(axis=0)
    spread = np.linalg.norm(points - centre, axis=1).mean()
    found = []
    for wanted in np.linspace(SMALLEST, LARGEST, count):
        turn, shift = generator.normal(size=(2, 3))
        turn /= spread  # both move the landmarks by about the same

        def at(scale: float, turn: Points = turn, shift: Points = shift) -> Affine:
            matrix = np.eye(4)
            matrix[:3, :3] = Rotation.from_rotvec(scale * turn).as_matrix()
            matrix[:3, 3] = centre + scale * shift - matrix[:3, :3] @ centre
            return Affine(matrix)

        low, high = 0.0, 100.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            too_far = np.linalg.norm(at(middle)(points) - points, axis=1).mean() > wanted
            low, high = (low, middle) if too_far else (middle, high)
        found.append(at(low))
    return found


def tre(affine: Affine, fixed: Points, moving: Points) -> float:
    """Mean distance in mm of the mapped points from where they should be."""
    return float(np.linalg.norm(affine(fixed) - moving, axis=1).mean())


def with_usreg(folder: Path, starts: Sequence[Affine], loss: str) -> list[Affine]:
    """The maps that a rigid registration ends at."""
    stage = STAGE.format(loss=LOSSES[loss])
    return [
        usreg.register(folder / FIXED, folder / MOVING, initial=start, overrides=[stage]).affine for start in starts
    ]


def with_ants(folder: Path, starts: Sequence[Affine], python: str) -> list[Affine]:
    """The same by ANTs in an environment of its own, with its rigid registration and Mattes' metric."""
    with tempfile.TemporaryDirectory() as scratch:
        jobs = []
        for number, start in enumerate(starts):
            files = {"start": f"{scratch}/start{number}.mat", "found": f"{scratch}/found{number}.mat"}
            write_affine(Path(files["start"]), start)
            jobs.append({"fixed": str(folder / FIXED), "moving": str(folder / MOVING), **files})
        listed = Path(scratch) / "jobs.json"
        listed.write_text(json.dumps(jobs))
        script = Path(__file__).parent / "register" / "runners" / "ants_rigid.py"
        subprocess.run([python, str(script), str(listed)], check=True, stdout=subprocess.DEVNULL)
        return [_read_affine(Path(job["found"])) for job in jobs]


def _read_affine(path: Path) -> Affine:
    found = read_transform(path)
    if not isinstance(found, Affine):
        raise TypeError(f"{path} holds no affine")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.displaced", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder resect_case24")
    parser.add_argument("--count", type=int, default=20, help="displacements")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ants", metavar="PYTHON", help="an interpreter with antspyx")
    options = parser.parse_args(arguments)
    fixed, moving = landmarks(options.folder)
    starts = displacements(options.count, options.seed, fixed)
    before = np.array([tre(start, fixed, moving) for start in starts])
    found = {loss: with_usreg(options.folder, starts, loss) for loss in LOSSES}
    if options.ants:
        found["Mattes (antspyx)"] = with_ants(options.folder, starts, options.ants)
    print(f"headers: {tre(Affine(np.eye(4)), fixed, moving):.2f} mm; starts: {before.mean():.2f} mm")
    rows = []
    for name, ends in found.items():
        after = np.array([tre(end, fixed, moving) for end in ends])
        rows.append(
            {
                "loss": name,
                "mean TRE, mm": f"{after.mean():.2f}",
                "median": f"{np.median(after):.2f}",
                "worst": f"{after.max():.2f}",
                "better than the start": f"{(after < before).sum()} of {len(after)}",
                "below 2.3 mm": f"{(after < 2.3).sum()} of {len(after)}",
            }
        )
    print(table(rows))


if __name__ == "__main__":
    main()
