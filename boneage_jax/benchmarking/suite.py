"""The cases of a benchmark, and the order in which they run."""

import dataclasses
import datetime
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from boneage_jax.benchmarking.comparing import (
    check_machine,
    comparison_lines,
    load_benchmark,
)
from boneage_jax.benchmarking.first_step import measure_start
from boneage_jax.benchmarking.peaks import Peaks, measure_peaks
from boneage_jax.benchmarking.pipeline import input_cases, loop_cases
from boneage_jax.benchmarking.result import Result
from boneage_jax.benchmarking.settings import (
    Bench,
    check_bench,
    synthetic_info,
    whole_numbers,
)
from boneage_jax.benchmarking.steps import (
    Prepared,
    prepare_augment,
    prepare_eval,
    prepare_train,
)
from boneage_jax.benchmarking.table import (
    load_report,
    make_folder,
    report_lines,
    table_lines,
    write_benchmark,
)
from boneage_jax.benchmarking.timing import alternate, measure, paired_ratio
from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.runtime.cpu_memory import SWITCH
from boneage_jax.runtime.interruption import cleans_up
from boneage_jax.runtime.machine import hardware, versions
from boneage_jax.training.run import build_run

Say = Callable[[str], None]
_DRIFT = 0.1  # relative change of the peaks, above which the machine was not quiet
_BUSY = 0.25  # load average per core at the start, above which it was not quiet either


@dataclasses.dataclass(frozen=True)
class Bed:
    """What all cases share.

    Attributes:
      recipe: checked config.
      settings: settings of the measurement.
      info: info of the synthetic data.
      folder: scratch folder.
      say: called with each progress line for the user.
    """

    recipe: ConfigDict
    settings: Bench
    info: DataInfo
    folder: Path
    say: Say

    def changed(self, **changes: Any) -> ConfigDict:
        """Returns the recipe with other values, checked."""
        config = ConfigDict(self.recipe.to_dict())
        config.update(changes)
        return check_config(config)

    def times(self, step: Prepared) -> list[float]:
        """Returns the seconds of each timed call of a step."""
        return measure(
            step.call,
            repetitions=self.settings.repetitions,
            min_seconds=self.settings.min_seconds,
            warmup=1 + self.settings.warmup,
        )

    @functools.cached_property
    def starts(self) -> dict[str, list[dict[str, Any]]]:
        """Measures fresh processes; each cold start is followed by a warm start on its cache."""
        starts: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
        for number in range(self.settings.starts):
            for name, found in starts.items():
                self.say(f"starting a fresh process, {name} ({number + 1})")
                folder = self.folder / f"start{number}"
                found.append(measure_start(self.recipe, self.info.image_size, folder))
        return starts


def _train(bed: Bed) -> Iterator[Result]:
    step = prepare_train(bed.recipe, bed.info)
    yield step.result("train", "step", bed.times(step))


def _eval(bed: Bed) -> Iterator[Result]:
    step = prepare_eval(bed.recipe, bed.info)
    result = step.result("eval", "step", bed.times(step))
    size = bed.recipe.eval_batch_size
    yield dataclasses.replace(result, batch_size=size, images=size)


def _augment(bed: Bed) -> Iterator[Result]:
    step = prepare_augment(bed.recipe, bed.info, jax.local_devices()[0])
    yield step.result("augment", "stored image to network", bed.times(step))


def _input(bed: Bed) -> Iterator[Result]:
    yield from input_cases(bed.recipe, bed.info, bed.settings, bed.folder / "input")


def _loop(bed: Bed) -> Iterator[Result]:
    yield from loop_cases(bed.recipe, bed.info, bed.settings, bed.folder / "loop")


def _started(bed: Bed, case: str, name: str, samples: list[float], **fields: Any) -> Result:
    config = bed.recipe
    return Result(
        case=case,
        name=name,
        model=config.model.name,
        image_size=bed.info.image_size,
        batch_size=config.batch_size,
        dtype=config.model.dtype,
        parallel=config.parallel,
        devices=jax.device_count(),
        samples=samples,
        **fields,
    )


def _compile(bed: Bed) -> Iterator[Result]:
    for name, found in bed.starts.items():
        parts = ("import_seconds", "compile_seconds", "step_seconds", "cache_files")
        note = {part: found[-1][part] for part in parts}
        seconds = [start["seconds"] for start in found]
        yield _started(bed, "compile", f"{name} start to first step", seconds, note=note)


def _memory(bed: Bed) -> Iterator[Result]:
    found = bed.starts["warm"]
    for key, name in (
        ("stepping_bytes", "resident while stepping"),
        ("process_bytes", "resident, compiling included"),
        ("device_bytes", "peak on a device"),
    ):
        if key in found[0]:
            samples = [float(start[key]) for start in found]
            yield _started(bed, "memory", name, samples, unit="bytes")
    planned = found[0]["planned"]
    if planned:
        total = planned["argument"] + planned["output"] + planned["temp"] - planned["alias"]
        name = "planned by XLA per device"
        yield _started(bed, "memory", name, [float(total)], unit="bytes", note=planned)


def _parallel(bed: Bed) -> Iterator[Result]:
    if not bed.recipe.model.bn_sync:
        bed.say("parallel: left out, jit has no BatchNorm per device (config.model.bn_sync=False)")
        return
    steps = {mode: prepare_train(bed.changed(parallel=mode), bed.info) for mode in ("jit", "pmap")}
    times = alternate(
        {mode: step.call for mode, step in steps.items()},
        repetitions=bed.settings.repetitions,
        min_seconds=bed.settings.min_seconds,
        warmup=1 + bed.settings.warmup,
    )
    for mode, step in steps.items():
        note = {}
        if mode == "pmap":
            note = {"ratio_to_jit": paired_ratio(times["pmap"], times["jit"]).median}
        yield step.result("parallel", mode, times[mode], **note)


def _devices(bed: Bed) -> Iterator[Result]:
    """The same number of images per device on 1, 2, 4 ... devices; notes the scaling efficiency."""
    devices = jax.devices()
    counts = [2**n for n in range(len(devices).bit_length()) if 2**n < len(devices)]
    each = max(bed.recipe.batch_size // len(devices), bed.recipe.accumulate)
    alone = 0.0
    if len(devices) == 1:
        bed.say("devices: there is one device, so nothing to scale")
        return
    for count in [*counts, len(devices)]:
        recipe = bed.changed(batch_size=each * count, eval_batch_size=each * count)
        step = prepare_train(recipe, bed.info, devices[:count])
        result = step.result("devices", "step", bed.times(step))
        rate = result.to_dict(None)["images_per_second"]
        alone = alone or rate
        yield dataclasses.replace(result, note={"efficiency": rate / (count * alone)})


def _batches(bed: Bed) -> Iterator[Result]:
    for size in whole_numbers("config.bench.batch_sizes", bed.settings.batch_sizes):
        step = prepare_train(bed.changed(batch_size=size, eval_batch_size=size), bed.info)
        yield step.result("batches", "step", bed.times(step))


def _sizes(bed: Bed) -> Iterator[Result]:
    for size in whole_numbers("config.bench.image_sizes", bed.settings.image_sizes):
        step = prepare_train(bed.recipe, synthetic_info(size))
        yield step.result("sizes", "step", bed.times(step))


# Cases with child processes come first, before this process takes the memory of the devices.
CASES: dict[str, Callable[[Bed], Iterator[Result]]] = {
    "compile": _compile,
    "memory": _memory,
    "train": _train,
    "eval": _eval,
    "augment": _augment,
    "input": _input,
    "loop": _loop,
    "parallel": _parallel,
    "devices": _devices,
    "batches": _batches,
    "sizes": _sizes,
}
_IN_PROCESSES = ("compile", "memory")


def choose_cases(only: str) -> list[str]:
    """Parses a comma-separated list of cases; returns them in the order of running, all if empty.

    Raises:
      InputError: unknown case.
    """
    asked = [name.strip() for name in only.split(",") if name.strip()] or list(CASES)
    for name in asked:
        if name not in CASES:
            raise InputError(f"--only={name}: there is no such case; there are {', '.join(CASES)}")
    return [name for name in CASES if name in asked]


def benchmark(
    config: ConfigDict,
    output: Path,
    *,
    only: str = "",
    compare_with: Path | None = None,
    report: Path | None = None,
    say: Say = lambda line: None,
) -> tuple[list[str], bool]:
    """Measures the cases of a config and writes the results to a folder.

    Args:
      config: config of `configs/bench.py`.
      output: folder for benchmark.json, benchmark.csv and roofline.png.
      only: comma-separated cases, all if empty.
      compare_with: benchmark.json of an earlier run.
      report: report.json of a training, whose error is shown beside its cost.
      say: called with each progress line.

    Returns:
      (lines for the user, whether a case became slower than in `compare_with`).

    Raises:
      InputError: invalid config, case or file, or another machine than that of `compare_with`.
    """
    recipe, settings, info = check_bench(config)
    cases = choose_cases(only)
    old = load_benchmark(compare_with) if compare_with else None
    trained = load_report(report) if report else None
    output = make_folder(output)
    with cleans_up(), tempfile.TemporaryDirectory() as scratch:
        found = run_suite(Bed(recipe, settings, info, Path(scratch), say), cases, old)
    paths = write_benchmark(output, found, trained)
    lines = [*table_lines(found), *(report_lines(trained, found) if trained else ())]
    lines += [f"written: {path}" for path in paths]
    if old is None:
        return lines, False
    compared, slower = comparison_lines(old, found, settings.tolerance)
    return [*lines, *compared], slower


def run_suite(
    bed: Bed, cases: Sequence[str], old: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Runs cases; measures the peaks of the machine before and after them.

    Args:
      bed: what is measured.
      cases: keys of `CASES`.
      old: benchmark that this one will be compared with.

    Returns:
      The contents of benchmark.json, i.e. `date`, `hardware`, `versions`, `environment`,
      `load_average` (of the last minute before the start), `peaks`, `quiet` (whether the peaks
      moved by at most 10 % and that load was at most a quarter of the cores), `config`, `settings`,
      `cases` and `results`, one dict per line, see `Result.to_dict`.

    Raises:
      InputError: the recipe cannot be built, or `old` is from another machine.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    busy = load > _BUSY * cores
    if busy:
        bed.say(f"this machine is busy: load average {load:.1f} on {cores} cores")
    if any(name in cases for name in _IN_PROCESSES):
        _ = bed.starts
    device = jax.local_devices()[0]
    if old is not None:
        check_machine(old, hardware())
    _share_compilations(bed.folder / "compiled")
    if "batches" in cases:  # reject wrong sizes before the other cases are measured
        for size in whole_numbers("config.bench.batch_sizes", bed.settings.batch_sizes):
            build_run(bed.changed(batch_size=size, eval_batch_size=size), bed.info)
    bed.say("measuring the peaks of this machine")
    measured = functools.partial(
        measure_peaks, device, bed.recipe.model.dtype, repetitions=bed.settings.repetitions
    )
    peaks = [measured()]
    found: list[Result] = []
    for name in cases:
        bed.say(f"case {name}")
        try:
            for result in CASES[name](bed):
                found.append(result)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            bed.say(f"case {name}: out of memory on the device; left out from there on")
    peaks.append(measured())
    ceiling = Peaks(
        max(p.flops_per_second for p in peaks),
        max(p.bytes_per_second for p in peaks),
        bed.recipe.model.dtype,
    )
    steady = all(_drift(*(getattr(p, key) for p in peaks)) <= _DRIFT for key in _CEILINGS)
    if not steady:
        bed.say("the peaks moved by more than 10 % in the meantime: the machine was not quiet")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "environment": {
            key: os.environ[key]
            for key in ("GLIBC_TUNABLES", SWITCH, "XLA_FLAGS", "LIBTPU_INIT_ARGS")
            if key in os.environ
        },
        "load_average": load,
        "peaks": dataclasses.asdict(ceiling)
        | {"before": dataclasses.asdict(peaks[0]), "after": dataclasses.asdict(peaks[1])},
        "quiet": steady and not busy,
        "config": bed.recipe.to_dict(),
        "settings": dataclasses.asdict(bed.settings),
        "cases": list(cases),
        "results": [
            result.to_dict(ceiling.times(result.devices, device.platform)) for result in found
        ],
    }


def _share_compilations(folder: Path) -> None:
    """Lets cases with the same step compile it once; the case `compile` has its own caches."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))


_CEILINGS = ("flops_per_second", "bytes_per_second")


def _drift(before: float, after: float) -> float:
    return abs(after - before) / max(before, after)
