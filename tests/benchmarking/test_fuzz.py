"""Damaged inputs end in one line or in a sound result: a short form of robustness/fuzz.py."""

import collections

import pytest

from benchmarks.robustness.damaged_inputs import KINDS
from benchmarks.robustness.fuzz import run

_SHORT = sorted(KINDS.keys() - {"checkpoint"})  # which trains a network first


@pytest.mark.parametrize("kind", _SHORT)
def test_damaged_inputs_are_refused_or_read_soundly(kind, tmp_path, capfd):
    rows = list(run([kind], 24, 1, tmp_path))
    assert [row for row in rows if row["outcome"] not in ("refused", "accepted")] == []
    # A test of these that refused or took everything would see nothing.
    seen = collections.Counter(row["outcome"] for row in rows)
    assert seen["refused"] >= 5 and seen["accepted"] >= 1
