"""The recipe `subset` as it is, for error against FLOPs.

python -m boneage_jax.sweep --config=configs/cls.py:subset --arms=configs/sweeps/budgets.py \
  --config.data.raw_dir=DIR --budgets=10e12,26e12,77e12 --output=FOLDER
"""

from typing import Any


def get_arms() -> dict[str, dict[str, Any]]:
    """One arm: nothing is changed."""
    return {"subset": {}}
