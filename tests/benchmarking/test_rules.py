"""What a benchmark makes of its times: closed forms, a clock that is set by hand, made-up files."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from boneage_jax.benchmarking.comparing import (
    check_machine,
    compare,
    comparison_lines,
    load_benchmark,
)
from boneage_jax.benchmarking.peaks import Peaks, measure_peaks, position
from boneage_jax.benchmarking.result import KEY, Result
from boneage_jax.benchmarking.roofline import _roofline
from boneage_jax.benchmarking.settings import bench_config, check_bench
from boneage_jax.benchmarking.suite import CASES, choose_cases
from boneage_jax.benchmarking.table import load_report, report_lines
from boneage_jax.benchmarking.timing import alternate, measure, paired_ratio, summarize
from boneage_jax.errors import InputError


class Clock:
    """Stands still but for what calls add."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def call(self, seconds):
        """A call that takes these seconds, one after the other, and then the last for ever."""
        left = list(seconds)

        def run():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_median_and_quartiles():
    spread = summarize([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (spread.median, spread.low, spread.high, spread.n) == (3.0, 2.0, 4.0, 5)
    spread = summarize([1.0, 2.0])  # between two samples: a quarter of the way from each end
    assert (spread.median, spread.low, spread.high) == (1.5, 1.25, 1.75)
    assert summarize([7.0]).low == summarize([7.0]).high == 7.0


def test_warmup_is_not_timed():
    clock = Clock()
    taken = measure(clock.call([50.0, 20.0, 1.0]), repetitions=4, warmup=2, clock=clock)
    assert taken == [1.0] * 4


def test_short_calls_are_repeated_until_enough_time_has_passed():
    clock = Clock()
    call = clock.call([0.25])
    assert len(measure(call, repetitions=3, min_seconds=2.0, warmup=0, clock=clock)) == 8
    assert len(measure(call, repetitions=12, min_seconds=2.0, warmup=0, clock=clock)) == 12
    never = Clock().call([0.0])
    assert len(measure(never, repetitions=3, min_seconds=1.0, warmup=0, clock=Clock())) == 1000


def test_calls_take_turns_and_none_is_always_first():
    clock, order = Clock(), []

    def named(name, seconds):
        def run():
            order.append(name)
            clock.now += seconds

        return run

    calls = {"a": named("a", 1.0), "b": named("b", 2.0), "c": named("c", 3.0)}
    times = alternate(calls, repetitions=3, warmup=0, clock=clock)
    assert "".join(order) == "abcbcacab"
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}


def test_a_ratio_is_taken_pair_by_pair():
    # The machine slows down threefold in the second round; the ratio does not.
    ratio = paired_ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.0])
    assert ratio.median == pytest.approx(2.0)
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_the_roof_is_bandwidth_below_the_ridge_and_arithmetic_above():
    peaks = Peaks(400e9, 40e9, "float32")  # ridge at 10 FLOPs a byte
    assert peaks.roof(5) == 200e9
    assert peaks.roof(10) == peaks.roof(1000) == 400e9
    # 60 GFLOP and 12 GB in 0.5 s: 120 GFLOP/s at 5 FLOPs a byte, under a roof of 200.
    where = position(60e9, 12e9, 0.5, peaks)
    assert where.flops_per_second == pytest.approx(120e9)
    assert where.peak_share == pytest.approx(0.3)
    assert where.intensity == pytest.approx(5.0)
    assert where.roof_share == pytest.approx(0.6)
    unknown = position(60e9, 0.0, 0.5, peaks)
    assert unknown.intensity is unknown.roof_share is None


def test_ceilings_of_several_devices():
    peaks = Peaks(100.0, 10.0, "float32")
    assert peaks.times(4, "gpu") == Peaks(400.0, 40.0, "float32", 4)
    assert peaks.times(4, "cpu") == peaks  # simulated devices share the cores


def test_peaks_are_measured(one_device):
    peaks = measure_peaks(one_device[0], "bfloat16", repetitions=2, sides=(64, 32), megabytes=1)
    assert peaks.dtype == "bfloat16"
    assert min(peaks.flops_per_second, peaks.bytes_per_second) > 1e6


def test_a_line_has_rates_where_they_mean_something():
    what = ("b4", 256, 8, "float32", "jit", 2)
    line = Result("train", "step", *what, [2.0, 4.0, 1.0], images=8, flops=100, bytes_accessed=50)
    row = line.to_dict(Peaks(200.0, 10.0, "float32"))
    assert row["images_per_second"] == 4.0
    assert row["images_per_second_low"] == pytest.approx(8 / 3)
    assert row["images_per_second_high"] == pytest.approx(8 / 1.5)
    assert (row["flops_per_second"], row["intensity"]) == (50.0, 2.0)
    assert row["roof_share"] == pytest.approx(50 / 20)
    memory = Result("memory", "peak", *what, [3e9], unit="bytes").to_dict(None)
    assert not {"images_per_second", "flops", "flops_per_second"} & memory.keys()
    unknown = Result("train", "step", *what, [1.0], images=8, flops=100)
    row = unknown.to_dict(Peaks(200.0, 10.0, "float32"))
    assert "intensity" not in row and "bytes_accessed" not in row
    assert row["peak_share"] == 0.5


HARDWARE = {"platform": "cpu", "device": "EPYC", "devices": 1, "processes": 1, "cpu_cores": 2}


def line(case="train", median=1.0, low=0.99, high=1.01, n=10, **changes):
    row = dict.fromkeys(KEY, "x") | {"case": case, "batch_size": 8, "unit": "s"}
    return row | {"median": median, "low": low, "high": high, "n": n, "note": {}} | changes


def benchmark(*rows):
    return {"hardware": HARDWARE, "date": "2026-01-01", "results": list(rows)}


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        (line(median=1.04, low=1.03, high=1.05), "same"),  # within the tolerance
        (line(median=1.20, low=1.00, high=1.40), "same"),  # quartiles overlap
        (line(median=1.10, low=1.08, high=1.12), "slower"),
        (line(median=1.10, low=1.08, high=1.12, n=3), "same"),  # few: within 15 %
        (line(median=1.20, low=1.18, high=1.22, n=3), "slower"),
        (line(median=0.90, low=0.89, high=0.91), "faster"),
        (line(median=0.96, low=0.955, high=0.965), "same"),
        (line(median=0.80, low=0.70, high=1.00), "same"),
    ],
)
def test_the_rule_of_comparison(new, verdict):
    (change,) = compare(benchmark(line()), benchmark(new), 0.05)
    assert change.verdict == verdict
    assert change.ratio == new["median"]


def test_only_the_same_measurement_is_compared():
    old = benchmark(line(), line("eval"), line("eval", batch_size=16))
    new = benchmark(line("eval", 2.0, 1.9, 2.1), line("augment"))
    lines, slower = comparison_lines(old, new, 0.05)
    assert slower
    assert sum("slower " in text for text in lines) == 1
    assert any("2 lines of the old benchmark were not measured" in text for text in lines)
    lines, slower = comparison_lines(old, benchmark(line("loop")), 0.05)
    assert not slower and any("nothing in common" in text for text in lines)


def test_a_change_of_the_machine_itself_is_told():
    old = benchmark(line()) | {"peaks": {"flops_per_second": 400e9, "bytes_per_second": 40e9}}
    new = benchmark(line()) | {"peaks": {"flops_per_second": 300e9, "bytes_per_second": 40e9}}
    lines, slower = comparison_lines(old, new, 0.05)
    assert not slower
    assert any("matrix product is 0.750 x" in text for text in lines)
    assert not any("bandwidth" in text for text in lines)


def test_benchmarks_of_other_machines_are_refused():
    check_machine(benchmark(line()), HARDWARE)
    with pytest.raises(InputError, match=r"device 'EPYC'.*'H100'"):
        check_machine(benchmark(line()), HARDWARE | {"device": "H100"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[1]", "not a benchmark"),
        (json.dumps(benchmark()), "not a benchmark"),
        (json.dumps({"hardware": HARDWARE}), "not a benchmark"),
        (json.dumps(benchmark({"case": "train"})), "not a benchmark"),
        (json.dumps(benchmark(line(median=None))), "not a benchmark"),
        (json.dumps(benchmark(line(low=3.0))), "not a benchmark"),
        (json.dumps(benchmark(line(median=0.0, low=0.0))), "not a benchmark"),
    ],
)
def test_a_damaged_benchmark_is_refused(tmp_path, text, words):
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_benchmark(path)
    path.write_text(json.dumps(benchmark(line())))
    assert load_benchmark(path)["results"][0]["case"] == "train"


def test_cases_are_chosen_by_name_and_run_in_their_order():
    assert choose_cases("") == list(CASES)
    assert choose_cases("loop, train") == ["train", "loop"]
    with pytest.raises(InputError, match=r"--only=trian: .*train"):
        choose_cases("trian")


def test_an_error_beside_what_it_cost(tmp_path):
    path = tmp_path / "report.json"
    report = {
        "age": {"mae": 10.0},
        "compute": {"train_flops": 50e12},
        "curve": [{"step": 1, "flops": 25e12, "mae": 20.0}],
        "config": {"model": {"name": "x"}},
    }
    path.write_text(json.dumps(report))
    new = benchmark(line(flops_per_second=100e9))
    (text,) = report_lines(load_report(path), new)
    assert "MAE 10.00 months after 50.0 TFLOP" in text
    assert "0.2 months per TFLOP" in text
    assert f"{50e12 / 100e9 / 60:.3g} minutes" in text
    path.write_text(json.dumps({"mask": {}}))
    with pytest.raises(InputError, match=r"not the report\.json of a bone-age training"):
        load_report(path)
    with pytest.raises(InputError, match="no such file"):
        load_report(tmp_path / "none.json")


def test_the_figure_names_both_ceilings_and_places_each_case_under_them():
    row = {"case": "train", "name": "jit", "model": "b4", "image_size": 256, "batch_size": 8}
    row |= {"intensity": 10.0, "flops_per_second": 4e11, "devices": 8, "peak_share": 0.25}
    peaks = {"flops_per_second": 2e11, "bytes_per_second": 2e10, "dtype": "float32"}
    axes = Figure().add_subplot()
    hardware = {"platform": "gpu"}
    _roofline(axes, {"peaks": peaks, "results": [row], "hardware": hardware})
    words = [text.get_text() for text in axes.texts]
    assert "200 GFLOP/s, float32 matrix product" in words and "20 GB/s" in words
    placed = np.concatenate([line.get_xydata() for line in axes.lines])
    assert (placed == [10.0, 50.0]).all(1).any()  # of each device, like the ceilings
    assert axes.get_legend().texts[0].get_text() == "train, 256 px, batch 8: 25.0% of peak"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image_size", 64.0, "bench.image_size=64.0 must be int, as 128 is"),
        ("image_size", True, "bench.image_size=True must be int, as 128 is"),
        ("min_seconds", "1", "bench.min_seconds='1' must be float, as 1.0 is"),
        ("warmup", -1, r"bench.warmup=-1 must be in"),
        ("devices", 4, "unknown config key 'bench.devices'"),
    ],
)
def test_settings_of_another_type_or_out_of_range_are_refused(key, value, words):
    config = bench_config().to_dict()
    config["bench"][key] = value
    with pytest.raises(InputError, match=words):
        check_bench(ConfigDict(config))
