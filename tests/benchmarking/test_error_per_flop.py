"""The law of error and FLOPs, on points whose law is known."""

import numpy as np
import pytest

from benchmarks.studies import error_per_flop as study
from boneage_jax.experiments.sweep_tables import RUN_COLUMNS, write_table


def points_of(law, flops, noise=0.0):
    rng = np.random.default_rng(0)
    return [
        study.Point(f"{x:g}", x, y := float(law(x)) + noise * rng.normal(), y - 0.2, y + 0.2)
        for x in flops
    ]


def test_a_known_law_is_found_again():
    law = study.Law(5.0, 4.5, 0.25)
    flops = np.geomspace(1e13, 1e15, 5)
    np.testing.assert_allclose(study.fit(flops, law(flops)), law, rtol=1e-3)


def test_the_truth_lies_within_the_uncertainty():
    law = study.Law(5.0, 4.5, 0.25)
    laws = study.draw_laws(points_of(law, np.geomspace(1e13, 1e15, 5), noise=0.1), draws=200)
    low, high = np.quantile([one(1e16) for one in laws], (0.025, 0.975))
    assert low < law(1e16) < high
    assert high - low > 0.5  # ten times the largest run: little is known


def test_the_best_are_those_that_none_for_as_much_beats():
    costs = [(0.99e13, 9.5), (1e13, 9.3), (3e13, 9.4), (1e14, 8.0), (2e14, 8.2)]
    points = [study.Point(str(n), x, y, y, y) for n, (x, y) in enumerate(costs)]
    assert [point.name for point in study.best_of(points)] == ["1", "3"]
    lucky = points[3]._replace(name="lucky", months=7.5, seed="1")  # one of two: it cost both
    assert [point.name for point in study.best_of([*points, lucky])] == ["1", "3"]


def test_figure_and_law_from_a_table(tmp_path, monkeypatch, capsys):
    rows = [
        dict.fromkeys(RUN_COLUMNS, "")
        | {"arm": one.name, "mae": one.months, "train_flops": one.flops}
        | ({"mae_low": one.low, "mae_high": one.high} if number else {})
        for number, one in enumerate(points_of(study.Law(5.0, 4.5, 0.25), (1e13, 1e14, 3e14, 1e15)))
    ]
    write_table(tmp_path / "runs.csv", rows, RUN_COLUMNS)
    monkeypatch.setattr(study, "_DRAWS", 50)
    arguments = [f"--output={tmp_path / 'law.json'}", f"--figure={tmp_path / 'law.png'}"]
    monkeypatch.setattr("sys.argv", ["study", *arguments, str(tmp_path / "runs.csv")])
    study.main()
    assert "1e+13 FLOPs: 9.50 months (1e+13)" in capsys.readouterr().out
    assert (tmp_path / "law.png").stat().st_size > 10_000
    first = study.read_points(tmp_path / "runs.csv")[0]
    assert (first.low, first.high) == pytest.approx((9.1, 9.9))
