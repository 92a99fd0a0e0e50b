"""Mutation tests of our own code: does a test fail when one expression of it is changed?

usage: python -m benchmarks.robustness.mutants --output=FILE.csv [--mutants=45] [--seed=0]
           [--only=PACKAGE] [--list] [--rerun]

Lines are drawn by the seed from those that the tests of their package execute, three per package
and the rest of --mutants where most lines are; of each line one mutant (`ast_mutations.py`). A
mutant lives in a copy of the working tree, on which the tests of its package run until one fails:
those that execute the line first, from the fastest on, then all others. `killed`: a test fails that
passes without the mutant; `timeout`: a test takes longer than three times the slowest of its
package and a minute; else `survived`. How a survivor is equivalent to the code, or what it shows,
is written into the column `why` of FILE.csv by hand.

FILE.csv is written after every mutant: the same command goes on where it was stopped, and a row
keeps its `why` for as long as its line is in the code. --rerun runs finished mutants again. Which
test executes which line is measured once for each state of a package and its tests (FILE/*.json,
beside a cache of compiled programs).
"""

import argparse
import collections
import contextlib
import csv
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import coverage
import pytest

from benchmarks.provenance import write_provenance
from benchmarks.robustness.ast_mutations import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
# The tests that judge a package: those of its folder, and for one package these too.
_FLAT = "flat"  # files of boneage_jax that are in no package
_FOLDERS = (
    *("training", "inference", "evaluation", "data", "models", "tasks", "pretrained", "planning"),
    *("benchmarking", "experiments", "report", "storage", "runtime"),
)
_EVALUATION = (
    *("tests/training/test_end_to_end.py", "tests/training/test_ensemble.py"),
    *("tests/inference/test_segment_files.py", "tests/tasks/test_metrics.py", "tests/evaluation"),
)
TESTS = {name: (f"tests/{name}",) for name in _FOLDERS} | {
    "evaluation": _EVALUATION,
    "tfds_rsna": ("tests/tfds_rsna",),
    _FLAT: tuple(f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py"))),
}
COLUMNS = ["id", "package", "file", "line", "before", "after", "outcome", "test", "seconds", "why"]
_FEW = 3  # mutants of a package
_FIRST = 20  # tests that run first; more would jump between files, whose fixtures cost time
_RC = """[run]
source =
    {tree}/boneage_jax
    {tree}/tfds_rsna
data_file = {folder}/coverage
patch = subprocess, _exit
disable_warnings = no-data-collected, module-not-measured
"""


def sources(package: str, root: Path) -> list[Path]:
    """The Python files of a package."""
    if package == _FLAT:
        return sorted((root / "boneage_jax").glob("*.py"))
    folder = root / ("" if package == "tfds_rsna" else "boneage_jax") / package
    return sorted(folder.rglob("*.py"))


class Measured(NamedTuple):
    """What the tests of a package do without a mutant."""

    state: str  # digest of the package and its tests
    seconds: dict[str, float]  # by test, those that pass
    failed: list[str]  # these judge nothing
    lines: dict[str, dict[str, list[str]]]  # file, line -> tests; [] by other processes or imports


class Run(NamedTuple):
    """How a run of tests ended."""

    outcome: str  # survived | killed | timeout
    test: str  # that ended it
    notes: list[list[str]]  # what, seconds, test


class Tree:
    """A copy of the working tree in which tests run, so that they import the copy."""

    def __init__(self, folder: Path, compiled: Path):
        self.root, self._notes, self._compiled = folder / "tree", folder / "notes", compiled
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
            if name and (ROOT / name).is_file() and not name.startswith("benchmarks/results/"):
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        for name in ("notes", "tmp"):
            (folder / name).mkdir()
        self._environment = os.environ | {
            "PYTHONPATH": str(self.root),  # before what is installed, also in child processes
            "TMPDIR": str(folder / "tmp"),
            "MUTANTS_FOLDER": str(self._notes),
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
        }
        code = "import boneage_jax, tfds_rsna; print(boneage_jax.__file__, tfds_rsna.__file__)"
        command = [sys.executable, "-c", code]
        found = subprocess.check_output(command, cwd="/", env=self._environment, text=True)
        if found.count(str(self.root)) != 2:
            raise SystemExit(f"error: tests would import {found.strip()}, not the copy")
        self._changes = 0

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """The tree with a mutant in it."""
        path = self.root / mutant.file
        sound = path.read_bytes()
        self._write(path, mutant.apply(sound))
        try:
            yield
        finally:
            self._write(path, sound)

    def _write(self, path: Path, source: bytes) -> None:
        """Writes with a time of change of its own: by it and the size Python knows its bytecode."""
        path.write_bytes(source)
        self._changes += 1
        os.utime(path, (self._changes, self._changes))

    def run(
        self,
        tests: tuple[str, ...],
        ranks: dict[str, int] | None = None,
        patience: float = math.inf,
        rc: Path | None = None,
    ) -> Run:
        """Runs tests by rank, see pytest_notes.py.

        Args:
          tests: files and folders.
          ranks: by test.
          patience: seconds that a test may take; when it is given, the first failure is the end.
          rc: settings of coverage.py, which then measures.
        """
        notes = self._notes / "notes.txt"
        notes.write_text("")
        (self._notes / "order.json").write_text(json.dumps(ranks or {}))
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *tests]
        command += ["-p", "no:cacheprovider", "-p", "benchmarks.robustness.pytest_notes"]
        command += ["-x"] if patience < math.inf else []
        if rc:
            command[1:1] = ["-m", "coverage", "run", f"--rcfile={rc}"]
        size, since, late = -1, time.monotonic(), False
        with (self._notes / "output.txt").open("w") as out:
            options: dict[str, Any] = {"cwd": self.root, "env": self._environment}
            options |= {"stdout": out, "stderr": out, "start_new_session": True}
            process = subprocess.Popen(command, **options)
            try:
                while process.poll() is None and not late:
                    time.sleep(0.1)
                    if notes.stat().st_size != size:
                        size, since = notes.stat().st_size, time.monotonic()
                    late = time.monotonic() - since > patience
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                status = process.wait()
        events = [line.split(" ", 2) for line in notes.read_text().splitlines()]
        last = events[-1][2] if events else "the start of pytest"
        if late:
            shutil.rmtree(self._compiled, ignore_errors=True)  # one may be half written
            return Run("timeout", last, events)
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise SystemExit(f"error: no test of {', '.join(tests)} can judge")
        failed = [test for what, _, test in events if what == "failed"]
        return Run("killed" if status else "survived", (failed or [last])[0], events)

    def measure(self, package: str, cache: Path) -> Measured:
        """Runs the tests of a package under coverage.py, where that was not done before."""
        paths = [p for name in TESTS[package] for p in (self.root / name).rglob("*.py")]
        paths += [self.root / name for name in TESTS[package] if name.endswith(".py")]
        paths = sources(package, self.root) + sorted(paths)
        state = hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()
        kept = cache / f"{package}.json"
        if kept.exists() and (found := Measured(**json.loads(kept.read_text()))).state == state:
            return found
        print(f"{package}: measuring which test executes which line", file=sys.stderr, flush=True)
        rc = self._notes / "coveragerc"
        rc.write_text(_RC.format(tree=self.root, folder=self._notes))
        notes = self.run(TESTS[package], rc=rc).notes
        lines = self._executed(package, coverage.Coverage(config_file=str(rc)))
        failed = {test for what, _, test in notes if what == "failed"}
        if failed:  # some only do so under coverage.py
            passed = {test for _, _, test in notes} - failed
            files = tuple(sorted({test.split("::")[0] for test in failed}))
            again = self.run(files, dict.fromkeys(passed, -1)).notes
            notes, failed = notes + again, {test for what, _, test in again if what == "failed"}
            print("these fail and judge nothing:", *sorted(failed), sep="\n  ", file=sys.stderr)
        seconds: dict[str, float] = collections.defaultdict(float)
        for _, spent, test in notes:
            seconds[test] += float(spent)
        if len(seconds) <= len(failed):
            raise SystemExit((self._notes / "output.txt").read_text()[-2000:])
        found = Measured(
            state,
            {test: round(spent, 3) for test, spent in seconds.items() if test not in failed},
            sorted(failed),
            lines,
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found._asdict()))
        return found

    def _executed(
        self, package: str, measured: coverage.Coverage
    ) -> dict[str, dict[str, list[str]]]:
        measured.combine()
        data, found = measured.get_data(), {}
        for path in sources(package, self.root):
            lines = data.contexts_by_lineno(str(path))
            found[path.relative_to(self.root).as_posix()] = {
                str(line): sorted(filter(None, contexts)) for line, contexts in lines.items()
            }
        measured.erase()
        return found

    def judge(self, package: str, mutant: Mutant, measured: Measured) -> Run:
        """Runs the tests of a package on a mutant until one fails that passes without it."""
        covering = set(measured.lines[mutant.file][str(mutant.line)]) & measured.seconds.keys()
        fastest = sorted(covering, key=measured.seconds.__getitem__)
        files = {test.split("::")[0]: at for at, test in reversed(list(enumerate(fastest)))}
        first = sorted(fastest[:_FIRST], key=lambda test: files[test.split("::")[0]])
        ranks = {test: at for at, test in enumerate(first)}
        ranks |= {test: len(first) for test in fastest[_FIRST:]}
        ranks |= dict.fromkeys(measured.failed, -1)
        patience = 60 + 3 * max(measured.seconds.values())
        while True:
            with self.mutated(mutant):
                run = self.run(TESTS[package], ranks, patience)
            if run.outcome == "survived" or run.test not in measured.seconds:
                return run
            alone = dict.fromkeys([*measured.seconds, *measured.failed], -1) | {run.test: 0}
            if self.run((run.test.split("::")[0],), alone, patience).outcome == "survived":
                return run
            print(f"{run.test} fails without the mutant, too", file=sys.stderr, flush=True)
            ranks[run.test] = -1


def rank(seed: int, *names: str) -> str:
    """A place in a drawing that does not depend on what else is drawn from."""
    return hashlib.sha256(" ".join([str(seed), *names]).encode()).hexdigest()


def drawn(found: dict[str, list[list[Mutant]]], count: int, seed: int) -> dict[str, list[Mutant]]:
    """Draws lines, and of each a mutant.

    Args:
      found: by package, the mutants of each line.
      count: mutants over all packages.
      seed: of the drawing. More mutants are the same ones and others.
    """
    share = dict.fromkeys(found, min(_FEW, count // len(found)))
    for _ in range(count - sum(share.values())):
        share[max(found, key=lambda name: len(found[name]) / (share[name] + 1))] += 1
    result = {}
    for package, lines in found.items():
        order = sorted(lines, key=lambda line: rank(seed, *(mutant.id for mutant in line)))
        chosen = [min(line, key=lambda m: rank(seed, m.id)) for line in order[: share[package]]]
        result[package] = sorted(chosen, key=lambda mutant: (mutant.file, mutant.line))
    return result


def executed_mutants(root: Path, package: str, measured: Measured) -> list[list[Mutant]]:
    """The mutants of each line of a package that its tests execute."""
    lines = collections.defaultdict(list)
    for path in sources(package, root):
        for mutant in mutants_of(root, path.relative_to(root).as_posix()):
            if str(mutant.line) in measured.lines[mutant.file]:
                lines[mutant.file, mutant.line].append(mutant)
    return list(lines.values())


def read_rows(output: Path) -> dict[str, dict[str, Any]]:
    """The table so far, by id."""
    if not output.exists():
        return {}
    with output.open(newline="") as file:
        return {row["id"]: dict(row) for row in csv.DictReader(file)}


def write_rows(output: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Writes the table; a stop in the middle leaves the one before."""
    order = {name: number for number, name in enumerate(TESTS)}
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_suffix(".new")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in sorted(
            rows.values(), key=lambda row: (order[row["package"]], row["file"], int(row["line"]))
        ):
            writer.writerow(row)
    new.replace(output)


def main() -> None:
    """Measures, draws, runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--mutants", type=int, help="default: three per package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TESTS, metavar="PACKAGE", help=", ".join(TESTS))
    parser.add_argument("--list", action="store_true", help="print what is drawn, run none of it")
    parser.add_argument("--rerun", action="store_true", help="finished mutants, too")
    args = parser.parse_args()
    packages = [args.only] if args.only else list(TESTS)
    args.mutants = args.mutants or _FEW * len(packages)
    cache = args.output.resolve().with_suffix("")
    with tempfile.TemporaryDirectory(prefix="mutants", ignore_cleanup_errors=True) as name:
        tree = Tree(Path(name).resolve(), cache / "compiled")
        measured = {package: tree.measure(package, cache) for package in packages}
        found = {name: executed_mutants(tree.root, name, measured[name]) for name in packages}
        chosen = drawn(found, args.mutants, args.seed)
        if args.list:
            for package, mutants in chosen.items():
                for m in mutants:
                    print(f"{m.id} {package} {m.file}:{m.line}\n  - {m.before}\n  + {m.after}")
            return
        there = {mutant.id for lines in found.values() for line in lines for mutant in line}
        rows = {
            key: row
            for key, row in read_rows(args.output).items()
            if key in there or row["package"] not in packages
        }
        for package, mutants in chosen.items():
            for mutant in mutants:
                row = rows.get(mutant.id, {"why": ""})
                row |= {key: getattr(mutant, key) for key in ("id", "file", "line")}
                row |= {key: getattr(mutant, key)[:160] for key in ("before", "after")}
                if row.get("outcome") and not args.rerun:
                    continue
                began = time.monotonic()
                run = tree.judge(package, mutant, measured[package])
                row |= {"package": package, "outcome": run.outcome}
                row["test"] = "" if run.outcome == "survived" else run.test
                row["seconds"] = f"{time.monotonic() - began:.1f}"
                rows[mutant.id] = row
                write_rows(args.output, rows)
                print(*(row[key] for key in COLUMNS[:4] + COLUMNS[6:9]), flush=True)
    write_rows(args.output, rows)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows.values():
        counts[row["package"]][row["outcome"]] += 1
    total = sum(counts.values(), collections.Counter[str]())
    write_provenance(args.output, vars(args), outcomes=total, packages=counts, tests=TESTS)
    print(dict(total))


if __name__ == "__main__":
    main()
