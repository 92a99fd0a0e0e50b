"""The optax chain that a config describes."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from boneage_jax.errors import InputError

_SCHEDULES = ("constant", "cosine", "one_cycle")
_OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "lion")


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Learning rate over steps.

    Args:
      config: `learning_rate` (the peak), `schedule` (constant | cosine | one_cycle),
        `warmup` (fraction of the run that rises linearly from zero).
      total_steps: the updates of the whole run; the schedule ends there.

    Raises:
      InputError: for an unknown schedule or a warm-up outside [0, 1).
    """
    if config.schedule not in _SCHEDULES:
        raise InputError(
            f"optimizer.schedule={config.schedule!r} is unknown; choose one of {_SCHEDULES}"
        )
    if not 0 <= config.warmup < 1:
        raise InputError(f"optimizer.warmup={config.warmup} must be a fraction in [0, 1)")
    peak, warmup = config.learning_rate, round(config.warmup * total_steps)
    if config.schedule == "one_cycle":
        # Smith & Topin, arXiv:1708.07120: rise to the peak, then fall far below the start.
        return optax.cosine_onecycle_schedule(
            total_steps, peak, pct_start=config.warmup or 0.3, div_factor=25, final_div_factor=1e4
        )
    if config.schedule == "cosine":
        body = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1))
    else:
        body = optax.constant_schedule(peak)
    if not warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), body], [warmup])


def decay_mask(params: Any) -> Any:
    """True for kernels, False for biases and BatchNorm parameters, which are not decayed."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """Gradient clipping, then the named optimizer on the schedule.

    Args:
      config: the `optimizer` section: `name`, `learning_rate`, `schedule`, `warmup`,
        `weight_decay` (decoupled, kernels only), `clip_norm` (0 switches it off), `beta1`,
        `beta2`.
      total_steps: see `make_schedule`.

    Raises:
      InputError: for an unknown optimizer, or a weight decay that the optimizer does not have.
    """
    schedule = make_schedule(config, total_steps)
    name, decay = config.name, config.weight_decay
    if name not in _OPTIMIZERS:
        raise InputError(f"optimizer.name={name!r} is unknown; choose one of {_OPTIMIZERS}")
    if decay and name not in ("adamw", "lion"):
        raise InputError(f"optimizer.weight_decay needs adamw or lion, not {name}; set it to 0")
    betas = {"b1": config.beta1, "b2": config.beta2}
    match name:
        case "adam":
            core = optax.adam(schedule, **betas)
        case "adamw":
            core = optax.adamw(schedule, weight_decay=decay, mask=decay_mask, **betas)
        case "lion":
            core = optax.lion(schedule, weight_decay=decay, mask=decay_mask, **betas)
        case "sgd":
            core = optax.sgd(schedule, momentum=config.beta1, nesterov=True)
        case "rmsprop":
            # The EfficientNet paper's optimizer (arXiv:1905.11946): decay 0.9, momentum 0.9.
            core = optax.rmsprop(schedule, decay=0.9, eps=1e-3, momentum=config.beta1)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), core)
    return core
