"""Startup summary of a training run: printed lines and parameters.txt."""

import sys
from pathlib import Path

from clu import parameter_overview

from boneage_jax.data.inputs import describe_shape
from boneage_jax.runtime.parallel import is_first_process
from boneage_jax.storage.safe_write import write_text, writing
from boneage_jax.training.run import Run


def say(*lines: str) -> None:
    """Prints lines to standard error, on the first process of a job only."""
    if is_first_process():
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def describe_run(run: Run, workdir: Path) -> None:
    """Prints parameters, steps, devices and FLOPs; writes all parameters to parameters.txt.

    Raises:
      InputError: the file cannot be written.
    """
    if not is_first_process():
        return
    params = {"params": run.network.variable_shapes()["params"]}
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    with writing(workdir / "parameters.txt"):
        write_text(workdir / "parameters.txt", overview + "\n")
    short = parameter_overview.get_parameter_overview(params, include_stats=False, max_lines=8)
    config, parallel = run.config, run.parallel
    say(
        short,
        f"{config.model.name}: all parameters in {workdir / 'parameters.txt'}",
        f"{run.total_steps} steps of {config.batch_size} images at "
        f"{describe_shape(run.network.input_shape)} on {parallel.device_count} "
        f"{parallel.devices[0].platform} device(s) by {config.parallel}; "
        f"{run.train_flops / config.batch_size / 1e9:.3g} GFLOP per image trained, "
        f"{run.flops_until(run.total_steps) / 1e12:.3g} TFLOP in all",
    )
    if not run.trainable.all:
        say(f"{len(run.trainable.frozen)} layers of the backbone are frozen")
    for phase in run.phases if len(run.phases) > 1 else ():
        what = "the heads" if phase.stretch.heads_only else "all that trains"
        say(f"  steps {phase.start}-{phase.stop}: {what} at {describe_shape(phase.stretch.shape)}")
