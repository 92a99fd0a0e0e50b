"""The written report: page, figures, JSON and CSV."""

import base64
import csv
import json
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.report.figures import draw_figures
from boneage_jax.report.page import readable_flops, summary_lines, write_page
from boneage_jax.report.run_report import json_safe, write_report
from boneage_jax.tasks.metrics import age_summary, sex_summary

NASTY = "<script>alert('1')</script> & \"co\""
FIGURES = [
    "age_scatter",
    "bland_altman",
    "error_by_age",
    "sex_confusion",
    "sex_calibration",
    "learning_curve",
]


def synthetic(n: int = 60) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    true = rng.uniform(5, 220, n)
    rows = {
        "id": np.arange(n) + 1000,
        "true_age": true,
        "predicted_age": (true + rng.normal(0, 8, n)).astype(np.float32),
        "male": rng.integers(-1, 2, n),
        "p_male": rng.uniform(0, 1, n),
        "features": np.zeros((n, 4)),
    }
    compute = {
        "train_flops": np.int64(3_450_000_000_000),
        "seconds": 75.0,
        "parameters": 17_553_210,
    }
    hardware = {"platform": "cpu", "device": NASTY, "devices": 1}
    report = {
        "age": age_summary(rows["predicted_age"], true, rows["male"], 127.3),
        "sex": sex_summary(rows["p_male"], rows["male"]),
        "dataset": {"name": NASTY, "splits": {"train": 12611}, "test_unlocked": False},
        "compute": compute | {"hardware": hardware, "versions": {"jax": "0.10.2"}},
        "curve": [{"step": s, "flops": s * 10**9, "mae": 30.0 / s} for s in (1, 2, 3)],
        "config": {"batch_size": 32, "data": {"name": NASTY}},
    }
    return report, rows


class Page(HTMLParser):
    """Checks that tags nest and keeps what is on the page."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_report(folder, *synthetic(), f"B4 on {NASTY}")
    return folder


def test_files(written: Path) -> None:
    names = sorted(path.name for path in written.iterdir())
    assert names == ["figures", "predictions.csv", "report.html", "report.json"]
    assert sorted(p.stem for p in (written / "figures").iterdir()) == sorted(FIGURES)


def test_json_holds_the_report(written: Path) -> None:
    report, _ = synthetic()
    found = json.loads((written / "report.json").read_text())
    assert found["age"] == report["age"]
    assert found["compute"]["train_flops"] == 3_450_000_000_000
    assert found["config"]["data"]["name"] == NASTY
    assert list(found) == sorted(found)


def test_page_is_whole_escaped_and_fetches_nothing(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("img") == len(FIGURES)
    assert page.text.count(NASTY) >= 4  # title, headline, data set, device
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value is not None and value.startswith("data:image/png;base64,")
            assert base64.b64decode(value.split(",")[1])[:4] == b"\x89PNG"


def test_page_shows_the_numbers(written: Path) -> None:
    report, _ = synthetic()
    text = Page((written / "report.html").read_text()).text
    for value in (f"{report['age']['mae']:.2f} months", f"{report['sex']['auc']:.3f}"):
        assert value in text
    for words in ("3.45 TFLOP", "17,553,210", "12,611", "1 min 15 s", "0.10.2", "By sex"):
        assert words in text


def test_figures_are_drawn(written: Path) -> None:
    for name in FIGURES:
        image = cv2.imread(str(written / "figures" / f"{name}.png"))
        assert image is not None and image.shape[1] == 960  # 6.4 inches at 150 dpi
        ink = (image.min(axis=2) < 200).mean()
        assert 0.005 < ink < 0.6
        edge = np.concatenate([image[:2].ravel(), image[:, :2].ravel(), image[-2:].ravel()])
        assert (edge == 255).all()  # no text is cut off


def test_drawing_is_reproducible_and_leaves_matplotlib_alone(written: Path, tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    report, rows = synthetic()
    for path in draw_figures(tmp_path, rows, report, f"B4 on {NASTY}"):
        assert path.read_bytes() == (written / "figures" / path.name).read_bytes()
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("n", [1, 2])
def test_few_images_without_sex(tmp_path: Path, n: int) -> None:
    _, rows = synthetic()
    rows = {k: v[:n] for k, v in rows.items() if k in ("id", "true_age", "predicted_age")}
    unknown = np.full(n, -1)
    age = age_summary(rows["predicted_age"], rows["true_age"], unknown, 100.0)
    write_report(tmp_path, {"age": age}, rows | {"male": unknown}, "few")
    assert len(list((tmp_path / "figures").iterdir())) == 3
    Page((tmp_path / "report.html").read_text())


def test_a_report_of_masks(tmp_path: Path) -> None:
    report = {
        "mask": {"per_image": {"iou": 0.91, "f1": 0.953}, "pooled": {"iou": 0.9}},
        "curve": [{"step": 5, "flops": 10**7, "iou": 0.8}, {"step": 9, "flops": 10**8, "iou": 0.9}],
    }
    write_report(tmp_path, report, {"id": np.array(["a", "b"])}, "masks")
    assert [path.stem for path in (tmp_path / "figures").iterdir()] == ["learning_curve"]
    assert "0.953" in Page((tmp_path / "report.html").read_text()).text
    assert "per image iou 0.91" in summary_lines(report)[0]


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", {}, [], "nothing")
    assert "nothing" in Page((tmp_path / "report.html").read_text()).text
    assert summary_lines({}) == []


def test_predictions_csv(written: Path) -> None:
    _, rows = synthetic()
    with (written / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["id", "true_age", "predicted_age", "male", "p_male"]
    assert [int(row["id"]) for row in table] == rows["id"].tolist()
    found = [float(row["predicted_age"]) for row in table]
    np.testing.assert_allclose(found, rows["predicted_age"], atol=5.1e-5)
    assert [int(row["male"]) for row in table] == rows["male"].tolist()


def test_nan_is_refused_by_name(tmp_path: Path) -> None:
    report, rows = synthetic()
    report["age"]["mae"] = np.float32("nan")
    with pytest.raises(InputError, match=r"report\.age\.mae is nan: the training diverged"):
        write_report(tmp_path, report, rows, "diverged")
    assert not (tmp_path / "report.json").exists()


def test_json_safe() -> None:
    value = {"a": np.arange(2), "b": (np.float64(0.5), np.bool_(True)), "c": Path("x/y"), "d": None}
    assert json_safe(value) == {"a": [0, 1], "b": [0.5, True], "c": "x/y", "d": None}
    with pytest.raises(TypeError, match=r"report\.x is a set"):
        json_safe({"x": set()})


@pytest.mark.parametrize(
    ("flops", "words"),
    [
        (0, "0.00 FLOP"),
        (999, "999 FLOP"),
        (1.234e9, "1.23 GFLOP"),
        (45.67e12, "45.7 TFLOP"),
        (345.6e15, "346 PFLOP"),
        (5e21, "5000 EFLOP"),
    ],
)
def test_readable_flops(flops: float, words: str) -> None:
    assert readable_flops(flops) == words


def test_summary_lines() -> None:
    report, _ = synthetic()
    age, sex, compute = summary_lines(report)
    assert f"MAE {report['age']['mae']:.2f} months" in age
    assert "AUC" in sex
    assert compute == "compute: 3.45 TFLOP of training"
    report["age"]["baseline_mae"] = report["age"]["mae"]
    assert summary_lines(report)[1] == "this is no better than predicting the mean age of training"


def test_the_report_needs_no_jax_of_its_own() -> None:
    source = Path(sys.modules[write_report.__module__].__file__ or "").parent
    for path in source.glob("*.py"):
        assert not re.search(r"^\s*(import|from) (jax|flax|optax)\b", path.read_text(), re.M)


def test_ages_that_are_far_off_are_drawn_in_seconds(tmp_path):
    report, rows = synthetic()
    rows["predicted_age"] = rows["predicted_age"] * 1e9
    began = time.monotonic()
    draw_figures(tmp_path, rows, report, "diverged")
    assert time.monotonic() - began < 30  # a tick every 24 months took minutes and 7 GB
