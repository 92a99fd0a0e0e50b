"""Counts what a train step of EfficientNet-B4 moves on a GPU, from the compiled program; no GPU.

usage: python -m benchmarks.studies.gpu_program --output=FILE.csv [--size=380] [--batch=64]
           [--kinds=lax,fused,cudnn]

XLA compiles for an NVIDIA H200 that is described, not present: pip install 'jax[cuda13]', version
0.11.2, on a machine without a GPU (with one, its own compiler takes the place of the description).
Nothing is tried out on a device, so products and convolutions may become other kernels there; what
they and the fusions read and write stays. Bytes are those of the operands and results of each
instruction, so what a cache serves counts too.
"""

import argparse
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from jax.experimental import topologies

from benchmarks.peers.contender import Settings
from benchmarks.peers.ours import recipe
from benchmarks.provenance import write_provenance
from boneage_jax.benchmarking.settings import synthetic_info
from boneage_jax.experiments.sweep_tables import write_table
from boneage_jax.planning import hlo_memory
from boneage_jax.planning.compile_step import lower_train_step
from boneage_jax.training.run import build_run

COLUMNS = ("arrangement", "instruction", "count", "gigabytes")
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 19 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H200"
"""


def described_gpu() -> Any:
    """Returns a device that programs can be compiled for.

    Two functions of JAX ask for a device that is present; both are answered for it
    (github.com/jax-ml/jax/issues/23971).
    """
    from jax._src import xla_bridge
    from jax._src.pallas.triton import gpu_info

    known = xla_bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        try:
            return known(platform)
        except RuntimeError:
            return "cuda"

    xla_bridge.canonicalize_platform = canonical
    info = gpu_info.GpuInfo(gpu_version=None, arch_name="9.0", compute_capability=90)
    gpu_info.get_gpu_info = lambda: info
    found = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    return found.devices[0]


def traffic(text: str) -> tuple[Counter[str], Counter[str]]:
    """Returns bytes and numbers of the entry computation's instructions, by kind."""
    _, entry = hlo_memory._parse(text)
    sizes: dict[str, int] = {}
    moved: Counter[str] = Counter()
    count: Counter[str] = Counter()
    here = ""
    for line in text.splitlines():
        if start := hlo_memory.COMPUTATION.match(line):
            here = start[2]
        elif found := hlo_memory._INSTRUCTION.match(line):
            name, shape, opcode, operands, rest = found.groups()
            sizes[name] = sum(hlo_memory._arrays(shape))
            if here != entry or opcode in hlo_memory._FREE or opcode.endswith("-done"):
                continue
            target = re.search(r'custom_call_target="([^"]*)"|kind=(\w+)', rest)
            kind = f"{opcode} {(target[1] or target[2]) if target else ''}".strip()
            moved[kind] += sizes[name] + sum(sizes.get(n, 0) for n in hlo_memory._names(operands))
            count[kind] += 1
    return moved, count


def main() -> None:
    """Compiles each arrangement and writes a row per kind of instruction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", type=int, default=380, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--kinds", default="lax,fused,cudnn", help="values of model.depthwise")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    try:
        device = described_gpu()
    except Exception as error:
        sys.exit(f"error: no compiler for GPUs ({error}); pip install 'jax[cuda13]==0.11.2'")
    rows, temporary = [], {}
    for kind in args.kinds.split(","):
        config = recipe(Settings("b4", args.size, args.batch, "bfloat16", "train"))
        config.model.depthwise = kind
        run = build_run(config, synthetic_info(args.size), [device])
        compiled = lower_train_step(run, "cuda").compile()
        moved, count = traffic(compiled.as_text())
        temporary[kind] = compiled.memory_analysis().temp_size_in_bytes
        moved["all"], count["all"] = sum(moved.values()), sum(count.values())
        rows += [
            dict(zip(COLUMNS, (kind, k, count[k], f"{v / 1e9:.2f}"), strict=True))
            for k, v in moved.most_common()
        ]
        print(f"{kind}: {moved['all'] / 1e9:.1f} GB, {count['all']} instructions", flush=True)
    write_table(args.output, rows, COLUMNS)
    write_provenance(args.output, vars(args), temporary_bytes=temporary)


if __name__ == "__main__":
    main()
