"""``usreg.register`` and its command: what they take, where they start, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

import usreg
from usreg import register
from usreg.errors import ConfigError, DataError, UsageError
from usreg.io.transforms import write_affine, write_field
from usreg.models import build_model
from usreg.registration.inputs.preparing import Volume
from usreg.registration.transforms.network import load_network, predict
from usreg.registration.transforms.starts import field_in_mm
from usreg.spatial import Affine, DisplacementField, Grid, resample
from usreg.training.checkpoints import save_checkpoint
from usreg_kernels import gaussian_smooth, warp

AFFINE = np.array([[-1.0, 0, 0, 12], [0, 1.2, 0, -14], [0, 0, 0.9, 5], [0, 0, 0, 1]])
SIZE = (24, 22, 20)
SHIFT = (2.0, -1.0, 1.5)
NOTHING = "stages=[{stage: affine, levels: [1], iterations: [0]}]"
NO_FIELD = "stages=[{stage: greedy, levels: [1], iterations: [0]}]"
MOVED = "stages=[{stage: translation, levels: [2, 1], iterations: [60, 30]}]"


def texture(size: Sequence[int] = SIZE) -> np.ndarray:
    noise = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    return gaussian_smooth(noise, [1.5 if length > 1 else 0.0 for length in size])[0, 0].numpy()


def moved_affine(affine: np.ndarray = AFFINE, shift: Sequence[float] = SHIFT) -> np.ndarray:
    """Of the moving image: the same voxels, so many mm further on."""
    moved = affine.copy()
    moved[:3, 3] += shift
    return moved


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return str(path)


def test_arrays_tensors_and_files_give_one_result(tmp_path: Path) -> None:
    image = texture()
    given: list[Callable[[np.ndarray, str], object]] = [
        lambda affine, name: (image, affine),
        lambda affine, name: (torch.from_numpy(image)[None], torch.from_numpy(affine)),
        lambda affine, name: MetaTensor(torch.from_numpy(image)[None], affine=torch.from_numpy(affine)),
        lambda affine, name: Volume(torch.from_numpy(image)[None], Grid(SIZE, affine)),
        lambda affine, name: save(tmp_path / name, image, affine),
    ]
    found = [
        usreg.register(make(AFFINE, "f.nii.gz"), make(moved_affine(), "m.nii.gz"), overrides=[MOVED]) for make in given
    ]
    np.testing.assert_allclose(found[0].affine.matrix[:3, 3], SHIFT, atol=0.15)
    for other in found[1:]:
        np.testing.assert_allclose(other.affine.matrix, found[0].affine.matrix, atol=1e-4)
    assert found[0].warped.shape == (1, *SIZE)
    assert found[0].field is None
    assert found[0].report["measures"]["ncc"]["after"] > 0.98 > found[0].report["measures"]["ncc"]["before"]
    json.dumps(found[0].report, allow_nan=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (texture(), r"fixed is ndarray; it must be a file, a tuple \(array, affine\)"),
        ((texture()[0, 0], AFFINE), r"fixed has the shape \(20,\)"),
        ((texture(), np.zeros((4, 4))), "fixed: affine must be"),
        ((np.full(SIZE, np.inf), AFFINE), "the fixed: 10560 of 10560 voxels are infinite"),
        ((np.ones(SIZE), AFFINE), "the fixed image is constant"),
        ("nothing.nii.gz", "nothing.nii.gz: no such file"),
    ],
)
def test_images_that_are_none(given: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        usreg.register(given, (texture(), AFFINE), overrides=[NOTHING])  # type: ignore[arg-type]


def test_slices_from_files_and_arrays(tmp_path: Path) -> None:
    image = texture((40, 36, 1))[..., 0]
    fixed = save(tmp_path / "fixed.nii.gz", image)
    moving = save(tmp_path / "moving.nii.gz", image, moved_affine(shift=(2.0, -1.0, 0.0)))
    assert nib.load(fixed).shape == (40, 36)
    for pair in ((fixed, moving), ((image, AFFINE), (image, moved_affine(shift=(2.0, -1.0, 0.0))))):
        found = usreg.register(*pair, overrides=[MOVED])
        np.testing.assert_allclose(found.affine.matrix[:3, 3], (2.0, -1.0, 0.0), atol=0.15)
    arguments = ["--fixed", fixed, "--moving", moving, "--out", str(tmp_path / "out"), "--no-pictures", "--quiet"]
    assert register.main([*arguments, "stages[1].iterations=[10,5,2]", "stages[0].iterations=[20,10]"]) == 0
    assert nib.load(tmp_path / "out" / "field.nii.gz").shape == (40, 36, 1, 1, 3)


def test_nan_is_an_error_filled_or_left_out() -> None:
    image = texture()
    broken = image.copy()
    broken[:6] = np.nan
    pair = (broken, AFFINE), (image, moved_affine())
    with pytest.raises(DataError, match=r"voxels are NaN; set nan=fill .* or nan=mask"):
        usreg.register(*pair, overrides=[NOTHING])
    usreg.register(*pair, overrides=[NOTHING, "nan=fill"])
    found = usreg.register(*pair, overrides=[MOVED, "nan=mask"])
    np.testing.assert_allclose(found.affine.matrix[:3, 3], SHIFT, atol=0.25)
    with pytest.raises(DataError, match="all voxels are NaN"):
        usreg.register((np.full(SIZE, np.nan), AFFINE), pair[1], overrides=[NOTHING, "nan=mask"])


def test_the_command_takes_masks_landmarks_and_starts(tmp_path: Path) -> None:
    image = texture()
    files = {
        "--fixed": save(tmp_path / "f.nii.gz", image),
        "--moving": save(tmp_path / "m.nii.gz", image, moved_affine(shift=(300.0, 0, 0))),
        "--fixed-mask": save(tmp_path / "mask.nii.gz", np.ones(SIZE, np.uint8)),
        "--fixed-landmarks": str(tmp_path / "f.txt"),
        "--moving-landmarks": str(tmp_path / "m.txt"),
    }
    points = np.array([[0, 0, 5], [10, 1, 6], [2, 9, 7], [4, 5, 14.0]])
    np.savetxt(files["--fixed-landmarks"], points)
    np.savetxt(files["--moving-landmarks"], points + np.array([300.0, 0, 0]))
    arguments = [part for pair in files.items() for part in pair]
    arguments += ["--landmarks-space", "ras", "--out", str(tmp_path / "out"), "--no-pictures", "--quiet", NO_FIELD]
    assert register.main([*arguments, "start=landmarks"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    np.testing.assert_allclose(np.array(report["affine_ras"])[:3, 3], (300.0, 0, 0), atol=1e-6)
    assert report["files"]["fixed_mask"] == files["--fixed-mask"]
    assert report["measures"]["tre"]["after"] < 1e-6
    assert report["start"] == "pairs of landmarks"


def test_an_initial_chain_of_files_is_where_it_starts(tmp_path: Path) -> None:
    image, grid = texture(), Grid(SIZE, AFFINE)
    noise = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1)) - 0.5
    field = field_in_mm(40 * gaussian_smooth(noise, 3.0), grid)
    shift = np.eye(4)
    shift[:3, 3] = (90.0, 0, 0)
    write_field(tmp_path / "field.nii.gz", field)
    write_affine(tmp_path / "shift.mat", Affine(shift))
    chain = [str(tmp_path / "field.nii.gz"), str(tmp_path / "shift.mat")]
    moving = (image, moved_affine(shift=(90.0, 0, 0)))
    found = usreg.register((image, AFFINE), moving, initial=chain, overrides=[NO_FIELD])
    assert found.field is not None
    torch.testing.assert_close(found.field.displacement.float(), field.displacement.float(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.affine.matrix, shift, atol=1e-6)
    files = [save(tmp_path / "f.nii.gz", image), save(tmp_path / "m.nii.gz", *moving)]
    arguments = ["--fixed", files[0], "--moving", files[1], "--out", str(tmp_path / "out"), "--no-pictures", "--quiet"]
    arguments += ["--initial", chain[0], "--initial", chain[1], NO_FIELD]
    assert register.main(arguments) == 0
    ours = nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata()
    np.testing.assert_allclose(ours, found.warped[0].numpy(), atol=1e-4)


def test_a_transform_file_that_is_none(tmp_path: Path) -> None:
    pair = (texture(), AFFINE), (texture(), AFFINE)
    (tmp_path / "words.tfm").write_text("not a transform")
    with pytest.raises(UsageError, match=r"words.tfm is no transform of ITK"):
        usreg.register(*pair, initial=str(tmp_path / "words.tfm"), overrides=[NOTHING])
    with pytest.raises(UsageError, match="there is no transform file"):
        usreg.register(*pair, initial="missing.mat", overrides=[NOTHING])
    with pytest.raises(UsageError, match="start=landmarks needs fixed_landmarks and moving_landmarks"):
        usreg.register(*pair, overrides=[NOTHING, "start=landmarks"])
    with pytest.raises(DataError, match=r"fixed_landmarks has 3 landmarks and moving_landmarks 4"):
        usreg.register(*pair, fixed_landmarks=np.eye(3), moving_landmarks=np.eye(4, 3), overrides=[NOTHING])


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = save(tmp_path / "f.nii.gz", texture())
    (tmp_path / "file").write_text("")
    assert register.main(["--fixed", fixed, "--moving", fixed, "--out", str(tmp_path / "file" / "out"), NOTHING]) == 2
    assert "cannot write to the folder" in capsys.readouterr().err


DATASET = {"name": "custom_dataset", "json_file": "x.json"}
MODEL = {"name": "unetreg3d", "channels": [4, 8], "strides": [2], "num_res_units": 0}


def checkpoint(
    folder: Path,
    dataset: dict[str, object] | None = None,
    channels: int = 1,
    size: Sequence[int] = (16, 16, 16),
    **changed: object,
) -> Path:
    """A run's folder with a network whose field is not zero."""
    torch.manual_seed(0)
    section = MODEL if channels == 1 else {**MODEL, "image_channels": channels}
    model = build_model(section, image_size=tuple(size))
    for parameter in list(model.parameters())[-2:]:
        torch.nn.init.normal_(parameter, std=0.3)
    config = {"model": section, "image_size": list(size), "train_dataset": dataset or DATASET, "plugins": []}
    entries = {
        "model": model.state_dict(),
        "loss": {},
        "scheduler": None,
        "ema": None,
        "optimizer": {},
        "scaler": None,
        "progress": {},
        "random": [],
    }
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder / "last.pt", {**entries, "config": config} | changed)
    return folder


def test_a_network_with_no_iterations_is_inference(tmp_path: Path) -> None:
    """The start is the field of the network on its own grid, seen from the images' own grids."""
    folder = checkpoint(tmp_path / "run")
    fixed, moving = texture(), texture()[::-1].copy()
    moving_affine = moved_affine(shift=(4.0, 3.0, 0))
    found = usreg.register((fixed, AFFINE), (moving, moving_affine), checkpoint=folder, overrides=[NO_FIELD])

    network = load_network(folder)
    grids = [Grid(SIZE, affine).reoriented("SAR").resized((16, 16, 16)) for affine in (AFFINE, moving_affine)]
    images = []
    for voxels, affine, grid in zip((fixed, moving), (AFFINE, moving_affine), grids, strict=True):
        image = resample(torch.from_numpy(voxels)[None], Grid(SIZE, affine), grid, antialias=True)
        low, high = np.quantile(image.numpy(), (0.01, 0.99))
        images.append(((image - low) / (high - low)).clamp(0, 1)[None].float())
    with torch.no_grad():
        warped, ddf = network.model(images[1], images[0])
    assert ddf.norm(dim=1).mean() > 0.05
    points = Grid(SIZE, AFFINE).to_world(np.argwhere(np.ones((18, 16, 14))) + 3.0)
    theirs = DisplacementField.from_voxels(ddf[0], *grids)(points)
    np.testing.assert_allclose(found.transform(points), theirs, atol=1e-3)
    assert found.report["start"].endswith("last.pt")
    assert warped.shape == (1, 1, 16, 16, 16)


def test_a_network_of_two_channels(tmp_path: Path) -> None:
    """Each channel is scaled by itself; the prediction is that of the network for the two."""
    folder = checkpoint(tmp_path / "run", channels=2)
    first = torch.from_numpy(texture()).float()
    voxels = torch.stack([first, 100 - 50 * first**2])
    fixed = Volume(voxels, Grid(SIZE, AFFINE))
    moving = Volume(voxels.flip(1), fixed.grid)
    network = load_network(folder)
    found = predict(network, fixed, moving, {})
    scaled = [Volume(torch.stack([v[0], 7 - 3 * v[0] ** 2]), fixed.grid) for v in (fixed.voxels, moving.voxels)]
    points = fixed.grid.to_world(np.argwhere(np.ones((18, 16, 14))) + 3.0)
    theirs = predict(network, *scaled, {})(points)
    np.testing.assert_allclose(found(points), theirs, atol=1e-3)
    assert np.linalg.norm(theirs - points, axis=1).mean() > 0.05
    message = "takes volumes of 2 channels; the fixed image has 1 channels"
    with pytest.raises(DataError, match=message):
        predict(network, Volume(voxels[:1], fixed.grid), moving, {})
    registered = usreg.register(
        (voxels.numpy(), AFFINE),
        (voxels.flip(1).numpy(), AFFINE),
        checkpoint=folder,
        overrides=[NO_FIELD],
    )
    np.testing.assert_allclose(registered.transform(points), found(points), atol=1e-3)


def test_a_network_on_a_shared_grid_sees_both_images_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = checkpoint(tmp_path / "run", {**DATASET, "align_shared_grid": True, "align_margin_mm": 0.0})
    image = Volume(torch.from_numpy(texture())[None], Grid(SIZE, AFFINE))
    label = torch.zeros(1, *SIZE)
    label[:, 4:20, 4:18, 4:16] = 1
    network = load_network(folder)
    chain = predict(network, image, image, {}, Volume(label, image.grid))
    np.testing.assert_allclose(chain.transforms[-1].matrix, np.eye(4), atol=1e-9)  # type: ignore[attr-defined]
    assert not caplog.records
    predict(network, image, image, {})
    assert "around the foreground of fixed_label, which is not given" in caplog.text


@pytest.mark.parametrize("axis", [0, 2], ids=["sagittal", "axial"])
def test_a_network_of_slices(tmp_path: Path, axis: int) -> None:
    """It starts a registration in 2-D, which refines it; slices across another axis, and volumes, are refused."""
    size = [16, 16, 16]
    size[2 - axis] = 1
    loss = ["loss={name: lncc, kernel_size: 9}"]
    folder = checkpoint(tmp_path / "run", size=size)
    voxels = np.expand_dims(texture((24, 22)), axis)
    other = np.expand_dims(texture((24, 22)), 2 - axis)
    noise = torch.rand(1, 3, *voxels.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    noise[:, axis] = 0
    sigma = [0.0 if number == axis else 3.0 for number in range(3)]
    fixed = warp(torch.from_numpy(voxels)[None, None], 12 * gaussian_smooth(noise, sigma))[0, 0].numpy()
    pair = (fixed, AFFINE), (voxels, AFFINE)
    predicted = usreg.register(*pair, checkpoint=folder, overrides=[NO_FIELD, *loss])
    points = Grid(voxels.shape, AFFINE).to_world(np.argwhere(np.ones(voxels.shape)))
    moved = predicted.transform(points) - points
    across = AFFINE[:3, axis] / np.linalg.norm(AFFINE[:3, axis])
    assert np.linalg.norm(moved, axis=1).mean() > 0.05
    np.testing.assert_allclose(moved @ across, 0, atol=1e-5)
    stages = "stages=[{stage: greedy, levels: [2, 1], iterations: [30, 15]}]"
    refined = usreg.register(*pair, checkpoint=folder, overrides=[stages, *loss])
    ncc = [found.report["measures"]["ncc"]["after"] for found in (predicted, refined)]
    assert ncc[1] > max(ncc[0], 0.95)
    for image in (other, texture()):
        with pytest.raises(
            DataError, match=r"takes slices, image_size \[.*of one channel; the fixed image has 1 channels"
        ):
            usreg.register((image, AFFINE), (image, AFFINE), checkpoint=folder, overrides=[NO_FIELD, *loss])


def test_optimisation_refines_a_prediction(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run")
    moving = texture()
    noise = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(2)) - 0.5
    fixed = warp(torch.from_numpy(moving)[None, None], 40 * gaussian_smooth(noise, 3.0))[0, 0].numpy()
    pair = (fixed, AFFINE), (moving, AFFINE)
    predicted = usreg.register(*pair, checkpoint=folder / "last.pt", overrides=[NO_FIELD])
    stages = "stages=[{stage: affine}, {stage: greedy, levels: [2, 1], iterations: [30, 15]}]"
    refined = usreg.register(*pair, checkpoint=folder, overrides=[stages])
    ncc = [found.report["measures"]["ncc"]["after"] for found in (predicted, refined)]
    assert ncc[1] > max(ncc[0], 0.95)
    assert [stage["stage"] for stage in refined.report["stages"]] == ["greedy"]


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    pair = (texture(), AFFINE), (texture(), AFFINE)

    def fails(folder: Path, message: str, error: type[UsageError] = UsageError) -> None:
        with pytest.raises(error, match=message):
            usreg.register(*pair, checkpoint=folder, overrides=[NO_FIELD])

    fails(tmp_path / "nowhere", "there is no checkpoint or run's folder .*nowhere")
    (tmp_path / "other.pt").write_text("no checkpoint")
    fails(tmp_path / "other.pt", "cannot be read as a checkpoint")
    fails(checkpoint(tmp_path / "bare", config={}), "the config inside has no model and image_size", ConfigError)
    unknown = {"model": {"name": "unknown3d"}, "image_size": [16, 16, 16]}
    fails(checkpoint(tmp_path / "unknown", config=unknown), "its network cannot be built: unknown model", ConfigError)
    wider = {"model": {**MODEL, "channels": [8, 8]}, "image_size": [16, 16, 16]}
    fails(checkpoint(tmp_path / "wider", config=wider), "is a checkpoint of another model", ConfigError)
    plugins = {"model": MODEL, "image_size": [16, 16, 16], "plugins": ["module_of_nobody"]}
    fails(checkpoint(tmp_path / "plugins", config=plugins), "cannot import 'module_of_nobody'", ConfigError)
    good = checkpoint(tmp_path / "good")
    flat = (texture((24, 22, 1))[..., 0], AFFINE)
    with pytest.raises(DataError, match="takes volumes of one channel"):
        usreg.register(flat, flat, checkpoint=good, overrides=[NO_FIELD])
    field = field_in_mm(torch.zeros(1, 3, *SIZE), Grid(SIZE, AFFINE))
    with pytest.raises(UsageError, match="initial transform holds a field, and so does the prediction"):
        usreg.register(*pair, checkpoint=good, initial=field, overrides=[NO_FIELD])
