"""Arms for error against FLOPs: the recipe `subset`, unchanged.

python -m boneage_jax.sweep --config=configs/cls.py:subset --arms=configs/sweeps/budgets.py \
  --config.data.raw_dir=DIR --budgets=10e12,26e12,77e12 --output=FOLDER
"""

from typing import Any


def get_arms() -> dict[str, dict[str, Any]]:
    """Returns the single arm, without changes."""
    return {"subset": {}}
