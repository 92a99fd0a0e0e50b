"""Contender: this library, by the functions that its own training calls."""

import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.peers.contender import Ready, Settings, serve
from boneage_jax.benchmarking.settings import synthetic_info
from boneage_jax.benchmarking.steps import prepare_eval, prepare_train
from boneage_jax.config import base_config, check_config
from boneage_jax.runtime.machine import versions
from boneage_jax.runtime.process_setup import prepared_process

NAMES = {"b0": "efficientnet_b0", "b4": "efficientnet_b4", "lite0": "efficientnet_lite0"}


def recipe(settings: Settings) -> ConfigDict:
    """Mirror images as the only augmentation, each image standardised; AdamW, L1 loss."""
    config = base_config()
    config.steps = 100_000
    config.batch_size = config.eval_batch_size = settings.batch
    config.model.name = NAMES.get(settings.model, settings.model)
    config.model.dtype = settings.dtype
    config.model.remat = "remat" in sys.argv
    if settings.model.startswith("unet"):
        config.task = "hand_mask"
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = 0.0
    return check_config(config)


def setup(settings: Settings) -> Ready:
    """The train or evaluation step."""
    prepare = prepare_train if settings.mode == "train" else prepare_eval
    step = prepare(recipe(settings), synthetic_info(settings.size))
    state = jax.eval_shape(
        lambda: step.run.task.init(jax.random.key(0), (settings.size, settings.size, 1))
    )
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state["params"])]
    return Ready(
        step.call,
        {"parameters": sum(sizes), "flops": step.flops, "versions": versions()},
    )


if __name__ == "__main__":
    with prepared_process():  # as `boneage_jax.train` does
        serve(setup)
