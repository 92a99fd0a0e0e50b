"""A plugin of pytest for mutants.py: runs tests in a given order and notes what becomes of each.

$MUTANTS_FOLDER has order.json, an object of node ids with their ranks: tests without one come last,
those of rank -1 are left out. Its notes.txt gets a line per event: what, seconds and node id.
"""

import json
import os
from pathlib import Path

import coverage
import pytest

FOLDER = Path(os.environ["MUTANTS_FOLDER"])


def _note(what: str, nodeid: str, seconds: float = 0.0) -> None:
    with (FOLDER / "notes.txt").open("a") as file:
        file.write(f"{what} {seconds:.3f} {nodeid}\n")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks: dict[str, int] = json.loads((FOLDER / "order.json").read_text())
    items[:] = [item for item in items if ranks.get(item.nodeid) != -1]
    items.sort(key=lambda item: ranks.get(item.nodeid, len(ranks)))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _note("failed", report.nodeid)


def pytest_runtest_logstart(nodeid: str) -> None:
    measured = coverage.Coverage.current()
    if measured:
        measured.switch_context(nodeid)  # its lines, until the next test starts
    _note("started", nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report.outcome, report.nodeid, report.duration)
