"""Whole runs of the smallest backbone: `python -m tests.support.tiny_run ARGUMENTS OF main`.

Everything but the backbone is the real thing: loop, loader, checkpoints, processes. It compiles in
a second, so that a test can afford many runs.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax import main
from boneage_jax.data.loader import train_batches
from boneage_jax.runtime import heartbeat
from boneage_jax.training import train
from configs import cls

TINY_RUN = ("-m", "tests.support.tiny_run")
SETTINGS = {
    "model.name": "tiny",
    "data.config": "64-small",
    "batch_size": 8,
    "eval_batch_size": 12,  # does not divide the 32 images of the validation split
    "steps": 8,
    "evaluate_every": 0.34,
    "checkpoint_every": 2,
    "log_every": 1,
    "ema_decay": 0.9,
    "augment.rotate": 10.0,
    # Adam divides a gradient by its own size, also one that is only rounding: no tolerance holds.
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.02,
    "optimizer.weight_decay": 0.0,
}


def with_settings(**changed) -> dict:
    """`SETTINGS` with keys changed; `__` stands for a dot."""
    return SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}


def arguments(workdir: Path, **changed) -> list[str]:
    """The command line of a run, see `with_settings`."""
    settings = with_settings(**changed)
    return [
        *("--config=configs/cls.py", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def spoil_batches(change: Callable[[int, dict], dict], set_attribute=setattr) -> None:
    """Lets `change` (number, host batch -> batch) do something to each training batch."""

    def changed(*args, **options):
        put = options["put"]
        per_batch = SETTINGS["batch_size"]
        return train_batches(
            *args,
            **options | {"put": lambda b: put(change(int(b["draw"].min()) // per_batch, b))},
        )

    set_attribute(train, "train_batches", changed)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """The folder of the prepared data, shared by all tests."""
    return str(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture
def tiny_train(phantoms, tmp_path, monkeypatch):
    """Trains a tiny network in this process.

    `spoil`: the numbers of the batches whose ages are no numbers. Returns (report, workdir).
    """

    def run(name="run", spoil=(), devices=None, folder=tmp_path, **changed):
        def change(number, batch):
            if number not in spoil:
                return batch
            return batch | {"bone_age": np.full_like(batch["bone_age"], np.nan)}

        spoil_batches(change, monkeypatch.setattr)
        config = cls.get_config()
        config.update_from_flattened_dict(with_settings(**changed) | {"data.data_dir": phantoms})
        workdir = Path(folder) / name
        return boneage_jax.train(config, workdir, devices=devices or jax.devices()[:1]), workdir

    return run


def _happens(number: int, batch: dict) -> dict:
    """What the environment wants to happen at batch AT: nan, hang, or a signal to this process."""
    if number == int(os.environ.get("AT", "-1")):
        what = os.environ["HAPPENS"]
        if what == "nan":
            return batch | {"bone_age": np.full_like(batch["bone_age"], np.nan)}
        if what == "hang":
            time.sleep(600)
        else:
            os.kill(os.getpid(), getattr(signal, what))
    return batch


def _note_writes(event: str, args: tuple) -> None:
    """An audit hook: which files of the workdir Python code of this process opens to write."""
    if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
        os.write(_notes, f"{args[0]}\n".encode())


if __name__ == "__main__":
    if "WRITES" in os.environ:
        _notes = os.open(os.environ["WRITES"], os.O_WRONLY | os.O_CREAT)
        sys.addaudithook(_note_writes)
    heartbeat.GONE_AFTER = 15.0  # a test has less patience
    if "AT" in os.environ:
        spoil_batches(_happens)
    main.run()
