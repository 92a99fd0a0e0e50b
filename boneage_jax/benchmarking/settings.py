"""Config of a benchmark: the recipe as for training, plus a section `bench`."""

import dataclasses
import re

from ml_collections import ConfigDict

from boneage_jax.config import base_config, check_config, check_type
from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import make_inputs
from boneage_jax.errors import InputError
from boneage_jax.ranges import RANGES, check_value
from boneage_jax.tasks.registry import make_task

# Those of the RSNA radiographs; speed does not depend on them.
_TRAIN_IMAGES, _AGE_MEAN, _AGE_STD = 12_611, 127.32, 41.18


@dataclasses.dataclass(frozen=True)
class Bench:
    """How the speed of a recipe is measured. Each field is a key, --config.bench.KEY=VALUE.

    Attributes:
      image_size: pixels per side.
      repetitions: minimum number of timed calls of a case, and of those that measure a peak.
      min_seconds: minimum total seconds of the timed calls; short calls get more repetitions.
      warmup: calls before the clock starts, after the one that compiles.
      records: images written for the cases `input` and `loop`.
      block: batches (`input`) or steps (`loop`) per repetition.
      starts: pairs of processes started for `compile`, one with an empty and one with a full cache.
      batch_sizes: further batch sizes for the case `batches`, e.g. "4,16".
      image_sizes: further image sizes for the case `sizes`, likewise.
      tolerance: see `boneage_jax.benchmarking.comparing`.
    """

    image_size: int = 128
    repetitions: int = 10
    min_seconds: float = 1.0
    warmup: int = 2
    records: int = 256
    block: int = 8
    starts: int = 1
    batch_sizes: str = ""
    image_sizes: str = ""
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(f"bench.{field.name}", getattr(self, field.name))
        for name, one in (("batch_sizes", "batch_size"), ("image_sizes", "bench.image_size")):
            for size in whole_numbers(f"config.bench.{name}", getattr(self, name)):
                if size not in RANGES[one]:
                    raise InputError(f"config.bench.{name}: {size} must be {RANGES[one]}")


def bench_config() -> ConfigDict:
    """Returns the config that the presets of `configs/bench.py` start from."""
    config = base_config()
    config.steps = 100_000  # of the learning-rate schedule; never reached
    config.augment.rotate = 20.0
    config.augment.translate = 0.1
    config.augment.zoom = 0.2
    config.augment.shear = 10.0
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.gamma = 0.3
    config.bench = ConfigDict(dataclasses.asdict(Bench()))
    return config


def check_bench(config: ConfigDict) -> tuple[ConfigDict, Bench, DataInfo]:
    """Checks a config of `configs/bench.py`.

    Returns:
      (checked recipe, settings, info of the synthetic data).

    Raises:
      InputError: names the first key that is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(config.get("bench"), ConfigDict):
        raise InputError(
            "the config has no section bench; start from configs/bench.py, or from "
            "boneage_jax.benchmarking.settings.bench_config()"
        )
    values = config.bench.to_dict()
    known = {field.name: field.default for field in dataclasses.fields(Bench)}
    for key, value in values.items():
        if key not in known:
            raise InputError(f"unknown config key 'bench.{key}'; known are {', '.join(known)}")
        check_type(f"bench.{key}", value, known[key])
    settings = Bench(**values)
    recipe = ConfigDict({key: value for key, value in config.to_dict().items() if key != "bench"})
    recipe, info = check_config(recipe), synthetic_info(settings.image_size)
    make_task(recipe, info, None)  # raises on a wrong value, without touching a device
    make_inputs(recipe)
    return recipe, settings, info


def synthetic_info(image_size: int) -> DataInfo:
    """Returns the DataInfo of a data set like the RSNA radiographs at `image_size` pixels."""
    return DataInfo(image_size, _TRAIN_IMAGES, _AGE_MEAN, _AGE_STD)


def whole_numbers(name: str, text: str) -> list[int]:
    """Parses a comma-separated list such as 4,16; an empty text gives an empty list.

    Raises:
      InputError: an entry is not a positive integer.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch("0*[1-9][0-9]{0,17}", part) for part in parts):
        raise InputError(f"{name}={text!r} must be whole numbers with commas between, e.g. 4,16")
    return [int(part) for part in parts]
