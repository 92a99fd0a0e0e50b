"""Speed: a recipe as for training, and how its speed is measured. Presets:

configs/bench.py       EfficientNet-Lite0 at 128 px, batch 8: all cases, some minutes on 2 cores.
configs/bench.py:b4    EfficientNet-B4 at 256 px, batch 8, float32: for 2 cores.
configs/bench.py:unet  the default U-Net at 256 px, batch 8, float32: for 2 cores.
configs/bench.py:gpu   EfficientNet-B4 at 380 px, bfloat16, batches of 32 to 256: for accelerators.

Keys of the section `bench`: boneage_jax/benchmarking/settings.py. Cases: docs/benchmark.md.
"""

from ml_collections import ConfigDict

from boneage_jax.benchmarking.settings import bench_config
from boneage_jax.errors import InputError


def get_config(preset: str = "") -> ConfigDict:
    """Returns the benchmark named `preset`; without a preset, the small one."""
    presets = {"": small, "b4": b4, "unet": unet, "gpu": gpu}
    if preset not in presets:
        names = ", ".join(name for name in presets if name)
        raise InputError(f"configs/bench.py has no preset {preset!r}; choose one of {names}")
    return presets[preset]()


def small() -> ConfigDict:
    """python -m boneage_jax.benchmark --config=configs/bench.py"""
    config = bench_config()
    config.model.name = "efficientnet_lite0"
    config.batch_size = config.eval_batch_size = 8
    config.bench.batch_sizes = "2"
    config.bench.image_sizes = "192"
    return config


def b4() -> ConfigDict:
    """python -m boneage_jax.benchmark --config=configs/bench.py:b4"""
    config = bench_config()
    config.batch_size = config.eval_batch_size = 8
    config.bench.image_size = 256
    config.bench.min_seconds = 10.0
    return config


def unet() -> ConfigDict:
    """python -m boneage_jax.benchmark --config=configs/bench.py:unet"""
    config = bench_config()
    config.task = "hand_mask"
    config.model.name = "unet"
    config.batch_size = config.eval_batch_size = 8
    config.bench.image_size = 256
    config.bench.min_seconds = 5.0
    return config


def gpu() -> ConfigDict:
    """python -m boneage_jax.benchmark --config=configs/bench.py:gpu"""
    config = bench_config()
    config.model.dtype = "bfloat16"
    config.batch_size = config.eval_batch_size = 128
    config.data.threads = 16
    config.bench.image_size = 380
    config.bench.repetitions = 30
    config.bench.records = 1024
    config.bench.block = 20
    config.bench.batch_sizes = "32,64,256"
    config.bench.image_sizes = "256,512"
    return config
