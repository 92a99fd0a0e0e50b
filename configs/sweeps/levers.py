"""Arms that change one lever of the recipe `subset` at a time, at equal FLOPs.

python -m boneage_jax.sweep --config=configs/cls.py:subset --arms=configs/sweeps/levers.py \
  --config.data.raw_dir=DIR --config.member_flops=0 --config.data.config=128 \
  --config.data.test_fraction=0.11 --config.data.validation_fraction=0.25 \
  --budgets=6e12 --seeds=2 --output=FOLDER

The images that the preset reports on are held out as a locked test split, so that they do not
influence any choice; sizes below 192 px keep the sweep cheap. Levers that act on a trained network
(test-time flips, augmented views, bias correction) are compared on the runs of such a sweep by
benchmarks/studies/evaluation_levers.py.
"""

from typing import Any


def get_arms() -> dict[str, dict[str, Any]]:
    """Returns the overrides of the recipe by arm; the first arm is the recipe itself."""
    light = {"rotate": 10.0, "translate": 0.05, "zoom": 0.1, "shear": 0.0}
    light |= {"brightness": 0.0, "contrast": 0.0, "gamma": 0.2}
    return {
        "base": {},
        "loss-huber": {"loss.age": "huber"},
        "loss-mse": {"loss.age": "mse"},
        "loss-distribution": {"loss.age": "distribution"},
        "no-sex-input": {"model.sex_input": False},
        "no-ema": {"ema_decay": 0.0},
        "schedule-cosine": {"optimizer.schedule": "cosine"},
        "light-augmentation": {f"augment.{key}": value for key, value in light.items()},
        "no-augmentation": {f"augment.{key}": 0.0 for key in ("flip", *light)},
        "mixup": {"mix.mixup": 0.4},
        "cutmix": {"mix.cutmix": 1.0},
        "batch-8": {"batch_size": 8, "optimizer.learning_rate": 1e-3},
        "batch-32": {"batch_size": 32, "optimizer.learning_rate": 2e-3},
        "rate-half": {"optimizer.learning_rate": 0.75e-3},
        "rate-double": {"optimizer.learning_rate": 3e-3},
        "layer-decay-0.85": {"finetune.layer_decay": 0.85},
        "head-first": {"finetune.head_first": 0.1},
        "progressive": {"progressive.sizes": "96,128", "progressive.fractions": "0.5,0.5"},
        "equalize": {"normalize": "equalize"},
        "bfloat16": {"model.dtype": "bfloat16"},
    }
