"""Prints a benchmark as a table and writes it to disk."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boneage_jax.benchmarking.result import COLUMNS
from boneage_jax.benchmarking.roofline import draw_roofline
from boneage_jax.errors import InputError
from boneage_jax.report.page import readable_flops

_HEADERS = (
    *("case", "what", "px", "batch", "median", "quartiles", "n", "images/s", "GFLOP/s"),
    *("of peak", "of roof"),
)


def table_lines(benchmark: Mapping[str, Any]) -> list[str]:
    """Returns the table of a benchmark, one line per result, preceded by the hardware."""
    hardware, peaks = benchmark["hardware"], benchmark["peaks"]
    cells = [_HEADERS, *(_cells(row) for row in benchmark["results"])]
    widths = [max(len(line[place]) for line in cells) for place in range(len(_HEADERS))]
    lines = [
        f"{hardware['devices']} x {hardware['device']} ({hardware['platform']}), "
        f"{hardware['cpu_cores']} cores; jax {benchmark['versions'].get('jax', '?')}; "
        f"{benchmark['date']}",
        f"peaks of a device, measured here: {readable_flops(peaks['flops_per_second'])}/s "
        f"({peaks['dtype']} matrix product), {peaks['bytes_per_second'] / 1e9:.3g} GB/s"
        + ("" if benchmark["quiet"] else "; the machine was NOT quiet"),
        "",
    ]
    for line in cells:
        text = [line[0].ljust(widths[0]), line[1].ljust(widths[1])]
        text += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        lines.append("  ".join(text).rstrip())
    notes = [
        f"{row['case']}, {row['name']}: {_note(row['note'])}"
        for row in benchmark["results"]
        if row["note"]
    ]
    return [*lines, "", *notes] if notes else lines


def write_benchmark(
    folder: Path, benchmark: Mapping[str, Any], report: Mapping[str, Any] | None = None
) -> list[Path]:
    """Writes benchmark.json, benchmark.csv and roofline.png.

    Args:
      folder: folder created by `make_folder`.
      benchmark: see `boneage_jax.benchmarking.suite.run_suite`.
      report: contents of the report.json of a training, drawn beside the roofline.

    Returns:
      The paths written.
    """
    text = json.dumps(benchmark, indent=1, allow_nan=False) + "\n"
    (folder / "benchmark.json").write_text(text)
    with (folder / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in benchmark["results"]:
            writer.writerow(row | {"note": _note(row["note"])})
    draw_roofline(folder / "roofline.png", benchmark, report)
    return [folder / name for name in ("benchmark.json", "benchmark.csv", "roofline.png")]


def make_folder(folder: Path) -> Path:
    """Creates the output folder up front, so that a bad path fails before an hour of measuring.

    Raises:
      InputError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").touch()
        if not (folder / "benchmark.json").stat().st_size:
            (folder / "benchmark.json").unlink()
    except OSError as error:
        raise InputError(f"--output={folder} cannot be written to: {error.strerror}") from error
    return folder


def load_report(path: Path) -> dict[str, Any]:
    """Reads the report.json of a bone-age training.

    Raises:
      InputError: the file does not exist, is not JSON, or lacks age errors or counted FLOPs.
    """
    try:
        report = json.loads(path.read_text())
        _ = report["age"]["mae"] + report["compute"]["train_flops"]
        _ = [point["flops"] + point["mae"] for point in report["curve"]]
    except FileNotFoundError:
        raise InputError(f"--report={path}: there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--report={path} is not the report.json of a bone-age training: {error!r}"
        ) from error
    if report["compute"]["train_flops"] <= 0:
        raise InputError(f"--report={path}: compute.train_flops must be above 0")
    found: dict[str, Any] = report
    return found


def report_lines(report: Mapping[str, Any], benchmark: Mapping[str, Any]) -> list[str]:
    """Returns the error and FLOPs of a training, and the minutes they take at the measured rate."""
    mae, flops = report["age"]["mae"], report["compute"]["train_flops"]
    model = report.get("config", {}).get("model", {}).get("name", "a network")
    lines = [
        f"{model}: MAE {mae:.2f} months after {readable_flops(flops)} of training; "
        f"{mae / (flops / 1e12):.3g} months per TFLOP spent"
    ]
    rows = [row for row in benchmark["results"] if row["case"] == "train"]
    if rows and rows[0]["model"] == model:
        seconds = flops / rows[0]["flops_per_second"]
        lines[0] += f"; {seconds / 60:.3g} minutes at the rate of the train step above"
    return lines


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def share(key: str) -> str:
        return f"{row[key]:.1%}" if key in row else ""

    scale, unit = (2**20, "MiB") if row["unit"] == "bytes" else (1.0, "s")
    if unit == "s" and row["median"] < 1:
        scale, unit = 1e-3, "ms"
    rate = row.get("images_per_second")
    return (
        *(row["case"], row["name"] + _parts(row), str(row["image_size"]), str(row["batch_size"])),
        f"{row['median'] / scale:.4g} {unit}",
        f"{row['low'] / scale:.4g}-{row['high'] / scale:.4g}" if row["n"] > 1 else "",
        str(row["n"]),
        f"{rate:.4g}" if rate else "",
        f"{row['flops_per_second'] / 1e9:.4g}" if "flops_per_second" in row else "",
        *(share("peak_share"), share("roof_share")),
    )


def _parts(row: Mapping[str, Any]) -> str:
    return f", {row['devices']} devices" if row["devices"] > 1 else ""


def _note(note: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in note.items()
    )
