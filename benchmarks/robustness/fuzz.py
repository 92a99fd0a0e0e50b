"""A thousand damaged inputs: images, DICOM, label tables, masks, config overrides, checkpoints.

usage: python -m benchmarks.robustness.fuzz --output=FILE.json [--cases=1000] [--seed=0]
           [--kinds=image,...]

Each input is made from a sound one by mutations drawn from the seed and goes through the function
that a door hands it to. What may happen: `refused`, an InputError of one line; or `accepted`, and
then the result must hold. What may not: `traceback`, another exception; `hang`, more than 20
seconds; `damaged`, a result that contradicts the sound input or the rules of its field. Exit status
1 if any of these did.
"""

import argparse
import collections
import gc
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from benchmarks.provenance import write_provenance
from benchmarks.robustness.damaged_inputs import KINDS
from boneage_jax.errors import InputError

SECONDS = 20  # a case that takes longer hangs
# A case: what was done to the input, and the call that must refuse it or return a sound result.
# The call returns "" for a sound result, else what is wrong with it.
Case = tuple[str, Callable[[], str]]


class Hang(BaseException):
    """Not an Exception: no `except Exception` on the way may swallow it."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def outcome(call: Callable[[], str]) -> tuple[str, str]:
    """What became of a case, and the words of it; a traceback on the screen is one, too."""
    with tempfile.TemporaryFile() as screen:
        shown = os.dup(2)
        os.dup2(screen.fileno(), 2)
        try:
            result = _called(call)
            gc.collect()  # what is reported when it is thrown away
        finally:
            os.dup2(shown, 2)
            os.close(shown)
        screen.seek(0)
        text = screen.read().decode(errors="replace")
    return ("traceback", text) if "Traceback (most recent" in text else result


def _called(call: Callable[[], str]) -> tuple[str, str]:
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    try:
        wrong = call()
        return ("damaged", wrong) if wrong else ("accepted", "")
    except InputError as error:
        text = str(error)
        return ("traceback", f"of several lines: {text}") if "\n" in text else ("refused", text)
    except Hang:
        return "hang", f"more than {SECONDS} s"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(kinds: list[str], cases: int, seed: int, folder: Path) -> Iterator[dict[str, str]]:
    """Yields a row per case."""
    for kind in kinds:
        draw = random.Random(f"{seed} {kind}")
        make = KINDS[kind](folder / kind)
        gc.freeze()  # a collection after each case then takes milliseconds, not a second
        for number in range(cases):
            what, call = make(draw)
            result, says = outcome(call)
            yield {
                "kind": kind,
                "case": f"{number}",
                "what": what,
                "outcome": result,
                "says": says[:300],
            }


def main() -> None:
    """Runs all kinds and writes the counts, and in full what must not happen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--cases", type=int, default=1000, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in kinds}
    bad = []
    examples: dict[str, list[str]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        for row in run(kinds, -(-args.cases // len(kinds)), args.seed, Path(name)):
            counts[row["kind"]][row["outcome"]] += 1
            if row["outcome"] not in ("refused", "accepted"):
                bad.append(row)
                print(row, flush=True)
            elif row["outcome"] == "refused" and len(examples[row["kind"]]) < 3:
                examples[row["kind"]].append(row["says"].replace(name, "FOLDER"))
    found = {
        "cases": sum(count.total() for count in counts.values()),
        "counts": counts,
        "must_not_happen": bad,
        "examples_of_refusals": examples,
    }
    write_provenance(args.output, vars(args), **found)
    print({kind: dict(count) for kind, count in counts.items()})
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
