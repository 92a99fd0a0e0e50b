"""The train step of Keras on JAX, compiled for TPUs that are not there: the peer of `plan`.

usage: python -m benchmarks.peers.keras_plan --output=FILE.json [--model=b4] [--size=380]
           [--batch=512] [--dtype=bfloat16] [--topology=v5e:2x4]

Keras's own `train_step` on the network, loss and optimizer of `keras_peer.py`: the state on every
chip, the batch split over them, the state donated. Its counts are read as
`python -m boneage_jax.plan` reads its own. Nothing is run. Needs the extras `plan` and `peers`.
"""

import argparse
import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.peers.contender import Settings
from benchmarks.peers.keras_peer import compiled_network
from benchmarks.provenance import write_provenance
from boneage_jax.cli import run_door
from boneage_jax.errors import InputError
from boneage_jax.models.flops import count_flops
from boneage_jax.planning.chips import parse_machine
from boneage_jax.planning.plan_run import bounds, compile_and_count
from boneage_jax.planning.topology import tpu_devices
from boneage_jax.runtime.machine import versions
from boneage_jax.runtime.parallel import check_batch


def main() -> int:
    """Lowers, compiles, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", default="b4")
    parser.add_argument("--size", type=int, default=380)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--topology", default="v5e:2x4")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    machine = parse_machine(args.topology)
    if machine.chip is None or machine.platform != "tpu":
        raise InputError(f"--topology={args.topology}: choose v4, v5e, v5p or v6e, e.g. v5e:2x4")
    check_batch("batch", args.batch, machine.count)
    mesh = Mesh(np.array(tpu_devices(machine.topology)), ("batch",))
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("batch"))

    net = compiled_network(Settings(args.model, args.size, args.batch, args.dtype, "train"))
    images = jax.ShapeDtypeStruct((args.batch, args.size, args.size, 1), np.float32, sharding=split)
    column = jax.ShapeDtypeStruct((args.batch, 1), np.float32, sharding=split)
    # Metrics and optimizer get their variables with the first batch; a small one does.
    small = np.zeros((2, args.size, args.size, 1), np.float32), np.zeros((2, 1), np.float32)
    net._symbolic_build(data_batch=(small[0], {"age": small[1], "sex": small[1]}))
    variables = (
        *(net.trainable_variables, net.non_trainable_variables),
        *(net.optimizer.variables, net.metrics_variables),
    )
    state = tuple(
        [jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=replicated) for v in group]
        for group in variables
    )
    step = jax.jit(net.train_step, donate_argnums=0)
    data = images, {"age": column, "sex": column}
    lowered = step.lower(state, data)
    plan = {
        "machine": {"topology": args.topology, "chips": machine.count},
        "batch": {"images": args.batch, "images_per_chip": args.batch // machine.count},
        "model": args.model,
        "image_size": args.size,
        "dtype": args.dtype,
        "flops_per_step": count_flops(net.train_step, state, data),
        "parameters": sum(int(np.prod(v.shape)) for v in net.trainable_variables),
        **compile_and_count(lowered, machine.count),
        "versions": versions() | {"keras": keras.__version__},
    }
    if plan["fits"]:
        plan["bounds"] = bounds(plan, machine.chip, args.dtype)
    write_provenance(args.output, vars(args), **plan)
    print(json.dumps({k: v for k, v in plan.items() if k not in ("versions", "collectives")}))
    return 0


if __name__ == "__main__":
    run_door(lambda argv: main(), computes=False)
