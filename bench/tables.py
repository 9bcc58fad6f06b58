"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results import Entry, Results, by_case, ours

TITLES = {
    "lncc": "LNCC",
    "gradient_smoothness": "Gradient smoothness",
    "bending_energy": "Bending energy",
    "dvf_mse": "DVF MSE",
    "dvf_supervision": "DVF supervision",
}

SUMMARY_WINDOWS = (3, 9)
PACKAGES = ("VoxelMorph", "FireANTs", "fused-lncc")
"""Beginnings of the names of contenders that get columns of their own, under whatever name they took part."""


Row = dict[str, str]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table; the first row's keys are its header."""
    if not rows:
        return "(not measured)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(results: Results) -> str:
    """The README's table: forward and backward in float32, others as multiples of our time.

    LNCC in every shape with its usual window, and once with the smallest; of the field losses the largest volume.
    """
    cases = list(by_case(results.select(**{"kind": "loss", "pass": "forward+backward", "dtype": "float32"})))
    images = [case for case in cases if case[0]["op"] == "lncc" and case[0]["window"] in SUMMARY_WINDOWS]
    largest = {(case[0]["op"], case[0]["scheme"]): case for case in cases if case[0]["op"] != "lncc"}
    packages = [entry["contender"] for case in images for entry in case if entry["contender"].startswith(PACKAGES)]
    rows = [_summary_row(case, list(dict.fromkeys(packages))) for case in [*images, *largest.values()]]
    return table([row for row in rows if row is not None])


def _summary_row(case: Sequence[Entry], packages: Sequence[str]) -> Row | None:
    best = ours(case)
    if best is None:
        return None
    others = [entry for entry in case if not entry["ours"]]
    eager = [entry for entry in others if entry["contender"] == "MONAI"]
    memory = [_bytes(entry["peak_extra_bytes"]) for entry in [best, *eager]]
    return {
        "loss": _loss(best),
        "shape": _shape(best),
        "ours": _time(best),
        "MONAI": _slowdown(eager, best),
        "MONAI, compiled": _slowdown(others, best, "MONAI, compiled"),
        "plain PyTorch": _plain(others, best),
        **{name: _slowdown(others, best, name) for name in packages},
        "extra memory, ours / MONAI": " / ".join(memory),
    }


def _plain(others: Sequence[Entry], best: Entry) -> str:
    """The faster of plain PyTorch eager and compiled, as far as both were measured, and which it is."""
    found = [entry for entry in others if entry["contender"].startswith("PyTorch")]
    if not found:
        return "–"
    fastest = min(found, key=lambda entry: entry.seconds)
    return f"{_multiple(fastest, best)}, {'compiled' if fastest['contender'].endswith(', compiled') else 'eager'}"


def details(results: Results, op: str) -> str:
    """All contenders of an op, each comparison from the fastest to the slowest; inexact ones with bold errors."""
    rows: list[Row] = []
    for case in by_case(results.select(kind="loss", op=op)):
        best = ours(case)
        rows += [
            {
                "shape": _shape(entry),
                "pass": entry["pass"],
                "variety": _variety(entry),
                "contender": entry["contender"],
                "time": _time(entry),
                "to ours": "" if best is None else f"{entry.seconds / best.seconds:.3g} x",
                "CPU time": f"{1e3 * entry['cpu_seconds']:.3g} ms",
                "extra memory": _bytes(entry["peak_extra_bytes"]),
                "10^6 voxels/s": f"{entry['voxels_per_second'] / 1e6:.3g}",
                "GB/s": f"{entry['bytes_per_second'] / 1e9:.3g}",
                "of streaming": f"{entry['streaming_fraction']:.2g}",
                "error: loss, gradient": _error(entry),
            }
            for entry in sorted(case, key=lambda entry: entry.seconds)
        ]
    return table(rows)


def absent(results: Results, op: str) -> str:
    """A list of who did not take part in comparisons of an op, why, and in which; empty where all did.

    A reason that holds in every comparison stands alone.
    """
    absent = [entry for entry in results.absent if entry["op"] == op]
    comparisons = {entry.case for entry in [*results.select(kind="loss", op=op), *absent]}
    where: dict[tuple[str, str], list[str]] = {}
    for entry in absent:
        comparison = f"{_shape(entry)}, {entry['pass']}, {_variety(entry)}"
        where.setdefault((entry["contender"], entry["reason"]), []).append(comparison)
    lines = [
        f"- {contender}: {reason}" + ("" if len(found) == len(comparisons) else f" ({'; '.join(found)})")
        for (contender, reason), found in where.items()
    ]
    return "\n".join(["Did not take part:", "", *lines]) if lines else ""


def variants(results: Results) -> str:
    """Our LNCC's variants as multiples of the first."""
    entries = results.select(kind="variant")
    return table([{"LNCC": e["contender"], "time": _time(e), "ratio": f"{e['ratio_to_base']:.2f}"} for e in entries])


def training(results: Results) -> str:
    """Training steps."""
    return table(
        [
            {
                "volumes": _shape(entry),
                "LNCC": entry["contender"],
                "time per training step": _time(entry),
                "of it the loss": f"{entry['loss_share']:.0%}",
                "last training loss": f"{entry['last_loss']:.5f}",
            }
            for entry in results.select(kind="training")
        ]
    )


def registration(results: Results) -> str:
    """Registrations by direct optimisation."""
    return table(
        [
            {
                "volumes": _shape(entry),
                "LNCC and diffusion": entry["contender"],
                "time per iteration": _time(entry),
                "iterations": str(entry["iterations"]),
                "similarity before": f"{entry['similarity_before']:.4f}",
                "after": f"{entry['similarity_after']:.6f}",
                "mean distance to our field, voxels": f"{entry['field_difference']:.1g}",
            }
            for entry in results.select(kind="registration")
        ]
    )


def _loss(entry: Entry) -> str:
    variety = f", window {entry['window']}" if entry["window"] else f", {entry['scheme']}" if entry["scheme"] else ""
    return TITLES[entry["op"]] + variety


def _variety(entry: Entry) -> str:
    parts = [entry["dtype"], f"window {entry['window']}" if entry["window"] else entry["scheme"]]
    return ", ".join(part for part in parts if part)


def _shape(entry: Entry) -> str:
    return " x ".join(map(str, entry["shape"]))


def _time(entry: Entry) -> str:
    time = f"{1e3 * entry.seconds:.3g} ms" if entry.seconds < 1 else f"{entry.seconds:.3g} s"
    return f"{time} ± {entry.spread:.0%}"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.3g} MB"


def _slowdown(entries: Sequence[Entry], best: Entry, start: str = "") -> str:
    """The fastest whose name begins so, as a multiple of our time; a dash where there is none."""
    found = [entry for entry in entries if entry["contender"].startswith(start)]
    return _multiple(min(found, key=lambda entry: entry.seconds), best) if found else "–"


def _multiple(entry: Entry, best: Entry) -> str:
    mark = "" if entry["exact"] else f" (inexact: {_error(entry)})"
    return f"{entry.seconds / best.seconds:.3g} x{mark}"


def _error(entry: Entry) -> str:
    errors = [entry["loss_error"], entry["gradient_error"]]
    text = ", ".join(f"{error:.0e}" for error in errors if error is not None)
    return text if entry["exact"] else f"**{text}**"
