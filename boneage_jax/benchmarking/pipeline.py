"""Benchmarks of the input pipeline alone, and of the training loop against the bare step."""

import collections
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from boneage_jax.benchmarking.records import synthetic_split
from boneage_jax.benchmarking.result import Result
from boneage_jax.benchmarking.settings import Bench
from boneage_jax.benchmarking.steps import Stepper, labels_of, synthetic_batch
from boneage_jax.benchmarking.timing import alternate, measure, paired_ratio
from boneage_jax.data.info import DataInfo
from boneage_jax.data.loader import train_batches
from boneage_jax.training.run import Run, build_run

_RUN_AHEAD = 2  # steps queued on the device, as in training


def input_cases(
    recipe: ConfigDict, info: DataInfo, settings: Bench, folder: Path
) -> Iterator[Result]:
    """Measures reading batches from prepared records to the devices, with nothing else running.

    A sample is the seconds per batch, over `settings.block` consecutive batches. The note holds
    images per second of processor time summed over all threads, the throughput of one core.
    """
    run = build_run(recipe, info)
    batches = _batches(run, settings, folder)
    used: list[float] = []

    def take() -> None:
        began = time.process_time()
        for _ in range(settings.block):
            jax.block_until_ready(next(batches))
        used.append(time.process_time() - began)

    # Batches already buffered when the clock starts were read before it.
    ahead = 1 + (2 * recipe.data.buffer + recipe.data.threads) // settings.block
    warmup = settings.warmup + ahead
    try:
        seconds = measure(
            take,
            repetitions=settings.repetitions,
            min_seconds=settings.min_seconds,
            warmup=warmup,
        )
    finally:
        batches.close()
    timed = used[warmup:]
    images = settings.block * recipe.batch_size
    note = {
        "images_per_core_second": images * len(timed) / max(sum(timed), 1e-9),
        "threads": recipe.data.threads,
        "uncompressed": recipe.data.uncompressed,
    }
    samples = [taken / settings.block for taken in seconds]
    yield Result(
        case="input",
        name="records to device",
        **labels_of(run),
        samples=samples,
        images=recipe.batch_size,
        note=note,
    )


def loop_cases(
    recipe: ConfigDict, info: DataInfo, settings: Bench, folder: Path
) -> Iterator[Result]:
    """Measures the training loop with its input, alternating with the same step on a fixed batch.

    A sample is the seconds per step, over `settings.block` steps. The note of the loop holds the
    median of the paired ratios to the bare step; the excess over 1 is the cost of the input.
    """
    run = build_run(recipe, info)
    batches = _batches(run, settings, folder)
    fixed = run.parallel.put_batch(synthetic_batch(recipe.batch_size, info, run.task))
    stepper = Stepper(run)
    # Simulated CPU devices share the cores; with queued steps XLA's rendezvous can time out.
    shared = run.parallel.devices[0].platform == "cpu" and run.parallel.device_count > 1
    ahead = 0 if shared else _RUN_AHEAD

    def block(following: Iterator[Any]) -> None:
        queue: collections.deque[Any] = collections.deque()
        for _ in range(settings.block):
            queue.append(stepper(next(following)))
            while len(queue) > ahead:
                jax.block_until_ready(queue.popleft())
        jax.block_until_ready((queue, stepper.state))

    def always() -> Iterator[Any]:
        while True:
            yield fixed

    try:
        times = alternate(
            {"bare step": lambda: block(always()), "input and step": lambda: block(batches)},
            repetitions=settings.repetitions,
            min_seconds=settings.min_seconds,
            warmup=1,
        )
    finally:
        batches.close()
    ratio = paired_ratio(times["input and step"], times["bare step"])
    for name, seconds in times.items():
        note = {} if name == "bare step" else {"ratio_to_bare_step": ratio.median}
        yield Result(
            case="loop",
            name=name,
            **labels_of(run),
            samples=[taken / settings.block for taken in seconds],
            images=recipe.batch_size,
            flops=run.train_flops,
            note=note,
        )


def _batches(run: Run, settings: Bench, folder: Path) -> Any:
    config = run.config
    split = synthetic_split(
        folder,
        settings.records,
        run.info.image_size,
        uncompressed=config.data.uncompressed,
    )
    return train_batches(
        split,
        run.task.labels,
        config.batch_size,
        seed=config.seed,
        put=run.parallel.put_batch,
        threads=config.data.threads,
        buffer=config.data.buffer,
    )
