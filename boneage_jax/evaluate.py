"""Evaluates a trained network on a split of its data set.

usage: python -m boneage_jax.evaluate --workdir=DIR [--split=validation] [--unlock_test]
                                      [--raw_dir=DIR] [--data_dir=DIR]

Prints the result and writes WORKDIR/evaluation/SPLIT/{report.json,report.html,predictions.csv,
figures/}. The test split is locked: --split=test needs --unlock_test, which is recorded.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from boneage_jax.errors import door
from boneage_jax.evaluation.split_lock import TEST, check_unlocked, note_opening
from boneage_jax.runtime.cpu_memory import use_huge_pages
from boneage_jax.runtime.xla_flags import choose_for_cpu


def evaluate(
    workdir: str | Path,
    split: str = "validation",
    *,
    unlock_test: bool = False,
    raw_dir: str = "",
    data_dir: str = "",
) -> dict[str, Any]:
    """Evaluates the selected checkpoint of a run.

    Args:
      workdir: of a finished or running training.
      split: a split of the data set the run was trained on.
      unlock_test: must be said where `split` is test; noted in the workdir.
      raw_dir, data_dir: where the data lies now, if not where it lay in training.

    Returns:
      The content of the written report.json.

    Raises:
      InputError: no run, no checkpoint, no such split, the test split without `unlock_test`, or the
        data cannot be opened.
    """
    check_unlocked(split, unlock_test)
    from boneage_jax.data.source import open_dataset
    from boneage_jax.evaluation.evaluate_split import corrected, with_labels
    from boneage_jax.inference.calibration import CALIBRATION, Calibration
    from boneage_jax.report.run_report import write_report
    from boneage_jax.storage.bucket import open_workdir, push
    from boneage_jax.training.ensemble import average, load_members, predict_split, report_members

    workdir = open_workdir(workdir)
    members = load_members(workdir)
    config = members[0].run.config
    with config.unlocked():
        config.data.raw_dir = raw_dir or config.data.raw_dir
        config.data.data_dir = data_dir or config.data.data_dir
    dataset = open_dataset(config.data)
    part = dataset.split(split)
    rows = with_labels(average(predict_split(members, part)), part)
    if config.bias_correction != "none":
        own = split == config.data.eval_split
        fitted = None if own else Calibration.load(workdir / CALIBRATION).correction
        rows = corrected(rows, config, fitted)
    if split == TEST:
        ages = {"predicted_age", "true_age"} <= rows.keys()
        found = {"mae": float(abs(rows["predicted_age"] - rows["true_age"]).mean())} if ages else {}
        note_opening(workdir, members[0].step, found)
    report = report_members(members, dataset, split, rows, workdir)
    folder = workdir / "evaluation" / split
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{config.model.name} on {dataset.name}, {split} split"
    write_report(folder, report, rows, title, part)
    push(workdir)
    return report


def main() -> None:
    """The door."""
    parser = argparse.ArgumentParser("python -m boneage_jax.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True, help="folder of a training")
    parser.add_argument("--split", default="validation", help="validation | test | train")
    parser.add_argument("--unlock_test", action="store_true", help="open the test split")
    parser.add_argument("--raw_dir", default="", help="raw data, if it moved")
    parser.add_argument("--data_dir", default="", help="prepared data, if it moved")
    args = parser.parse_args()

    from boneage_jax.report.page import summary_lines
    from boneage_jax.runtime.compile_cache import use_compile_cache
    from boneage_jax.runtime.compiler import tidy_heap
    from boneage_jax.storage.bucket import address_of

    use_compile_cache()
    tidy_heap()
    report = evaluate(
        args.workdir,
        args.split,
        unlock_test=args.unlock_test,
        raw_dir=args.raw_dir,
        data_dir=args.data_dir,
    )
    place = f"{address_of(args.workdir)}/evaluation/{args.split}/report.html"
    print(*summary_lines(report), f"report: {place}", sep="\n")


def run() -> None:
    """Console script."""
    choose_for_cpu()
    use_huge_pages()
    sys.exit(door(main))


if __name__ == "__main__":
    run()
