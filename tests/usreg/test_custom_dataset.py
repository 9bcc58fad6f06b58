from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader

from usreg import manifest
from usreg.datasets import build_dataset, collate, custom, custom_options, reading
from usreg.datasets.custom import CustomDataset
from usreg.datasets.sample_cache import SampleCache
from usreg.errors import DataError, UsageError
from usreg.metrics import MetricTable, evaluate_metrics, identity_inputs
from usreg.metrics.landmarks import sample_at_points

SIZE = (10, 12, 14)
MOVING, FIXED = (20, 18, 16), (13, 15, 11)  # x, y, z of the files


def volume(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).random(shape), 2).astype(np.float32)


def label(shape: tuple[int, int, int], channels: int = 1) -> np.ndarray:
    mask = np.zeros((*shape, channels), np.uint8)
    for channel in range(channels):
        mask[3 + channel : -3, 3:-3, 3:-3, channel] = 1
    return mask[..., 0] if channels == 1 else mask


class Folder:
    """Writes small NIfTI files and a manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.affine = np.diag([0.5, 1.0, 2.0, 1.0])

    def save(self, name: str, voxels: np.ndarray, affine: np.ndarray | None = None) -> str:
        nib.save(nib.Nifti1Image(voxels, self.affine if affine is None else affine), self.path / name)
        return name

    def case(self, number: int = 0, channels: int = 0, **more: object) -> dict:
        case: dict[str, object] = {
            "moving": self.save(f"m{number}.nii.gz", volume(MOVING, number)),
            "fixed": self.save(f"f{number}.nii.gz", volume(FIXED, 100 + number)),
        }
        if channels:
            case["moving_label"] = self.save(f"ml{number}.nii.gz", label(MOVING, channels))
            case["fixed_label"] = self.save(f"fl{number}.nii.gz", label(FIXED, channels))
        return {**case, **more}

    def manifest(self, *cases: dict, split: str = "train") -> str:
        path = self.path / "manifest.json"
        path.write_text(json.dumps({split: cases}))
        return str(path)

    def dataset(self, *cases: dict, **keys: object) -> CustomDataset:
        return CustomDataset(self.manifest(*cases), **{"image_size": SIZE, "landmarks_space": "voxel", **keys})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def ramps(shape: tuple[int, int, int], axis: int) -> np.ndarray:
    """A volume that holds each voxel's own index along one axis."""
    return np.indices(shape)[axis].astype(np.float32)


def test_sample_has_the_documented_contents(folder):
    landmarks = {"moving_landmarks": [[1, 2, 3]], "fixed_landmarks": [[3, 2, 1]]}
    mask = folder.save("mask.nii.gz", label(FIXED))
    sample = folder.dataset(folder.case(channels=2, fixed_mask=mask, site="A", modality="MR-US", **landmarks))[0]
    shapes = {key: tuple(value.shape) for key, value in sample.items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "moving": (1, *SIZE),
        "fixed": (1, *SIZE),
        "moving_label": (2, *SIZE),
        "fixed_label": (2, *SIZE),
        "moving_label_lost": (2,),
        "fixed_mask": (1, *SIZE),
        "moving_points": (1, 3),
        "fixed_points": (1, 3),
        "spacing": (3,),
        "moving_spacing": (3,),
        "affine": (4, 4),
        "moving_affine": (4, 4),
    }
    assert all(type(value) is torch.Tensor for value in sample.values() if isinstance(value, torch.Tensor))
    assert all(sample[key].dtype == torch.float32 for key in shapes if key != "moving_label_lost")
    assert sample["moving_label_lost"].tolist() == [False, False]
    assert (sample["case"], sample["metadata"]) == ("train[0]", {"site": "A", "modality": "MR-US"})
    for key in ("moving", "fixed"):
        assert (sample[key].min(), sample[key].max()) == (0, 1)
    assert set(sample["fixed_mask"].unique().tolist()) == {0.0, 1.0}


def test_axes_run_z_y_x(folder):
    """Each tensor axis follows the file's axis of that direction, whatever the size."""
    for axis, tensor_axis in ((0, 3), (1, 2), (2, 1)):
        image = folder.save("ramp.nii.gz", ramps(MOVING, axis))
        case = {"moving": image, "fixed": folder.save("other.nii.gz", volume(FIXED, 0))}
        moving = folder.dataset(case, normalize_intensity=False)[0]["moving"]
        assert (moving.diff(dim=tensor_axis) > 0).all()
        for other in {1, 2, 3} - {tensor_axis}:
            assert moving.diff(dim=other).abs().max() < 1e-5


def test_flipped_and_permuted_files_give_the_same_sample(folder):
    voxels = volume(MOVING, 0)
    straight = {"moving": folder.save("a.nii.gz", voxels), "fixed": folder.save("f.nii.gz", volume(FIXED, 0))}
    affine = np.array([[0, 0, -0.5, 9.5], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])  # axes A, S, L
    turned = {**straight, "moving": folder.save("b.nii.gz", voxels.transpose(1, 2, 0)[:, :, ::-1], affine)}
    a, b = (folder.dataset(case)[0] for case in (straight, turned))
    torch.testing.assert_close(a["moving"], b["moving"])
    torch.testing.assert_close(a["moving_spacing"], b["moving_spacing"])
    left = folder.dataset(straight, orientation="lps")[0]["moving"]
    torch.testing.assert_close(left.flip(2, 3), a["moving"])


def test_spacing_is_that_of_the_grid(folder):
    sample = folder.dataset(folder.case())[0]
    for key, shape in (("moving_spacing", MOVING), ("spacing", FIXED)):
        expected = [shape[2] * 2.0 / SIZE[0], shape[1] * 1.0 / SIZE[1], shape[0] * 0.5 / SIZE[2]]
        assert sample[key].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("spacing", [None, (1.5, 1.0, 0.75)])
def test_landmarks_follow_their_image(folder, spacing):
    """Volumes that hold each voxel's own index say at a landmark's place which index the landmark had in the file."""
    landmarks = [[5.0, 6.0, 7.0], [12.5, 9.25, 8.0]]
    points = {"moving_landmarks": landmarks, "fixed_landmarks": [[1, 1, 1], [2, 2, 2]]}
    affine = np.array([[0, 0, -0.5, 9.5], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])
    for axis in range(3):
        moving = folder.save(f"ramp{axis}.nii.gz", ramps(MOVING, axis), affine)
        case = {"moving": moving, "fixed": folder.save("f.nii.gz", volume(FIXED, 0)), **points}
        sample = folder.dataset(case, normalize_intensity=False, image_size=(31, 33, 35), spacing=spacing)[0]
        values = sample_at_points(sample["moving"], sample["moving_points"])[:, 0]
        assert values.tolist() == pytest.approx([landmark[axis] for landmark in landmarks], abs=2e-3)


@pytest.mark.parametrize("space", ["lps", "ras", "voxel", None])
def test_landmarks_in_every_space_are_the_same_points(folder, space):
    """The files' world has x to the right, so that LPS turns two signs; lps is the default."""
    voxels = np.array([[5.0, 6.0, 7.0], [12.5, 9.25, 8.0]])
    scale = {"voxel": [1, 1, 1], "ras": [0.5, 1, 2], "lps": [-0.5, -1, 2], None: [-0.5, -1, 2]}[space]
    points = {f"{side}_landmarks": (voxels * scale).tolist() for side in ("moving", "fixed")}
    sample = folder.dataset(folder.case(**points), landmarks_space=space)[0]
    expected = [((z + 0.5) * SIZE[0] / 16, (y + 0.5) * SIZE[1] / 18, (x + 0.5) * SIZE[2] / 20) for x, y, z in voxels]
    np.testing.assert_allclose(sample["moving_points"], np.array(expected) - 0.5, atol=1e-5)


def test_landmarks_outside_their_image_are_counted(folder, caplog):
    points = {"moving_landmarks": [[5, 6, 7], [9, 9, 9]], "fixed_landmarks": [[5, 6, 7], [9, 30, 8]]}
    folder.dataset(folder.case(**points))
    (warning,) = (text for text in caplog.messages if "landmarks" in text)
    assert "train[0].fixed_landmarks: 1 of 2 landmarks are outside their image; the first is landmark 1" in warning
    caplog.clear()
    folder.dataset(folder.case(**points | {"fixed_landmarks": [[5, 6, 7], [9, 9, 9]]}), landmarks_space="lps")
    assert "2 of 2 landmarks" in caplog.text
    assert "All are inside in the space voxel: is that the landmarks_space?" in caplog.text


def test_masks_keep_their_volume(folder):
    sample = folder.dataset(folder.case(channels=1))[0]
    for side, shape in (("moving", MOVING), ("fixed", FIXED)):
        inside = sample[f"{side}_label"]
        fraction = label(shape).mean()
        assert float(inside.mean()) == pytest.approx(fraction, rel=0.1)
        assert float((inside > 0.5).float().mean()) == pytest.approx(fraction, rel=0.25)
        assert (inside.min(), inside.max()) == (0, 1)


@pytest.mark.parametrize(
    ("modality", "default_is_ct", "is_ct"),
    [("CT", False, True), ("ct", False, True), ("MR-US", True, False), ("MR-US", False, False), (None, True, True)],
)
def test_ct_window(folder, modality, default_is_ct, is_ct):
    hounsfield = np.linspace(-2000, 2000, np.prod(MOVING)).reshape(MOVING).astype(np.float32)
    case = {"moving": folder.save("m.nii.gz", hounsfield), "fixed": folder.save("f.nii.gz", hounsfield)}
    case |= {"modality": modality} if modality else {}
    sample = folder.dataset(case, default_is_ct=default_is_ct, ct_window=[0, 100])[0]
    assert (0.4 < float((sample["moving"] == 1).float().mean()) < 0.6) == is_ct


def test_quantiles_clip_outliers(folder):
    voxels = volume(MOVING, 0)
    voxels[10, 9, 8] = 1e6
    case = {"moving": folder.save("m.nii.gz", voxels), "fixed": folder.save("f.nii.gz", voxels)}
    assert folder.dataset(case)[0]["moving"].std() > 0.1
    assert folder.dataset(case, quantile_range=[0, 1])[0]["moving"].std() < 0.1


def test_nearly_empty_image_keeps_its_content(folder):
    voxels = np.zeros(MOVING, np.float32)
    voxels[8:10, 8:10, 8:10] = 5
    case = {"moving": folder.save("m.nii.gz", voxels), "fixed": folder.save("f.nii.gz", voxels)}
    assert folder.dataset(case)[0]["moving"].max() == 1


def test_cases_without_labels_masks_and_points_get_empty_ones(folder):
    points = {"moving_landmarks": [[1, 1, 1]], "fixed_landmarks": [[2, 2, 2]]}
    full = folder.case(0, channels=2, moving_mask=folder.save("mm.nii.gz", label(MOVING)), **points)
    data = folder.dataset(full, folder.case(1))
    bare = data[1]
    assert not bare["moving_label"].any()
    assert bare["moving_mask"].all()
    assert bare["fixed_points"].shape == (0, 3)
    assert "fixed_mask" not in bare
    batch = collate([data[0], data[1]])
    assert batch["fixed_label"].shape == (2, 2, *SIZE)
    values = evaluate_metrics(identity_inputs(batch))
    assert values["dice"].isnan().tolist() == [[False, False], [True, True]]
    assert values["tre"].isnan().tolist() == [False, True]


def test_samples_are_the_same_in_workers_and_after_the_cache_is_full(folder, monkeypatch):
    cases = [folder.case(i, channels=1) for i in range(3)]
    data = folder.dataset(*cases)
    monkeypatch.setattr(custom, "_CACHE_BYTES", 0)
    uncached = folder.dataset(*cases)
    loader = DataLoader(uncached, batch_size=None, num_workers=1)
    for sample, expected in zip(loader, data, strict=False):
        for key, value in expected.items():
            assert torch.equal(sample[key], value) if isinstance(value, torch.Tensor) else sample[key] == value


def test_changing_a_sample_does_not_change_the_next(folder):
    data = folder.dataset(folder.case())
    data[0]["moving"].zero_()
    assert data[0]["moving"].any()


def test_cache_is_bounded_and_not_sent_to_workers():
    cache = SampleCache(limit=100)
    cache.put(0, {"moving": torch.zeros(20), "case": "a"})
    cache.put(1, {"moving": torch.zeros(20)})
    assert cache.get(0) is not None
    assert cache.get(1) is None
    kind, arguments = cache.__reduce__()
    assert kind(*arguments).get(0) is None


@pytest.mark.parametrize("shared", [False, True])
def test_construction_reads_every_file_once(folder, monkeypatch, shared):
    read = []
    original = reading.read_volume
    monkeypatch.setattr(reading, "read_volume", lambda path, *a, **k: read.append(path.name) or original(path, *a, **k))
    data = folder.dataset(folder.case(0, channels=1), folder.case(1, channels=1), align_shared_grid=shared)
    assert sorted(read) == sorted({*read})
    assert len(read) == 8
    assert [data[i]["case"] for i in (0, 1)] == ["train[0]", "train[1]"]
    assert len(read) == 8


def broken(folder: Folder, what: str) -> dict:
    """A case with one fault."""
    case = folder.case(1, channels=1)
    points = {"moving_landmarks": [[1, 1, 1]], "fixed_landmarks": [[1, 1, 1]]}
    if what == "missing":
        case["fixed"] = "nowhere.nii.gz"
    elif what == "truncated":
        path = folder.path / "f1.nii.gz"
        path.write_bytes(path.read_bytes()[:-200])
    elif what == "channels":
        case["moving_label"] = folder.save("ml1.nii.gz", label(MOVING, 3))
    elif what == "image channels":
        case["moving"] = folder.save("m1.nii.gz", volume((*MOVING, 2), 0))
    elif what == "label far away":
        far = np.array([[1.0, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        case["moving_label"] = folder.save("ml1.nii.gz", label(FIXED), far)
    elif what == "label place":
        case["moving_label"] = folder.save("ml1.nii.gz", label(MOVING), np.eye(4))
    elif what == "label values":
        case["moving_label"] = folder.save("ml1.nii.gz", label(MOVING) * np.float32(1.5))
    elif what == "counts":
        case |= {**points, "fixed_landmarks": [[1, 1, 1], [2, 2, 2]]}
    elif what == "landmark space":
        (folder.path / "p.csv").write_text("R,A,S\n1,1,1\n")
        case |= {**points, "moving_landmarks": "p.csv"}
    elif what == "constant":
        case["fixed"] = folder.save("f1.nii.gz", np.ones(FIXED, np.float32))
    elif what == "no hounsfield":
        case["modality"] = "CT"
    return case


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("missing", r"train\[1\].fixed: .*nowhere.nii.gz: no such file"),
        ("truncated", r"train\[1\].fixed: .*f1.nii.gz: the voxels cannot be read"),
        ("channels", r"train\[1\]: 'moving_label' has 3, 'fixed_label' has 1 channels"),
        ("image channels", r"train\[1\].moving: .*m1.nii.gz: has 2 channels; one is needed"),
        ("label far away", r"train\[1\].moving_label: .*by its header it lies outside its image"),
        ("label place", r"train\[1\].moving_label: .*voxels away from its image"),
        ("label values", r"train\[1\].moving_label: .*values go from 0 to 1.5; valid are whole numbers"),
        ("counts", r"train\[1\]: 'moving_landmarks' has 1, 'fixed_landmarks' has 2 points"),
        ("landmark space", r"train\[1\].moving_landmarks: .*p.csv: the file says that its points are in mm, RAS"),
        ("constant", r"train\[1\].fixed: .*f1.nii.gz: all voxels have the value 1"),
        ("no hounsfield", r"train\[1\].moving: .*no contrast in the CT window"),
    ],
)
def test_faults_are_found_at_construction(folder, what, text):
    with pytest.raises(DataError, match=text):
        folder.dataset(folder.case(0, channels=1), broken(folder, what))


def test_all_faulty_files_are_listed(folder):
    cases = [folder.case(0), {**folder.case(1), "fixed": "a.nii.gz"}, {**folder.case(2), "moving": "b.nii.gz"}]
    with pytest.raises(DataError, match=r"2 case\(s\)(.|\n)*train\[1\].fixed(.|\n)*train\[2\].moving"):
        folder.dataset(*cases)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"orientation": "RAR"}, "orientation must be three letters"),
        ({"spacing": [1, 0, 1]}, "spacing must be three positive numbers"),
        ({"quantile_range": [0.9, 0.1]}, "quantile_range must be two rising numbers"),
        ({"quantile_range": [1, 99]}, "from 0.0 to 1.0"),
        ({"ct_window": [100]}, "ct_window"),
        ({"image_size": [8, 8, 8.5]}, "image_size"),
        ({"landmarks_space": "world"}, "landmarks_space must be one of lps, ras, voxel"),
    ],
)
def test_impossible_values_are_refused(folder, keys, text):
    with pytest.raises(ValueError, match=text):
        folder.dataset(folder.case(), **keys)


def test_build_dataset_reads_the_split_of_its_section(folder):
    section = {"name": "custom_dataset", "json_file": folder.manifest(folder.case(), split="val")}
    assert build_dataset(section, split="val", image_size=SIZE)[0]["case"] == "val[0]"
    with pytest.raises(UsageError, match="has no list 'train'"):
        build_dataset(section, split="train", image_size=SIZE)


def test_real_prostate_pairs():
    """The gland's Dice before registration on the validation cases of the MR to ultrasound pairs of DeepReg."""
    root = os.environ.get("USREG_DATA", "")
    manifest = Path(root) / "mrus_prostate" / "manifest.json"
    if not root or not manifest.is_file():
        pytest.skip("set USREG_DATA to the folder that holds mrus_prostate/manifest.json to run this test")
    data = CustomDataset(str(manifest), (48, 48, 48), split="val")
    table = MetricTable()
    table.update("identity", evaluate_metrics(identity_inputs(collate([data[i] for i in range(len(data))]))))
    assert table.means("identity")["dice_label0"] == pytest.approx(0.58, abs=0.015)


@pytest.mark.parametrize("keys", [{}, {"align_shared_grid": True, "align_reference": "fixed"}])
def test_landmarks_of_a_real_pair(tmp_path, keys):
    """The 16 landmarks of a pair of RESECT are 1.10 mm apart with the headers as they are."""
    root = os.environ.get("USREG_DATA", "")
    folder = Path(root) / "resect_case24"
    if not root or not folder.is_dir():
        pytest.skip("set USREG_DATA to the folder that holds resect_case24 to run this test")
    case = {"moving": "Case24-T1_moving.nii.gz", "fixed": "Case24-US_fixed.nii.gz"}
    case |= {f"{side}_landmarks": f"Case24-MRI-beforeUS.tag#{n}" for n, side in enumerate(("moving", "fixed"), start=1)}
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({"train": [{key: str(folder / name) for key, name in case.items()}]}))
    data = CustomDataset(str(manifest), (48, 48, 48), **keys)
    assert len(data[0]["fixed_points"]) == 16
    assert evaluate_metrics(identity_inputs(collate([data[0]])))["tre"].tolist() == [pytest.approx(1.10, abs=0.005)]


@pytest.mark.parametrize(
    ("keys", "ct"),
    [
        ({"moving_modality": "CT", "fixed_modality": "US"}, {"moving": True, "fixed": False}),
        ({"modality": "MR", "fixed_modality": "low-dose ct"}, {"moving": False, "fixed": True}),
        ({"modality": "CT-US", "fixed_modality": "US"}, {"moving": True, "fixed": False}),
        ({"modality": "ct_to_us"}, {"moving": True, "fixed": True}),
    ],
)
def test_each_image_has_its_modality(folder, caplog, keys, ct):
    hounsfield = np.linspace(-2000, 2000, np.prod(MOVING)).reshape(MOVING).astype(np.float32)
    case = {"moving": folder.save("m.nii.gz", hounsfield), "fixed": folder.save("f.nii.gz", hounsfield), **keys}
    sample = folder.dataset(case, ct_window=[0, 100])[0]
    for side, is_ct in ct.items():
        assert (0.4 < float((sample[side] == 1).float().mean()) < 0.6) == is_ct
    assert ("counts as CT for both images" in caplog.text) == (keys.get("modality") == "ct_to_us")


def test_keys_of_older_files_are_said_once_to_do_nothing(folder, caplog):
    custom_options._note_once.cache_clear()
    for _ in range(2):
        folder.dataset(folder.case(), roi_margin=3, intensity_clip=False, preprocess_style="multigradicon")
    (text,) = (text for text in caplog.messages if "do nothing" in text)
    assert "roi_margin, intensity_clip of older files do nothing" in text
    with pytest.raises(ValueError, match="preprocess_style must be multigradicon, not 'unigradicon'"):
        folder.dataset(folder.case(), preprocess_style="unigradicon")


def test_images_of_two_channels(folder):
    """Each channel is what a file of only that channel gives: scaled, padded and, with NaN, filled by itself."""
    files = {side: np.stack([volume(shape, n), 100 - 7 * volume(shape, n + 5)], axis=-1) for side, shape, n in
             (("moving", MOVING, 0), ("fixed", FIXED, 1))}  # fmt: skip
    files["fixed"][:2, :2, :2, 1] = np.nan
    keys = {"spacing": (2.5, 1.2, 0.6), "nan": "fill"}
    both = folder.case(0, **{side: folder.save(f"{side}.nii.gz", voxels) for side, voxels in files.items()})
    sample = folder.dataset(both, image_channels=2, **keys)[0]
    assert sample["moving"].shape == sample["fixed"].shape == (2, *SIZE)
    for channel in range(2):
        one = folder.case(1, **{s: folder.save(f"{s}1.nii.gz", v[..., channel]) for s, v in files.items()})
        single = folder.dataset(one, **keys)[0]
        for side in files:
            torch.testing.assert_close(sample[side][channel], single[side][0])


def test_channels_must_be_those_of_the_section(folder, capsys):
    case = folder.case(0, moving=folder.save("two.nii.gz", volume((*MOVING, 2), 0)))
    for channels, text in (
        (2, r"train\[0\].fixed: .*has 1 channels; 2 are needed"),
        (1, r"moving: .*one is needed, as"),
    ):
        with pytest.raises(DataError, match=text):
            folder.dataset(case, image_channels=channels)
    with pytest.raises(ValueError, match="image_channels must be a whole number of 1 or more, not 0"):
        folder.dataset(case, image_channels=0)
    case["fixed"] = folder.save("also.nii.gz", volume((*FIXED, 2), 1))
    assert folder.dataset(case, image_channels=2)[0]["fixed"].shape == (2, *SIZE)
    check = ["check", folder.manifest(case)]
    assert manifest.main([*check, "--image-channels=2"]) == 0
    assert manifest.main(check) == manifest.EXIT_WRONG
    assert "--image-channels" in capsys.readouterr().out


@pytest.mark.parametrize("thin", [0, 1, 2], ids="zyx")
def test_slices(folder, thin):
    """A slice is sampled as any plane of a volume whose planes are all the same; labels and points lie in it."""
    size = [10, 12, 14]
    size[thin] = 1
    axis = 2 - thin  # of the file, x, y, z
    thick = {"moving": volume(MOVING, 0), "fixed": volume(FIXED, 1)}
    flat = {side: np.take(voxels, [0], axis) for side, voxels in thick.items()}
    points = {f"{side}_landmarks": [[1, 2, 3]] for side in thick}
    for both in points.values():
        both[0][axis] = 0
    marks = {
        f"{side}_label": folder.save(f"{side}l.nii.gz", (v > np.median(v)).astype(np.uint8)) for side, v in flat.items()
    }
    case = folder.case(0, **{side: folder.save(f"{side}.nii.gz", v) for side, v in flat.items()}, **points, **marks)
    sample = folder.dataset(case, image_size=size, normalize_intensity=False)[0]
    same = {side: np.repeat(v, thick[side].shape[axis], axis) for side, v in flat.items()}
    case = folder.case(1, **{side: folder.save(f"{side}1.nii.gz", v) for side, v in same.items()})
    volumes = folder.dataset(case, image_size=[10, 12, 14], normalize_intensity=False)[0]
    for side in thick:
        torch.testing.assert_close(sample[side], volumes[side].narrow(1 + thin, 5, 1), rtol=1e-4, atol=1e-4)
        assert sample[f"{side}_label"].shape == (1, *size)
        assert 0.3 < sample[f"{side}_label"].mean() < 0.7
        assert sample[f"{side}_points"][0, thin] == pytest.approx(0, abs=1e-5)
    with pytest.raises(DataError, match=rf"a volume, and image_size {re.escape(str(size))} is that of slices"):
        folder.dataset(case, image_size=size)


def test_slices_do_not_mix_with_volumes(folder, capsys):
    """Nor do two planes, or a grid that both share."""
    plane = folder.save("plane.nii.gz", volume(MOVING, 0)[..., 0])
    across = folder.save("across.nii.gz", volume(MOVING, 0)[:, :1])
    size = [1, 12, 14]
    with pytest.raises(DataError, match=r"moving: .*\(20, 18, 1\), .*a single slice, .* give image_size \[1, 12, 14\]"):
        folder.dataset(folder.case(0, moving=plane))
    with pytest.raises(DataError, match=r"fixed: .*a volume, and image_size \[1, 12, 14\]"):
        folder.dataset(folder.case(0, moving=plane), image_size=size)
    with pytest.raises(DataError, match=r"fixed: .*a single slice, .* give image_size \[2, 1, 14\]"):
        folder.dataset(folder.case(0, moving=plane, fixed=across), image_size=size)
    with pytest.raises(ValueError, match="align_shared_grid needs volumes"):
        folder.dataset(folder.case(0, moving=plane, fixed=plane), image_size=size, align_shared_grid=True)
    with pytest.raises(ValueError, match=r"each 2 or more, or one of them 1 for slices, not \[1, 1, 14\]"):
        folder.dataset(folder.case(0), image_size=[1, 1, 14])
    other = folder.save("other.nii.gz", volume(MOVING, 1)[..., 0])
    for case, status, text in (
        (folder.case(0, moving=plane), manifest.EXIT_WRONG, "train[0].moving: is a single slice, and the other image"),
        (folder.case(0, moving=plane, fixed=other), 0, "is a pair of slices: it trains with an image_size like"),
    ):
        assert manifest.main(["check", folder.manifest(case)]) == status
        assert text in " ".join(capsys.readouterr().out.split())
