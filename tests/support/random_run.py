"""The workdir of a training that never was: its arrays are random."""

import dataclasses
import json
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from boneage_jax.config import check_config, save_config
from boneage_jax.data.info import DataInfo
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.storage.state import TrainState, split_flops
from boneage_jax.tasks.registry import make_task
from boneage_jax.training.optimizer import make_optimizer
from boneage_jax.training.run import fresh_state


def write_run(folder: Path, config: ConfigDict, flops: int) -> TrainState:
    """Writes a run with averaged weights, as training leaves it; returns its state."""
    folder.mkdir()
    config.ema_decay = 0.9
    config = check_config(config)
    info = DataInfo(image_size=96, train_images=64, age_mean=120.0, age_std=40.0)
    save_config(folder / "config.json", config)
    (folder / "facts.json").write_text(json.dumps(dataclasses.asdict(info)))
    task, optimizer = make_task(config, info, None), make_optimizer(config.optimizer, 100)
    shapes = jax.eval_shape(lambda: fresh_state(config, info, task, optimizer))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.1, 1.0, x.shape).astype(x.dtype)), shapes
    )
    state = dataclasses.replace(state, flops_spent=split_flops(flops))
    checkpoints = Checkpoints(folder, task.metric)
    checkpoints.save(8, state, iter(grain.MapDataset.range(4).to_iter_dataset()), {"mae": 1.0})
    checkpoints.close()
    return state
