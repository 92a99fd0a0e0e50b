"""Progress on a terminal, a narrow one too, and in a log."""

import io
import sys

import pytest

from boneage_jax.runtime.progress import progress


class Stream(io.TextIOWrapper):
    def __init__(self, terminal: bool, encoding: str):
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def shown(monkeypatch, *, terminal: bool, encoding: str = "utf-8", **options) -> str:
    stream = Stream(terminal, encoding)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress(range(3), desc="reading", unit="image", **options)) == [0, 1, 2]
    return stream.text()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_log_gets_whole_lines(monkeypatch, encoding):
    lines = shown(monkeypatch, terminal=False, encoding=encoding, log_seconds=0).split("\n")
    shares = dict.fromkeys(line.split("|")[0] for line in lines[:-1])  # closing repeats the last
    assert list(shares) == [f"reading: {share:3d}%" for share in (0, 33, 67, 100)]
    assert "3/3 [" in lines[3] and "\r" not in "".join(lines)


def test_a_log_gets_no_line_for_each_item(monkeypatch):
    assert shown(monkeypatch, terminal=False).count("\n") == 2  # the first and the last


def test_what_is_over_soon_is_not_shown(monkeypatch):
    assert shown(monkeypatch, terminal=False, delay=60) == ""


@pytest.mark.parametrize("columns", [1, 10, 200])
def test_a_terminal_gets_one_line_of_its_width(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 24))
    text = shown(monkeypatch, terminal=True)
    assert text.count("\n") == 1 and text.endswith("\n")
    assert all(len(line) <= columns for line in text.rstrip("\n").split("\r"))
