"""Ranges of all numbers and choices of all names in a config, in one table each.

Both ends of every range are finite, so a value that is not a number, or that no run could ever
finish, is refused before anything costs time. docs/recipes.md says what the numbers mean.
"""

import numbers
from typing import Any, NamedTuple, cast

from boneage_jax.errors import InputError

MOST_STEPS = 10_000_000  # the learning rates of all steps are kept in memory
_SEED = 2**32 - 1  # of grain's shuffle
_FLOPS = 4e18  # `boneage_jax.storage.state.add_flops` counts that far
_IMAGES = 65_536  # per batch
_SECONDS = 1e8  # three years
_LONGEST = 200  # characters quoted of a value


class Range(NamedTuple):
    """An interval of numbers.

    Attributes:
      low, high: its ends.
      ends: brackets in the notation of intervals; a round one excludes that end.
      or_also: one number outside that is accepted too, None for none.
    """

    low: float
    high: float
    ends: str = "[]"
    or_also: float | None = None

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        number = cast(float, value)
        if number == self.or_also:
            return True
        above = self.low <= number if self.ends[0] == "[" else self.low < number
        return above and (number <= self.high if self.ends[1] == "]" else number < self.high)

    def __str__(self) -> str:
        also = "" if self.or_also is None else f", or {self.or_also:g}"
        text = f"{self.ends[0]}{_text(self.low)}, {_text(self.high)}{self.ends[1]}"
        return f"in {text}{also}"


_FRACTION, _BELOW_ONE = Range(0, 1), Range(0, 1, "[)")
_BATCH, _STEPS, _WEIGHT = Range(1, _IMAGES), Range(0, MOST_STEPS), Range(0, 1000)
_TIMES = Range(1, 1_000_000)
_SIDE = Range(32, 16_384, or_also=0)
ZOOM = Range(0.5, 2)

RANGES: dict[str, Range] = {
    "seed": Range(0, _SEED),
    "batch_size": _BATCH,
    "eval_batch_size": _BATCH,
    "accumulate": _BATCH,
    "epochs": Range(0, 1e6, "(]"),
    "steps": _STEPS,
    "budget_flops": Range(0, _FLOPS),
    "members": Range(1, 1000),
    "member_flops": Range(0, _FLOPS),
    "evaluate_every": Range(0, 1e6, "(]"),
    "checkpoint_every": _STEPS,
    "log_every": Range(1, MOST_STEPS),
    "max_seconds": Range(0, _SECONDS),
    "stall_seconds": Range(0, _SECONDS),
    "nonfinite_limit": _TIMES,
    "ema_decay": _BELOW_ONE,
    "test_views": Range(0, 1000),
    "test_atlas": Range(0, 60),
    "view_steps": Range(0, 100_000),
    "pretrain.steps": _STEPS,
    "finetune.last_blocks": Range(0, 1000, or_also=-1),
    "finetune.last_layers": Range(0, 1000, or_also=-1),
    "finetune.head_first": _BELOW_ONE,
    "finetune.layer_decay": Range(0, 1, "(]"),
    "finetune.backbone_weight_decay": Range(0, 100, or_also=-1),
    "data.height": _SIDE,
    "data.width": _SIDE,
    "data.validation_fraction": _BELOW_ONE,
    "data.test_fraction": _BELOW_ONE,
    "data.locked_fraction": _BELOW_ONE,
    "data.split_seed": Range(0, _SEED),
    "data.threads": Range(1, 256),
    "data.buffer": Range(1, 1024),
    "augment.flip": _FRACTION,
    "augment.rotate": Range(0, 180),
    "augment.translate": _FRACTION,
    "augment.zoom": Range(0, 0.9),
    "augment.shear": Range(0, 45),
    "augment.brightness": _FRACTION,
    "augment.contrast": Range(0, 0.99),
    "augment.gamma": Range(0, 0.99),
    "augment.invert": _FRACTION,
    "augment.shading": _FRACTION,
    "augment.blur": _FRACTION,
    "augment.noise": _FRACTION,
    "augment.noise_probability": _FRACTION,
    "augment.jpeg": _FRACTION,
    "augment.jpeg_quality": Range(1, 80),
    "augment.frame": _FRACTION,
    "mix.probability": _FRACTION,
    "mix.mixup": Range(0, 100),
    "mix.cutmix": Range(0, 100),
    "model.drop_path_rate": _BELOW_ONE,
    "model.bn_momentum": _BELOW_ONE,
    "model.bn_epsilon": Range(0, 1, "(]"),
    "model.dropout": _BELOW_ONE,
    "model.hidden": Range(0, 65_536),
    "loss.bins": Range(2, 10_000),
    "loss.sigma": Range(0.01, 240),
    "loss.distribution_weight": _WEIGHT,
    "loss.sex_weight": _WEIGHT,
    "loss.dice_weight": _WEIGHT,
    "optimizer.learning_rate": Range(0, 1000, "(]"),
    "optimizer.reference_batch": Range(0, 1_000_000),
    "optimizer.warmup": _BELOW_ONE,
    "optimizer.weight_decay": Range(0, 100),
    "optimizer.clip_norm": Range(0, 1e6),
    "optimizer.beta1": _BELOW_ONE,
    "optimizer.beta2": _BELOW_ONE,
    # The section of benchmarks, see boneage_jax/benchmarking/settings.py.
    "bench.image_size": Range(16, 4096),
    "bench.repetitions": _TIMES,
    "bench.min_seconds": Range(0, 86_400),
    "bench.warmup": Range(0, 1_000_000),
    "bench.records": Range(1, 10_000_000),
    "bench.block": _TIMES,
    "bench.starts": Range(1, 1000),
    "bench.tolerance": Range(0, 10),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "parallel": ("jit", "pmap"),
    "nonfinite": ("skip", "rollback", "stop"),
    "bias_correction": ("none", "shift", "line", "ridge"),
    "select": ("latest", "best"),
    "data.fit": ("pad", "stretch"),
    "data.mask_mode": ("", "crop", "upright", "multiply"),
    "augment.fill": ("border", "0"),
    "augment.resample": ("auto", "matmul", "gather"),
    "normalize": ("zscore", "percentile", "equalize", "none"),
    "model.dtype": ("float32", "bfloat16"),
    "model.padding": ("same", "symmetric"),
    "model.depthwise": ("auto", "lax", "shift", "fused", "cudnn"),
    "loss.age": ("l1", "huber", "mse", "distribution"),
    "optimizer.name": ("adam", "adamw", "sgd", "rmsprop", "lion"),
    "optimizer.batch_scaling": ("linear", "sqrt"),
    "optimizer.schedule": ("constant", "cosine", "one_cycle"),
}


def shown(value: Any) -> str:
    """Returns a value as messages quote it, shortened to 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    text = text.replace("\n", " ")  # of a ConfigDict
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_value(key: str, value: Any) -> None:
    """Checks one value of a config against the tables; a key in neither is free.

    Args:
      key: the key, e.g. `optimizer.beta1`.
      value: its value, of the right type.

    Raises:
      InputError: the value is out of range, not a number, or not one of the choices.
    """
    if key in RANGES and value not in RANGES[key]:
        raise InputError(f"config.{key}={shown(value)} must be {RANGES[key]}")
    if key in CHOICES and value not in CHOICES[key]:
        names = ", ".join(choice or "empty" for choice in CHOICES[key])
        raise InputError(f"config.{key}={shown(value)} must be one of {names}")


def _text(end: float) -> str:
    return str(int(end)) if end == int(end) and abs(end) < 1e12 else f"{end:g}"
