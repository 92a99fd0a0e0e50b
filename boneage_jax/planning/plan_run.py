"""Plans a run for absent hardware: what its train step needs there, and what that costs.

The actual train step of a config (augmentation, network, optimizer, parameter averages, reductions,
donated state) is compiled by the TPU compiler for a topology, or lowered for GPUs, whose compiler
needs a GPU. Nothing is executed: the results are counts, and bounds derived from published peaks.
"""

import dataclasses
import math
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from boneage_jax.config import check_config
from boneage_jax.data.augment import AugmentConfig
from boneage_jax.data.resample import method_for
from boneage_jax.inference.load_trained import member_count
from boneage_jax.models.depthwise import implementation_for
from boneage_jax.planning.bounds import bounds, cost
from boneage_jax.planning.chips import Machine, parse_machine
from boneage_jax.planning.compile_step import (
    all_reduce_on_paper,
    compile_and_count,
    libtpu_version,
    lower_for_gpus,
    lower_train_step,
)
from boneage_jax.planning.published_data import info_for_planning
from boneage_jax.planning.topology import tpu_devices
from boneage_jax.runtime.machine import versions
from boneage_jax.runtime.parallel import check_batch
from boneage_jax.training.ensemble import member_config
from boneage_jax.training.run import Run, build_run


def plan_run(
    config: ConfigDict, topology: str, *, price: float | None = None, train_images: int = 0
) -> dict[str, Any]:
    """Plans a run on a machine.

    Args:
      config: config of the run; its data need not be present.
      topology: see `boneage_jax.planning.chips.parse_machine`.
      price: US dollars per chip and hour; None takes the price in the table of chips.
      train_images: size of the training split; 0 takes the prepared data, else the published size.

    Returns:
      The plan, as `python -m boneage_jax.plan --output` writes it. Bytes and FLOPs are per step;
      keys with `per_chip` refer to one chip, others to the whole machine. Unknown values are
      absent.

    Raises:
      InputError: invalid config, unknown topology, no TPU compiler, or a batch size that cannot be
        divided among the chips.
    """
    machine = parse_machine(topology)
    config = check_config(config)
    networks = member_count(config)
    if networks > 1:
        config = member_config(config, 0)
    check_batch("batch_size", config.batch_size, machine.count, config.accumulate)
    check_batch("eval_batch_size", config.eval_batch_size, machine.count)
    info, validation_images, source = info_for_planning(config.data, train_images)
    if machine.platform == "tpu":
        devices = tpu_devices(machine.topology)
        if len(devices) != machine.count:
            machine = dataclasses.replace(machine, count=len(devices), chip=None)  # v2, v3: cores
    else:
        devices = jax.devices("cpu")[:1]  # GPUs differ in their compiler only
    tuned = config_for(config, machine.platform)
    run = build_run(tuned, info, devices)
    plan: dict[str, Any] = {
        "machine": _machine(machine),
        "batch": {
            "images": config.batch_size,
            "images_per_chip": config.batch_size // machine.count,
            "micro_batches": config.accumulate,
        },
        "data": {
            "name": f"{config.data.name}/{config.data.config}",
            "train_images": info.train_images,
            "image_size": info.image_size,
            "input_shape": run.network.input_shape,
            "source": source,
        },
        **_counted(run),
    }
    if validation_images:
        plan["data"]["validation_images"] = validation_images
    if machine.platform == "tpu":
        began = time.monotonic()
        lowered = lower_train_step(run)
        middle = time.monotonic()
        plan |= compile_and_count(lowered, machine.count)
        if plan["fits"]:
            plan["compile_seconds"]["lower"] = middle - began
    else:
        plan |= lower_for_gpus(run)
    plan["bounds"] = bounds(plan, machine.chip, tuned.model.dtype)
    plan["run"] = _whole_run(run, plan, networks, validation_images)
    if machine.chip is not None:
        plan["cost"] = cost(plan, machine.chip, price)
    plan["forced"] = {
        "model.depthwise": tuned.model.depthwise,
        "augment.resample": tuned.augment.resample,
    }
    plan["config"] = config.to_dict()
    plan["versions"] = versions() | libtpu_version()
    return plan


def config_for(config: ConfigDict, platform: str) -> ConfigDict:
    """Resolves the `auto` choices of a config as they would be resolved on `platform`.

    Args:
      config: a checked config.
      platform: tpu or cuda.

    Returns:
      A new, checked config.
    """
    tuned = ConfigDict(config.to_dict())
    backend = "gpu" if platform == "cuda" else platform
    if tuned.model.depthwise == "auto":
        tuned.model.depthwise = implementation_for(backend)
    if tuned.augment.resample == "auto":
        reach = AugmentConfig.from_dict(tuned.augment.to_dict()).reach
        tuned.augment.resample = method_for(backend, reach)
    return check_config(tuned)


def _machine(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = {
        "topology": machine.topology,
        "platform": machine.platform,
        "chips": machine.count,
    }
    if machine.chip is not None:
        found |= {"peaks": dataclasses.asdict(machine.chip)}
    return found


def _counted(run: Run) -> dict[str, Any]:
    """Returns the counts that need no compiler."""
    state = jax.eval_shape(run.fresh_state)
    batch = run.batch_shapes()
    return {
        "flops_per_step": run.train_flops,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "state_bytes_per_chip": _bytes(state),
        "batch_bytes": _bytes(batch),
        "all_reduce_on_paper": all_reduce_on_paper(run),
    }


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _whole_run(run: Run, plan: dict[str, Any], networks: int, validation: int) -> dict[str, Any]:
    config, info = run.config, run.info
    flops = run.flops_until(run.total_steps)
    found = {
        "steps": run.total_steps,
        "networks": networks,
        "epochs": run.total_steps * config.batch_size / info.train_images,
        "train_flops": flops * networks,
        # Steps of cheaper phases (smaller images, only the heads) are converted by their FLOPs.
        "steps_of_full_size": flops / plan["flops_per_step"],
    }
    if validation:
        times = math.ceil(run.total_steps / run.evaluate_every)
        batches = math.ceil(validation / config.eval_batch_size)
        found["evaluation_flops"] = times * batches * run.network.eval_flops * networks
    return found
