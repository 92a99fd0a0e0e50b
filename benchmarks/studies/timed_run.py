"""Trains for a given time and states the point of the curve: months of error for the FLOPs spent.

usage: python -m benchmarks.studies.timed_run --config=cls:rsna --raw_dir=DIR --workdir=DIR
           --minutes=5 --output=FILE.csv [--config.KEY=VALUE ...]

Measures the train step, sets the number of steps that fill the time, and trains as `main` does, so
the schedule ends where the time does. On a GPU lent for minutes, with what `pack_radiographs`
packed and unpacked there:

  python -m benchmarks.studies.timed_run --config=cls:rsna --raw_dir=FOLDER --workdir=/tmp/b4 \\
    --minutes=5 --output=gpu_b4.csv --config.data.config=256 --config.data.fit=stretch \\
    --config.data.height=256 --config.data.width=203 --config.model.pretrained=
"""

import argparse
from pathlib import Path

from benchmarks.provenance import write_provenance
from benchmarks.studies.run_log import row_of
from boneage_jax.cli import load_recipe, parse_config, prepare_jax
from boneage_jax.experiments.sweep_tables import RUN_COLUMNS, write_table

_TIMED = 10  # steps


def main() -> None:
    """Trains, and writes one row with its raw settings beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--raw_dir", default="")
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--minutes", required=True, type=float)
    parser.add_argument("--output", required=True, type=Path)
    args, rest = parser.parse_known_args()
    data = [f"--config.data.raw_dir={args.raw_dir}"] if args.raw_dir else []
    config, _, _ = parse_config([*rest, *data])
    prepare_jax(trains=True)

    from boneage_jax.benchmarking.steps import prepare_train
    from boneage_jax.benchmarking.timing import measure, summarize
    from boneage_jax.config import check_config
    from boneage_jax.data.info import DataInfo
    from boneage_jax.datasets import open_training_data
    from boneage_jax.training.train import train

    config.budget_flops, config.steps = 0.0, 1000
    checked = check_config(config)
    dataset = open_training_data(checked)
    info = DataInfo.of(dataset, dataset.split(checked.data.train_split))
    step = prepare_train(checked, info)
    seconds = summarize(measure(step.call, repetitions=_TIMED, warmup=2)).median
    del step  # its state holds memory on the device
    config.steps = max(round(60 * args.minutes / seconds), 1)
    print(f"{seconds * 1e3:.1f} ms per step: {config.steps} steps in {args.minutes:g} minutes")
    report = train(config, args.workdir)
    row = row_of(args.workdir, load_recipe(next(a for a in rest if "--config=" in a)[9:]))
    write_table(args.output, [row], RUN_COLUMNS)
    write_provenance(args.output, vars(args), step_seconds=seconds, **report["compute"])


if __name__ == "__main__":
    main()
