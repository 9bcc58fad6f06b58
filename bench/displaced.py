"""How well losses register an MR to an ultrasound volume from displaced starts: ``python -m bench.displaced FOLDER``.

The folder is case 24 of RESECT (Xiao et al., "REtroSpective Evaluation of Cerebral Tumors (RESECT)", Medical Physics 44
(2017) 3875-3882), with landmarks of both images. The headers put them on each other; each start moves the MR rigidly
away from there, by a mean of 2 to 8 mm over the landmarks. A rigid registration then looks for the way back. The table
has the mean target registration error (TRE) in mm. ANTs' Mattes takes part with ``--ants PYTHON``, the interpreter of
an environment with antspyx.

``--out FILE`` keeps the results as JSON, row by row; rows that the file has already are kept unless ``--rows`` names
them.
``--publish`` puts them into ``bench/results`` and their table into ``docs/similarities.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

import usreg
from bench.report import fill
from bench.tables import table
from usreg.io import read_landmarks
from usreg.io.transforms import read_transform, write_affine
from usreg.io.writing import write_volume
from usreg.registration.inputs.given import read_pair
from usreg.registration.stages.settings import load_stages
from usreg.spatial import Affine

Points = npt.NDArray[np.float64]

FIXED, MOVING = "Case24-US_fixed.nii.gz", "Case24-T1_moving.nii.gz"
LANDMARKS = "Case24-MRI-beforeUS.tag"
SMALLEST, LARGEST = 2.0, 8.0
STAGE = "stages=[{{stage: rigid, levels: [4, 2], iterations: [100, 50], loss: {loss}}}]"
LNCC = "{name: lncc, kernel_size: 11, smooth_nr: 0, smooth_dr: 1e-3, clamp_smoothing: false}"
INFORMATION = "{name: mutual_information}"
SMALL_MIND, WIDE_MIND = "{name: mind, dilation: 1}", "{name: mind, radius: 3, dilation: 1}"
EMPTY, MARGIN = "fixed_empty=0", "mask_margin=true"
ROWS: dict[str, tuple[str, ...]] = {
    "mind, dilation 1; mask with margin": (SMALL_MIND, EMPTY, MARGIN),
    "mind, radius 3, dilation 1; mask with margin": (WIDE_MIND, EMPTY, MARGIN),
    "mind; mask with margin": ("{name: mind}", EMPTY, MARGIN),
    "mind; mask": ("{name: mind}", EMPTY),
    "mind": ("{name: mind}",),
    "LC2; mask with margin": ("{name: lc2}", EMPTY, MARGIN, "plugins=[bench.lc2_plugin]"),
    "lncc; mask with margin": (LNCC, EMPTY, MARGIN),
    "lncc": (LNCC,),
    "mutual_information; mask": (INFORMATION, EMPTY),
    "mutual_information": (INFORMATION,),
}
"""Of each row the loss, and what the registration is told beside it."""

ANTS = {"Mattes (antspyx); mask": True, "Mattes (antspyx)": False}
"""Whether the row of ANTs has the mask."""

SMALL = 3.0
"""Starts up to this distance, mm, have a column of their own."""

PAGE = Path(__file__).parents[1] / "docs" / "similarities.md"
RESULTS = Path(__file__).parent / "results"
BLOCK = "displaced"


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


def with_usreg(folder: Path, starts: Sequence[Affine], row: str) -> list[Affine]:
    """The maps that a rigid registration ends at."""
    loss, *settings = ROWS[row]
    overrides = [STAGE.format(loss=loss), *settings]
    return [
        usreg.register(folder / FIXED, folder / MOVING, initial=start, overrides=overrides).affine for start in starts
    ]


def with_ants(folder: Path, starts: Sequence[Affine], python: str, masked: bool) -> list[Affine]:
    """The same by ANTs in an environment of its own, with its rigid registration and Mattes' metric."""
    with tempfile.TemporaryDirectory() as scratch:
        mask = {"mask": _write_mask(folder, Path(scratch))} if masked else {}
        jobs = []
        for number, start in enumerate(starts):
            files = {"start": f"{scratch}/start{number}.mat", "found": f"{scratch}/found{number}.mat"}
            write_affine(Path(files["start"]), start)
            jobs.append({"fixed": str(folder / FIXED), "moving": str(folder / MOVING), **mask, **files})
        listed = Path(scratch) / "jobs.json"
        listed.write_text(json.dumps(jobs))
        script = Path(__file__).parent / "register" / "runners" / "ants_rigid.py"
        subprocess.run([python, str(script), str(listed)], check=True, stdout=subprocess.DEVNULL)
        return [_read_affine(Path(job["found"])) for job in jobs]


def _write_mask(folder: Path, scratch: Path) -> str:
    """The file of the mask that the registrations of usreg make for themselves."""
    pair = read_pair(load_stages(None, [EMPTY])[0], folder / FIXED, folder / MOVING)
    assert pair.fixed_mask is not None
    path = scratch / "mask.nii.gz"
    write_volume(path, pair.fixed_mask.voxels.numpy(), pair.fixed_mask.grid)
    return str(path)


def _read_affine(path: Path) -> Affine:
    found = read_transform(path)
    if not isinstance(found, Affine):
        raise TypeError(f"{path} holds no affine")
    return found


def rows_of(content: dict[str, Any]) -> list[dict[str, str]]:
    """The table of results, a row per loss, as :func:`bench.tables.table` takes it."""
    rows = []
    for name in [*ROWS, *ANTS]:
        if name not in content["after"]:
            continue
        after = np.array(content["after"][name])
        before = np.array(content["before"])[: len(after)]
        near = before <= SMALL
        rows.append(
            {
                "loss": name,
                "mean TRE, mm": f"{after.mean():.2f}",
                "median": f"{np.median(after):.2f}",
                "worst": f"{after.max():.2f}",
                "better than the start": f"{(after < before).sum()} of {len(after)}",
                "below 2.3 mm": f"{(after < 2.3).sum()} of {len(after)}",
                f"mean from up to {SMALL:g} mm": f"{after[near].mean():.2f}" if near.any() else "-",
            }
        )
    return rows


def block(path: Path) -> str:
    """The table of a file of results, with a link to it, as :data:`PAGE` has it."""
    content = json.loads(path.read_text())
    return f"{table(rows_of(content))}\n\n([all registrations](../bench/results/{path.name}))"


def publish(content: dict[str, Any]) -> Path:
    """Copy the results under their name, and fill the page."""
    path = RESULTS / f"{content['date']}-displaced.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    PAGE.write_text(fill(PAGE.read_text(), {BLOCK: block(path)}))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.displaced", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder resect_case24")
    parser.add_argument("--count", type=int, default=20, help="displacements")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ants", metavar="PYTHON", help="an interpreter with antspyx")
    names = [*ROWS, *ANTS]
    parser.add_argument("--rows", nargs="*", choices=names, metavar="ROW", help=f"some of: {' | '.join(names)}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the results as JSON")
    parser.add_argument("--publish", action="store_true", help="the results into the repository")
    options = parser.parse_args(arguments)
    if not options.ants and not set(ANTS).isdisjoint(options.rows or ()):
        parser.error("the rows of ANTs need --ants PYTHON, an interpreter with antspyx")
    fixed, moving = landmarks(options.folder)
    starts = displacements(options.count, options.seed, fixed)
    content: dict[str, Any] = {
        "date": date.today().isoformat(),
        "seed": options.seed,
        "headers": tre(Affine(np.eye(4)), fixed, moving),
        "before": [tre(start, fixed, moving) for start in starts],
        "after": {},
    }
    if options.out is not None and options.out.exists():
        known = json.loads(options.out.read_text())
        if (known["seed"], len(known["before"])) != (options.seed, options.count):
            raise SystemExit(f"{options.out} is of other starts: {len(known['before'])} of seed {known['seed']}")
        content["after"] = known["after"]
    wanted = [row for row in names if (options.ants or row in ROWS) and row not in content["after"]]
    for row in wanted if options.rows is None else options.rows:
        ends = with_ants(options.folder, starts, options.ants, ANTS[row]) if row in ANTS else None
        ends = with_usreg(options.folder, starts, row) if ends is None else ends
        content["after"][row] = [tre(end, fixed, moving) for end in ends]
        if options.out is not None:
            options.out.write_text(json.dumps(content, indent=1) + "\n")
    if options.publish:
        print(publish(content))
    print(f"headers: {content['headers']:.2f} mm; starts: {np.mean(content['before']):.2f} mm")
    print(table(rows_of(content)))


if __name__ == "__main__":
    main()
