"""The smallest bone-age task, batches for it, and a split held in memory."""

import jax
import jax.numpy as jnp
import numpy as np

from boneage_jax.data.source import Split
from boneage_jax.tasks.bone_age import BoneAge, BoneAgeNet
from tests.support.tiny_backbone import TinyBackbone


def tiny_task(axis_name: str | None = None, **options) -> BoneAge:
    """A bone-age task on `TinyBackbone`."""
    net = {
        key: options.pop(key)
        for key in ("sex_input", "hidden", "dropout", "centers")
        if key in options
    }
    return BoneAge(BoneAgeNet(TinyBackbone(axis_name), **net), 120.0, 40.0, **options)


def random_batch(size: int, side: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """A host batch as the loader makes it; the age is the mean grey level."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, side, side, 1), dtype=np.uint8)
    return {
        "image": image,
        "draw": np.arange(size, dtype=np.uint32),
        "weight": np.ones(size, np.float32),
        "bone_age": image.mean((1, 2, 3)).astype(np.float32),
        "male": rng.integers(-1, 2, size).astype(np.int32),
    }


def plain_inputs(batch: dict, keys: jax.Array | None) -> dict:
    """Scaling only: no augmentation."""
    return batch | {"image": batch["image"].astype(jnp.float32) / 255.0}


def memory_split(size: int, side: int = 8, seed: int = 0) -> Split:
    """A split held in memory; image i is filled with grey level i."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(10, 220, size).astype(np.float32)
    male = rng.integers(0, 2, size)
    records = [
        {
            "image": np.full((side, side, 1), index % 256, np.uint8),
            "id": index,
            "bone_age": ages[index],
            "male": male[index],
        }
        for index in range(size)
    ]
    labels = {
        "id": np.array([str(i) for i in range(size)]),
        "bone_age": ages,
        "male": male,
    }
    return Split("train", records, np.arange(size), labels)
