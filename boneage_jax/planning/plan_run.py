"""A run on a machine that is not here: what its train step needs there, and what that costs.

The very train step of a config (augmentation, network, optimizer, averages, reductions, donated
state) is compiled by the TPU compiler for a topology, or lowered for GPUs, whose compiler needs
one. Nothing is run: what comes out are counts, and bounds that follow from published peaks.
"""

import dataclasses
import math
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from boneage_jax.config import check_config
from boneage_jax.data.augment import AugmentConfig
from boneage_jax.data.info import facts_for_planning
from boneage_jax.data.resample import method_for
from boneage_jax.errors import InputError
from boneage_jax.evaluation.summary import versions
from boneage_jax.models.depthwise import implementation_for
from boneage_jax.planning.chips import Chip, Machine, parse_machine
from boneage_jax.planning.hlo import Collective, collectives
from boneage_jax.planning.hlo_memory import main_memory_bytes
from boneage_jax.planning.topology import tpu_devices
from boneage_jax.runtime.parallel import check_batch
from boneage_jax.state import select
from boneage_jax.training.ensemble import member_config, member_count
from boneage_jax.training.run import Run, batch_shapes, build_run, fresh_state


def plan_run(
    config: ConfigDict, topology: str, *, price: float | None = None, train_images: int = 0
) -> dict[str, Any]:
    """Plans a run on a machine.

    Args:
      config: of the run; its data need not be there.
      topology: see `boneage_jax.planning.chips.parse_machine`.
      price: US dollars per chip and hour, that of the table where None.
      train_images: size of the training split; of the prepared data, else as published, where 0.

    Returns:
      What `python -m boneage_jax.plan --output` writes. Bytes and FLOPs are per step; those with
      `per_chip` in their name are of one chip, others of the whole machine. What is not known is
      absent.

    Raises:
      InputError: a wrong config, an unknown topology, no TPU compiler, or a batch that does not
        divide.
    """
    machine = parse_machine(topology)
    config = check_config(config)
    networks = member_count(config)
    if networks > 1:
        config = member_config(config, 0)
    check_batch("batch_size", config.batch_size, machine.count, config.accumulate)
    check_batch("eval_batch_size", config.eval_batch_size, machine.count)
    facts, validation_images, source = facts_for_planning(config.data, train_images)
    if machine.platform == "tpu":
        devices = tpu_devices(machine.topology)
        if len(devices) != machine.count:
            machine = dataclasses.replace(machine, count=len(devices), chip=None)  # v2, v3: cores
    else:
        devices = jax.devices("cpu")[:1]  # GPUs are told apart by their compiler only
    tuned = config_for(config, machine.platform)
    run = build_run(tuned, facts, devices)
    plan: dict[str, Any] = {
        "machine": _machine(machine),
        "batch": {
            "images": config.batch_size,
            "images_per_chip": config.batch_size // machine.count,
            "micro_batches": config.accumulate,
        },
        "data": {
            "name": f"{config.data.name}/{config.data.config}",
            "train_images": facts.train_images,
            "image_size": facts.image_size,
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
        plan |= _lower(run)
    plan["bounds"] = bounds(plan, machine.chip, tuned.model.dtype)
    plan["run"] = _whole_run(run, plan, networks, validation_images)
    if machine.chip is not None:
        plan["cost"] = cost(plan, machine.chip, price)
    plan["forced"] = {
        "model.depthwise": tuned.model.depthwise,
        "augment.resample": tuned.augment.resample,
    }
    plan["config"] = config.to_dict()
    plan["versions"] = versions() | _libtpu_version()
    return plan


def config_for(config: ConfigDict, platform: str) -> ConfigDict:
    """A config whose choices by default backend are made as they would be on `platform`.

    Args:
      config: a checked config.
      platform: tpu or cuda.
    """
    tuned = ConfigDict(config.to_dict())
    backend = "gpu" if platform == "cuda" else platform
    if tuned.model.depthwise == "auto":
        tuned.model.depthwise = implementation_for(backend)
    if tuned.augment.resample == "auto":
        reach = AugmentConfig.from_dict(tuned.augment.to_dict()).reach
        tuned.augment.resample = method_for(backend, reach)
    return check_config(tuned)


def lower_train_step(run: Run, platform: str = "") -> Any:
    """Lowers the train step of the run's last phase, its dearest; `jax.stages.Lowered`.

    Args:
      run: built for the devices to compile for.
      platform: that to lower for where it is not that of these devices, e.g. cuda.
    """
    parallel, config = run.parallel, run.config
    if parallel.mode == "pmap":
        state = jax.eval_shape(lambda: fresh_state(config, run.facts, run.task, run.optimizer))
        metrics = jax.eval_shape(run.task.metrics_type.empty)
    else:
        state = parallel.state_shapes(
            lambda: fresh_state(config, run.facts, run.task, run.optimizer)
        )
        metrics = parallel.state_shapes(run.task.metrics_type.empty)
    batch = batch_shapes(config.batch_size, run.facts, run.task)
    if parallel.mode == "pmap":
        count = parallel.device_count
        batch = {
            key: jax.ShapeDtypeStruct((count, x.shape[0] // count, *x.shape[1:]), x.dtype)
            for key, x in batch.items()
        }
    step = run.train_step_at(run.total_steps - 1)
    if not platform:
        return step.lower(state, metrics, batch)
    if parallel.mode == "pmap":  # it can be lowered for its own devices only
        step = jax.jit(step)
    return step.trace(state, metrics, batch).lower(lowering_platforms=(platform,))


def all_reduce_on_paper(run: Run) -> int:
    """Bytes that the chips must reduce in a step: gradients and BatchNorm statistics.

    The gradients of a convolution are reduced in the dtype of the computation, before they are
    cast to the float32 of the parameters; those of BatchNorm and of the heads in float32. BatchNorm
    reduces two values per channel in the forward pass (the size of `batch_stats`); the two of its
    backward pass are the gradients of its own scale and bias. Under pmap the gradients are
    reduced in float32, apart from those two, and the running statistics once more. The few
    scalars of the metrics are left out. The programs that libtpu 0.0.42.1 compiles for
    EfficientNet-Lite0 on v5e agree in all three cases (jit, pmap, pmap without bn_sync).
    """
    config, sync = run.config, run.config.model.bn_sync
    state = jax.eval_shape(lambda: fresh_state(config, run.facts, run.task, run.optimizer))
    statistics = 4 * sum(x.size for x in jax.tree.leaves(state.batch_stats))
    total = 0
    leaves = jax.tree_util.tree_leaves_with_path(select(state.params, run.trainable))
    convolutions = {path[:-1] for path, leaf in leaves if leaf.ndim >= 2}
    for path, leaf in leaves:
        head = config.task == "bone_age" and path[0].key != "backbone"
        half = config.model.dtype == "bfloat16" and path[:-1] in convolutions and not head
        total += leaf.size * (2 if half and run.parallel.mode == "jit" else 4)
    if run.parallel.mode == "pmap":
        # Under pmap the sums of the backward pass are not those of the gradients' reduction.
        return total + statistics * (3 if sync else 1)
    return config.accumulate * (total + statistics)


def bounds(plan: dict[str, Any], chip: Chip | None, dtype: str) -> dict[str, float]:
    """Images per second and chip that the published peaks of `chip` allow.

    Args:
      plan: with `batch`, `flops_per_step` and, where compiled, `bytes_accessed_per_chip` and
        `collectives`.
      chip: None where its peaks are not known; then there are no bounds.
      dtype: of the products.
    """
    if chip is None:
        return {}
    chips, images = plan["machine"]["chips"], plan["batch"]["images_per_chip"]
    found = {"compute": images / (plan["flops_per_step"] / chips / chip.flops(dtype))}
    if "main_memory_bytes_per_chip" in plan:
        found["main_memory"] = images / (plan["main_memory_bytes_per_chip"] / chip.bandwidth)
    if "bytes_accessed_per_chip" in plan:
        found["bandwidth"] = images / (plan["bytes_accessed_per_chip"] / chip.bandwidth)
    sent = sum(c["wire_bytes_per_chip"] for c in plan.get("collectives", []))
    if sent:
        found["interconnect"] = images / (sent / chip.interconnect)
    return found


def cost(plan: dict[str, Any], chip: Chip, price: float | None) -> dict[str, Any]:
    """Hours and dollars of the training steps at the slowest of the bounds."""
    per_hour = chip.price if price is None else price
    chips, steps = plan["machine"]["chips"], plan["run"]["steps_of_full_size"]
    images = steps * plan["batch"]["images"] * plan["run"]["networks"]
    hours = {name: images / speed / chips / 3600 for name, speed in plan["bounds"].items()}
    slowest = max(hours.values())
    return {
        "hours_at_bound": hours,
        "hours": slowest,
        "chip_hours": slowest * chips,
        "price_per_chip_hour": per_hour,
        "price_source": chip.price_source if price is None else "--price_per_chip_hour",
        "dollars": slowest * chips * per_hour,
    }


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
    """What needs no compiler."""
    config = run.config
    state = jax.eval_shape(lambda: fresh_state(config, run.facts, run.task, run.optimizer))
    batch = batch_shapes(config.batch_size, run.facts, run.task)
    return {
        "flops_per_step": run.train_flops,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "state_bytes_per_chip": _bytes(state),
        "batch_bytes": _bytes(batch),
        "all_reduce_on_paper": all_reduce_on_paper(run),
    }


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compile_and_count(lowered: Any, chips: int) -> dict[str, Any]:
    """What the compiler says of a program for `chips` TPUs.

    Args:
      lowered: `jax.stages.Lowered` for these devices.

    Returns:
      `fits`; where it does also `compile_seconds` (of `compile`), `memory_per_chip`,
      `compiler_flops_per_chip`, `bytes_accessed_per_chip`, `main_memory_bytes_per_chip` and
      `collectives`; where it does not `does_not_fit`, the compiler's sentence.

    Raises:
      InputError: the compiler refuses the program for another reason than its memory.
    """
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = _out_of_memory(str(error))
        if not reason:
            raise InputError(
                f"the TPU compiler refuses this step: {str(error).splitlines()[0][:400]}"
            ) from error
        return {"fits": False, "does_not_fit": reason}
    found: dict[str, Any] = {"fits": True}
    found["compile_seconds"] = {"compile": time.monotonic() - began}
    memory = compiled.memory_analysis()
    if memory is not None:
        parts = {
            part: int(getattr(memory, f"{part}_size_in_bytes"))
            for part in ("argument", "output", "alias", "temp", "generated_code")
        }
        # The donated state is argument and output in one place.
        parts["total"] = sum(parts.values()) - 2 * parts["alias"]
        found["memory_per_chip"] = parts
    counts = compiled.cost_analysis() or {}
    found["compiler_flops_per_chip"] = counts.get("flops", 0.0)
    found["bytes_accessed_per_chip"] = counts.get("bytes accessed", 0.0)
    text = compiled.as_text()
    found["main_memory_bytes_per_chip"] = main_memory_bytes(text)
    found["collectives"] = [_collective(collective, chips) for collective in collectives(text)]
    return found


def _collective(collective: Collective, chips: int) -> dict[str, Any]:
    return {
        "kind": collective.kind,
        "count": collective.count,
        "payload_bytes": collective.payload,
        "wire_bytes_per_chip": collective.wire_bytes(chips),
    }


def _out_of_memory(message: str) -> str:
    """The sentence in which the compiler says how much memory is missing, "" for other errors."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return ""
    lines = [line for line in message.splitlines() if "Used " in line or "Ran out" in line]
    return " ".join((lines or message.splitlines())[0].split())[:400]


def _lower(run: Run) -> dict[str, Any]:
    """Lowers for GPUs: that it can be is all there is to know without their compiler."""
    began = time.monotonic()
    lower_train_step(run, "cuda")
    return {"compile_seconds": {"lower": time.monotonic() - began}}


def _whole_run(run: Run, plan: dict[str, Any], networks: int, validation: int) -> dict[str, Any]:
    config, facts = run.config, run.facts
    flops = run.flops_until(run.total_steps)
    found = {
        "steps": run.total_steps,
        "networks": networks,
        "epochs": run.total_steps * config.batch_size / facts.train_images,
        "train_flops": flops * networks,
        # Steps of other phases (smaller images, the heads alone) by their FLOPs.
        "steps_of_full_size": flops / plan["flops_per_step"],
    }
    if validation:
        times = math.ceil(run.total_steps / run.evaluate_every)
        batches = math.ceil(validation / config.eval_batch_size)
        found["evaluation_flops"] = times * batches * run.eval_flops * networks
    return found


def _libtpu_version() -> dict[str, str]:
    import importlib.metadata

    try:
        return {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return {}
