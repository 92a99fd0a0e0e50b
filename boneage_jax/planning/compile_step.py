"""Lowers and compiles the train step for absent devices, and counts operations in the program."""

import importlib.metadata
import time
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS
from boneage_jax.planning.hlo import Collective, collectives
from boneage_jax.planning.hlo_memory import main_memory_bytes
from boneage_jax.storage.state import select
from boneage_jax.training.run import Run


def lower_train_step(run: Run, platform: str = "") -> Any:
    """Lowers the train step of the run's last phase, the most expensive one; `jax.stages.Lowered`.

    Args:
      run: built for the devices to compile for.
      platform: platform to lower for if it differs from that of these devices, e.g. cuda.
    """
    parallel = run.parallel
    if parallel.mode == "pmap":
        state = jax.eval_shape(run.fresh_state)
        metrics = jax.eval_shape(run.task.metrics_type.empty)
    else:
        state = run.state_shapes()
        metrics = parallel.state_shapes(run.task.metrics_type.empty)
    batch = run.batch_shapes()
    if parallel.mode == "pmap":
        count = parallel.device_count
        batch = {
            key: jax.ShapeDtypeStruct((count, x.shape[0] // count, *x.shape[1:]), x.dtype)
            for key, x in batch.items()
        }
    step = run.train_step_at(run.total_steps - 1)
    if not platform:
        return step.lower(state, metrics, batch)
    if parallel.mode == "pmap":  # a pmap can be lowered for its own devices only
        step = jax.jit(step)
    return step.trace(state, metrics, batch).lower(lowering_platforms=(platform,))


def all_reduce_on_paper(run: Run) -> int:
    """Returns the bytes that a step must all-reduce: gradients and BatchNorm statistics.

    Gradients of convolutions are reduced in the compute dtype, before they are cast to the float32
    of the parameters; gradients of BatchNorm and of the heads in float32. BatchNorm reduces two
    values per channel in the forward pass (the size of `batch_stats`); the two of its backward pass
    are the gradients of its own scale and bias. Under pmap all gradients are reduced in float32,
    separately from those two, and the running statistics are reduced once more. The few scalars of
    the metrics are not counted. What TPUs get for a pointwise convolution with moments
    (`boneage_jax.models.fused_block`) also reduces the sum and the second moments of its inputs,
    in float32. Strips (`boneage_jax.models.strips`) reduce the share of their borders on its own;
    those 0.2 % of B4 are not counted. The programs that libtpu 0.0.42.1 compiles for
    EfficientNet-Lite0 on v5e agree in all three cases (jit, pmap, pmap without bn_sync), those of
    B4 under jit.
    """
    config, sync = run.config, run.config.model.bn_sync
    state = jax.eval_shape(run.fresh_state)
    statistics = 4 * sum(x.size for x in jax.tree.leaves(state.batch_stats))
    total = 0
    leaves = flatten_dict(select(state.params, run.trainable))
    convolutions = {path[:-1] for path, leaf in leaves.items() if leaf.ndim >= 2}
    for path, leaf in leaves.items():
        head = config.task == "bone_age" and path[0] != "backbone"
        half = config.model.dtype == "bfloat16" and path[:-1] in convolutions and not head
        total += leaf.size * (2 if half and run.parallel.mode == "jit" else 4)
    if run.parallel.mode == "pmap":
        # Under pmap the sums of the backward pass are separate from the reduction of the gradients.
        return total + statistics * (3 if sync else 1)
    variant = VARIANTS.get(config.model.name)
    if config.model.depthwise == "fused" and variant and not variant.lite:
        inputs = [x.shape[2] for path, x in leaves.items() if path[-2].endswith("_expand_conv")]
        total += sum(4 * count * (count + 1) for count in inputs)
    return config.accumulate * (total + statistics)


def compile_and_count(lowered: Any, chips: int) -> dict[str, Any]:
    """Compiles a program for TPUs and returns the compiler's counts.

    Args:
      lowered: `jax.stages.Lowered` for these devices.
      chips: number of TPU chips.

    Returns:
      `fits`. If true, also `compile_seconds` (key `compile`), `memory_per_chip`,
      `compiler_flops_per_chip`, `bytes_accessed_per_chip`, `main_memory_bytes_per_chip` and
      `collectives`; if false, also `does_not_fit`, the compiler's message.

    Raises:
      InputError: the compiler rejects the program for a reason other than memory.
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
        # The donated state is counted as argument and as output but shares one buffer.
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
    """Returns the compiler's line on how much memory is missing; "" for other errors."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return ""
    lines = [line for line in message.splitlines() if "Used " in line or "Ran out" in line]
    return " ".join((lines or message.splitlines())[0].split())[:400]


def lower_for_gpus(run: Run) -> dict[str, Any]:
    """Lowers for GPUs, which proves that the step can be lowered; compiling needs a GPU."""
    began = time.monotonic()
    lower_train_step(run, "cuda")
    return {"compile_seconds": {"lower": time.monotonic() - began}}


def libtpu_version() -> dict[str, str]:
    try:
        return {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return {}
