"""LNCC in Triton: every branch of the march against the float64 reference, and the choice of tiles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from kernels.compare import assert_close
from kernels.lncc_features import FEATURES, Feature, assert_recomputing_gives_the_same_bits

import usreg_kernels as uk
from bench.hard_data import PAIRS
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MAP_TOLERANCE
from usreg_kernels.ops.lncc import triton_plan, triton_tuning
from usreg_kernels.ops.lncc.triton_plan import Tile
from usreg_kernels.ops.triton_backend import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; on a GPU, see test_gpu.py")


@interpreted
@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_feature(feature: Feature) -> None:
    tensors = feature.tensors()
    with uk.use_backend("triton"), feature.pinned():
        loss, *gradients = feature.loss_and_gradients(tensors)
    with uk.use_backend("reference"):
        expected, *wanted = feature.loss_and_gradients([tensor.double() for tensor in tensors])
    assert_close(loss, expected, (MAP_TOLERANCE if loss.ndim else LOSS_TOLERANCE)[feature.dtype])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert gradient.dtype == feature.dtype
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[feature.dtype], floor=1e-6)


@interpreted
@pytest.mark.parametrize("window", [3, 7, 9, 15])
@pytest.mark.parametrize("data", ["step 1000 to 0", "bright ball on zeros", "uniform noise"])
def test_hard_data(data: str, window: int) -> None:
    """Constant integers have a variance of exactly 0, and bright tissue leaves no residue, in float32 too."""
    pred, target = (volume.float().contiguous() for volume in PAIRS[data]((1, 1, 10, 9, 14)))

    def loss_and_gradient(pred: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = pred.clone().requires_grad_()
        loss = uk.lncc_loss(leaf, target, kernel_size=window)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    with uk.use_backend("triton"):
        loss, gradient = loss_and_gradient(pred, target)
    with uk.use_backend("reference"):
        expected, wanted = loss_and_gradient(pred.double(), target.double())
    assert_close(loss, expected, MAP_TOLERANCE[torch.float32])
    assert_close(gradient, wanted, 3e-4)  # what float32 holds of a faint edge of the ball


@interpreted
def test_recomputing_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_recomputing_gives_the_same_bits("triton", monkeypatch)


@interpreted
def test_windows_above_the_largest_are_declined() -> None:
    image = torch.rand(1, 1, 4, 4, 4)
    with uk.use_backend("triton"), pytest.raises(uk.BackendError, match="up to 15 voxels, and this one is 17"):
        uk.lncc_loss(image, image, kernel_size=(3, 17, 3))


# ---- tiles by counts -------------------------------------------------------------------------------------------------

BOX_7 = (((1.0,) * 7),) * 3


@pytest.mark.parametrize("width", [8, 20, 48, 64, 96, 128, 160, 192, 224, 256, 511])
@pytest.mark.parametrize("backward", [False, True])
def test_a_tile_covers_every_width(width: int, backward: bool) -> None:
    tile = triton_plan.best_by_counts((1, 1, 64, 64, width), BOX_7, backward, 3 if backward else 5)
    owned = tile.lanes if tile.whole(width) else tile.lanes - 2 * triton_plan.ceil_div(3, tile.columns)
    assert tile.along_x(width, 3) * owned * tile.columns >= width
    assert tile.rows * tile.lanes == 32 * tile.warps


def test_chunks_are_whole_where_programs_abound_and_shorter_where_they_lack() -> None:
    assert triton_plan._chunk(192, 4, columns=5000, slots=500) == 192
    assert triton_plan._chunk(64, 3, columns=32, slots=528) < 16


# ---- tiles by measurement --------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "cache" / "tiles.json"
    monkeypatch.setattr(triton_tuning, "_file", path)
    monkeypatch.setattr(triton_tuning, "_known", None)
    return path


def _choose(launch=lambda tile: None) -> Tile:
    return triton_tuning.choose(
        "a launch", Tile(2, 32, 4), [Tile(2, 32, 4), Tile(4, 32, 4)], launch, torch.device("cpu")
    )


@interpreted
def test_without_a_file_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tuning, "_file", None)
    monkeypatch.setattr(triton_tuning, "choose", lambda *_: pytest.fail("measured"))
    test_feature(FEATURES["window 3"])


def test_the_fastest_tile_is_measured_once_and_pinned_by_the_file(file, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {2: 2.0, 4: 1.0}
    measured = []

    def launch(tile: Tile) -> None:
        measured.append(tile.columns)

    def stub(run, device: torch.device) -> float:
        run()
        return seconds[measured[-1]]

    monkeypatch.setattr(triton_tuning, "_seconds", stub)
    assert _choose(launch) == Tile(4, 32, 4)
    assert json.loads(file.read_text())["a launch"]["columns"] == 4
    monkeypatch.setattr(triton_tuning, "_known", None)  # another process
    assert _choose(launch=pytest.fail) == Tile(4, 32, 4)


def test_the_tile_by_counts_is_among_the_measured_ones(file, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(triton_tuning, "_seconds", lambda run, device: float(len(run().rows_so_far)))

    class Compiled:
        def __init__(self, tile: Tile) -> None:
            measured.append(tile)
            self.rows_so_far = list(measured)

    by_counts = Tile(2, 16, 8, 4, 128)
    chosen = triton_tuning.choose("a launch", by_counts, [Tile(2, 32, 4), by_counts], Compiled, torch.device("cpu"))
    assert chosen == by_counts  # of these times, the first is the shortest
    assert list(dict.fromkeys(measured)) == [by_counts, Tile(2, 32, 4)]


def test_where_every_tile_spills_the_one_by_counts_serves(file) -> None:
    spilling = SimpleNamespace(n_spills=8)
    assert _choose(lambda tile: spilling) == Tile(2, 32, 4)


def test_a_tile_that_spills_is_never_chosen(file, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled:
        def __init__(self, tile: Tile) -> None:
            self.n_spills = 8 if tile.columns == 4 else 0

    monkeypatch.setattr(triton_tuning, "_seconds", lambda run, device: {0: 2.0, 8: 1.0}[run().n_spills])
    assert _choose(Compiled) == Tile(2, 32, 4)


class _FakeCuda:
    """As much of torch.cuda as a measurement takes. A launch in a graph takes 1 ms, starting a graph 0.1 ms."""

    def __init__(self) -> None:
        self.now = 0.0  # ms
        self.captured = 0
        self.capturing = False

    def launch(self) -> None:
        assert self.capturing, "launched from Python, where the device would wait"
        self.captured += 1

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def graph(graph: object, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == "thread_local"
            self.capturing = True
            yield
            self.capturing = False

        def replay() -> None:
            self.now += 0.1 + 1.0 * self.captured

        class Event:
            def __init__(event, enable_timing: bool) -> None:
                assert enable_timing

            def record(event) -> None:
                event.at = self.now

            def synchronize(event) -> None:
                pass

            def elapsed_time(event, end: Event) -> float:
                return end.at - event.at

        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=replay))
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "Event", Event)


def test_a_gpu_is_timed_over_many_launches_that_do_not_wait_for_python(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _FakeCuda()
    cuda.install(monkeypatch)
    seconds = triton_tuning._seconds(cuda.launch, torch.device("cuda"))
    assert cuda.captured >= 10
    assert seconds == pytest.approx(1e-3, rel=0.02)  # the start of the graph hardly counts


def test_while_a_graph_is_captured_the_tile_by_counts_serves(file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    by_counts = Tile(2, 16, 8)
    assert triton_tuning.choose("a launch", by_counts, [Tile(4, 32, 4)], pytest.fail, torch.device("cuda")) == by_counts
    assert not file.exists()


def test_a_file_of_something_else_is_refused(file) -> None:
    file.parent.mkdir()
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"tiles\.json.*not a JSON file of tiles"):
        _choose()


@interpreted
def test_a_measured_call_is_right(file, monkeypatch: pytest.MonkeyPatch) -> None:
    from usreg_kernels.ops.lncc import triton

    monkeypatch.setattr(triton, "tiles_to_measure", lambda: [Tile(2, 32, 4), Tile(4, 16, 8)])
    monkeypatch.setattr(triton_tuning, "_REPEATS", 1)
    test_feature(FEATURES["window 3"])
    assert len(json.loads(file.read_text())) == 2
