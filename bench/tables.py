"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.results import Entry, Results, by_case, ours

TITLES = {
    "lncc": "LNCC",
    "mind": "MIND",
    "gradient_smoothness": "Gradient smoothness",
    "bending_energy": "Bending energy",
    "dvf_mse": "DVF MSE",
    "dvf_supervision": "DVF supervision",
    "folding": "Folding",
    "mutual_information": "Mutual information",
}

SUMMARY_WINDOWS = (3, 9)
PACKAGES = ("VoxelMorph", "FireANTs", "fused-lncc")
"""Beginnings of the names of contenders that get columns of their own, under whatever name they took part."""

Row = dict[str, str]
Columns = dict[str, Callable[[Entry], str]]


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
    columns = list(dict.fromkeys(packages))
    rows = [_summary_row(case, columns, _broken(results, case)) for case in [*images, *largest.values()]]
    return table([row for row in rows if row is not None])


def _broken(results: Results, case: Sequence[Entry]) -> str:
    """Our backends that are wrong or fail in a comparison, for the summary; empty where all are right."""
    wrong = [f"{entry['contender']}: wrong" for entry in case if entry["wrong"]]
    faults = [entry for entry in results.absent if entry["fault"] and entry.case == case[0].case]
    return "; ".join([*wrong, *(f"{entry['contender']}: fails" for entry in faults)])


def _summary_row(case: Sequence[Entry], packages: Sequence[str], broken: str) -> Row | None:
    best = ours(case)
    if best is None and not broken:
        return None
    row = {"loss": _loss(case[0]), "shape": _shape(case[0])}
    if best is None:
        names = ("MONAI", "MONAI, compiled", "plain PyTorch", *packages, "extra memory, ours / MONAI")
        return {**row, "ours": f"**{broken}**", **dict.fromkeys([*_launches(case[0]), *names], "–")}
    others = [entry for entry in case if not entry["ours"]]
    eager = [entry for entry in others if entry["contender"] == "MONAI"]
    memory = [_bytes(entry["peak_extra_bytes"]) for entry in [best, *eager]]
    return {
        **row,
        "ours": f"{_time(best)} with {best['contender']} (**{broken}**)" if broken else _time(best),
        **_launches(best),
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
    on_gpu = results.device == "cuda"
    for case in by_case(results.select(kind="loss", op=op)):
        best = ours(case)
        rows += [
            {
                "shape": _shape(entry),
                "pass": entry["pass"],
                "variety": _variety(entry),
                "contender": _name(entry),
                "time": f"**{_time(entry)}**" if entry["wrong"] else _time(entry),
                "to ours": "" if best is None else f"{entry.seconds / best.seconds:.3g} x",
                **(_on_gpu(entry, best) if on_gpu else {}),
                "CPU time": f"{1e3 * entry['cpu_seconds']:.3g} ms",
                "extra memory": _bytes(entry["peak_extra_bytes"]),
                "10^6 voxels/s": f"{entry['voxels_per_second'] / 1e6:.3g}",
                "GB/s": f"{entry['bytes_per_second'] / 1e9:.3g}",
                "of streaming": _or_dash(entry["streaming_fraction"], lambda share: f"{share:.2g}"),
                "error: loss, gradient": _error(entry),
            }
            for entry in sorted(case, key=lambda entry: entry.seconds)
        ]
    return table(rows)


def _on_gpu(entry: Entry, best: Entry | None) -> Row:
    """The device's part, the same as a multiple of ours, and the CPU's part."""
    device, ours = entry["gpu_seconds"], None if best is None else best["gpu_seconds"]
    ratio = device / ours if device and ours else None
    return {
        "GPU time": _or_dash(device, _seconds),
        "GPU time to ours": _or_dash(ratio, lambda value: f"{value:.3g} x"),
        "launch": _or_dash(entry["launch_overhead_seconds"], _seconds),
    }


def _launches(best: Entry) -> Row:
    """The same of ours, for the summary; nothing on a CPU."""
    if best["device"] != "cuda":
        return {}
    return {
        "ours, GPU time": _or_dash(best["gpu_seconds"], _seconds),
        "ours, launch": _or_dash(best["launch_overhead_seconds"], _seconds),
    }


def absent(results: Results, op: str) -> str:
    """A list of who did not take part in comparisons of an op, why, and in which; empty where all did.

    A reason that holds in every comparison is given without them. One that is a fault of ours is bold.
    """
    entries = [entry for entry in results.absent if entry["op"] == op]
    lines = _grouped(results, op, entries, "reason")
    return "\n".join(["Did not take part:", "", *lines]) if lines else ""


def not_captured(results: Results, op: str) -> str:
    """A list of those that have no GPU time, why, and where; empty where all have one, and on a CPU."""
    entries = [entry for entry in results.select(kind="loss", op=op) if entry["no_gpu_seconds"]]
    lines = _grouped(results, op, entries, "no_gpu_seconds")
    return "\n".join(["Without a GPU time:", "", *lines]) if lines else ""


def _grouped(results: Results, op: str, entries: Iterable[Entry], key: str) -> list[str]:
    """A line for each contender and reason, with the comparisons in which it holds, unless it does in all."""
    absent = [entry for entry in results.absent if entry["op"] == op]
    comparisons = {entry.case for entry in [*results.select(kind="loss", op=op), *absent]}
    where: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        comparison = f"{_shape(entry)}, {entry['pass']}, {_variety(entry)}"
        text = f"{entry['contender']}: {entry[key]}"
        where.setdefault((entry["contender"], f"**{text}**" if entry["fault"] else text), []).append(comparison)
    return [
        f"- {text}" + ("" if len(found) == len(comparisons) else f" ({'; '.join(found)})")
        for (_, text), found in where.items()
    ]


def overhead(results: Results) -> str:
    """What a call on next to nothing costs, in microseconds and as a multiple of ``F.mse_loss``."""
    entries = results.select(kind="overhead")
    rows = []
    for op in dict.fromkeys((entry["op"], entry["contender"]) for entry in entries):
        found = {entry["pass"]: entry for entry in entries if (entry["op"], entry["contender"]) == op}
        first = next(iter(found.values()))
        row = {"overhead per call": _loss(first) if first["ours"] else first["contender"]}
        for passes in ("forward+backward", "forward"):
            row[f"{passes}, microseconds"] = _overhead(found.get(passes))
            row[f"{passes}, to F.mse_loss"] = _or_dash(
                found[passes]["ratio_to_mse_loss"] if passes in found else None, lambda ratio: f"{ratio:.2f} x"
            )
        rows.append(row)
    return table(rows)


def _overhead(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    text = f"{1e6 * entry['overhead_seconds']:.3g}"
    return f"**{text} (wrong)**" if entry["wrong"] else text


def operations(results: Results) -> str:
    """Operations that are no losses: each contender as a multiple of ours, from small to large volumes."""
    rows: list[Row] = []
    for case in by_case(results.select(kind="operation")):
        best = ours(case)
        rows += [
            {
                "operation": entry["op"],
                "volumes": _shape(entry),
                "contender": _name(entry),
                "time": _time(entry),
                "to ours": "" if best is None else f"{entry.seconds / best.seconds:.3g} x",
                "extra memory": _bytes(entry["peak_extra_bytes"]),
                "of streaming": f"{entry['streaming_fraction']:.2g}",
                "error: output, gradient": _error(entry),
            }
            for entry in sorted(case, key=lambda entry: entry.seconds)
        ]
    return table(rows)


def variants(results: Results) -> str:
    """Our LNCC's variants as multiples of the first."""
    columns: Columns = {
        "LNCC": _name,
        "time": _time,
        "ratio": lambda entry: _or_dash(entry["ratio_to_base"], lambda ratio: f"{ratio:.2f}"),
    }
    return _of_kind(results, "variant", columns)


def training(results: Results) -> str:
    """Training steps."""
    columns: Columns = {
        "volumes": _shape,
        "LNCC": _name,
        "time per training step": _time,
        "of it the loss": lambda entry: f"{entry['loss_share']:.0%}",
        "last training loss": lambda entry: _unless_inexact(entry, f"{entry['last_loss']:.5f}"),
    }
    return _of_kind(results, "training", columns)


def parts(results: Results) -> str:
    """What training steps are made of."""
    columns: Columns = {
        "config": lambda entry: str(entry["scheme"]),
        "volumes": _shape,
        "warp and loss": _name,
        "time of the step": _time,
        **{
            part: lambda entry, part=part: f"{_seconds(entry['parts_seconds'][part])} ({entry['shares'][part]:.0%})"
            for part in ("network", "warp", "loss", "optimizer")
        },
    }
    return _of_kind(results, "parts", columns)


def registration(results: Results) -> str:
    """Registrations by direct optimisation."""
    columns: Columns = {
        "volumes": _shape,
        "LNCC and diffusion": _name,
        "time per iteration": _time,
        "iterations": lambda entry: str(entry["iterations"]),
        "similarity before": lambda entry: f"{entry['similarity_before']:.4f}",
        "after": lambda entry: _unless_inexact(entry, f"{entry['similarity_after']:.6f}"),
        "mean distance to our field, voxels": lambda entry: _or_dash(entry["field_difference"], lambda d: f"{d:.1g}"),
    }
    return _of_kind(results, "registration", columns)


def _of_kind(results: Results, kind: str, columns: Columns) -> str:
    entries = results.select(kind=kind)
    return table([{name: text(entry) for name, text in columns.items()} for entry in entries])


def _loss(entry: Entry) -> str:
    variety = f", window {entry['window']}" if entry["window"] else f", {entry['scheme']}" if entry["scheme"] else ""
    return TITLES[entry["op"]] + variety


def _name(entry: Entry) -> str:
    return f"**{entry['contender']}: wrong**" if entry["wrong"] else str(entry["contender"])


def _variety(entry: Entry) -> str:
    parts = [entry["dtype"], f"window {entry['window']}" if entry["window"] else entry["scheme"]]
    return ", ".join(part for part in parts if part)


def _shape(entry: Entry) -> str:
    return " x ".join(map(str, entry["shape"]))


def _time(entry: Entry) -> str:
    return f"{_seconds(entry.seconds)} ± {entry.spread:.0%}"


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


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
    return _unless_inexact(entry, ", ".join(f"{error:.0e}" for error in errors if error is not None))


def _unless_inexact(entry: Entry, text: str) -> str:
    """The text; bold where it belongs to a result that is off. Older results do not say so of every kind."""
    return f"**{text}**" if entry["exact"] is False else text
