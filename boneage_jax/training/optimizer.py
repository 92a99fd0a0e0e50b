"""Builds the optax optimizer and the learning-rate schedule of a config."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from boneage_jax.errors import InputError
from boneage_jax.ranges import check_value
from boneage_jax.training.adam import clip_by_global_norm, scale_by_adam


@dataclasses.dataclass(frozen=True)
class Groups:
    """How the updates of the backbone differ from those of the heads.

    Attributes:
      in_backbone: maps a parameter tree to booleans, True for the backbone.
      backbone_decay: weight decay of the backbone's kernels; -1 applies `weight_decay` to all.
      rate_factors: maps a parameter tree to factors of the learning rate; None for 1.
      head_steps: initial steps in which the backbone is not updated.
      resting: whether the optimizer is for those initial steps. The structure of its state is the
        same either way.
    """

    in_backbone: Callable[[Any], Any] = lambda params: jax.tree.map(lambda _: False, params)
    backbone_decay: float = -1.0
    rate_factors: Callable[[Any], Any] | None = None
    head_steps: int = 0
    resting: bool = False


def make_schedule(
    config: ConfigDict, total_steps: int, peak: float | None = None
) -> optax.Schedule:
    """Builds the learning-rate schedule.

    Args:
      config: `learning_rate` (the peak), `schedule` (constant | cosine | one_cycle),
        `warmup` (fraction of the run with a linear rise from zero).
      total_steps: updates of the whole run; the schedule ends there.
      peak: overrides `learning_rate`, see `peak_rate`.

    Raises:
      InputError: an unknown schedule or a warm-up outside [0, 1).
    """
    for key in ("schedule", "warmup"):
        check_value(f"optimizer.{key}", config[key])
    peak = config.learning_rate if peak is None else peak
    warmup = round(config.warmup * total_steps)
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
    """Returns True for kernels, False for biases and BatchNorm parameters (no decay)."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def peak_rate(config: ConfigDict, batch_size: int) -> float:
    """Returns the learning rate scaled to the batch size.

    Args:
      config: `learning_rate`, given for `reference_batch` images (unscaled if that is 0), and
        `batch_scaling`: linear (Goyal et al. 2017, arXiv:1706.02677) | sqrt (suited to Adam's
        gradient noise: Malladi et al. 2022, arXiv:2205.10287).
      batch_size: images per step over all devices.

    Raises:
      InputError: an unknown `batch_scaling`.
    """
    check_value("optimizer.batch_scaling", config.batch_scaling)
    if not config.reference_batch:
        return float(config.learning_rate)
    ratio = batch_size / config.reference_batch
    return float(config.learning_rate) * (ratio if config.batch_scaling == "linear" else ratio**0.5)


def make_optimizer(
    config: ConfigDict,
    total_steps: int,
    *,
    peak: float | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """Builds gradient clipping followed by the named optimizer on its schedule.

    Args:
      config: the `optimizer` section: `name`, `learning_rate`, `schedule`, `warmup`,
        `weight_decay` (decoupled, kernels only), `clip_norm` (0 disables clipping), `beta1`,
        `beta2`.
      total_steps: see `make_schedule`.
      peak: overrides the section's `learning_rate`.
      groups: how backbone and heads differ; None if they do not.

    Raises:
      InputError: an unknown optimizer, or weight decay with an optimizer that has none.
    """
    schedule = make_schedule(config, total_steps, peak)
    groups = groups or Groups()
    for key, value in config.items():
        check_value(f"optimizer.{key}", value)
    decays = config.weight_decay or groups.backbone_decay > 0
    if decays and config.name not in ("adamw", "lion"):
        raise InputError(f"optimizer.weight_decay needs adamw or lion, not {config.name}; set to 0")
    if not groups.head_steps:
        core = _core(config, schedule, groups)
    else:
        # Separate state per group: bias correction counts the steps of that group only.
        late = _core(config, lambda step: schedule(step + groups.head_steps), groups)
        core = optax.partition(
            {
                "heads": _core(config, schedule, groups),
                "backbone": _resting(late) if groups.resting else late,
            },
            lambda params: jax.tree.map(
                lambda inside: "backbone" if inside else "heads", groups.in_backbone(params)
            ),
        )
    if config.clip_norm:
        return optax.chain(clip_by_global_norm(config.clip_norm), core)
    return core


def _core(
    config: ConfigDict, schedule: optax.Schedule, groups: Groups
) -> optax.GradientTransformation:
    betas = {"b1": config.beta1, "b2": config.beta2}
    parts = []
    match config.name:
        case "adam":
            parts += [scale_by_adam(**betas)]
        case "adamw":
            parts += [scale_by_adam(**betas), *_decays(config.weight_decay, groups)]
        case "lion":
            parts += [optax.scale_by_lion(**betas), *_decays(config.weight_decay, groups)]
        case "sgd":
            parts += [optax.trace(decay=config.beta1, nesterov=True)]
        case "rmsprop":
            # The EfficientNet paper's optimizer (arXiv:1905.11946): decay 0.9, momentum 0.9.
            parts += [optax.scale_by_rms(decay=0.9, eps=1e-3)]
    if groups.rate_factors is not None:
        parts.append(_scale_by_factors(groups.rate_factors))
    parts.append(optax.scale_by_learning_rate(schedule))
    if config.name == "rmsprop":
        parts.append(optax.trace(decay=config.beta1))  # after scaling, as in TensorFlow
    return optax.chain(*parts)


def _resting(core: optax.GradientTransformation) -> optax.GradientTransformation:
    """Builds an optimizer with zero updates that leaves the state of `core` unchanged."""
    return optax.GradientTransformation(
        core.init, lambda updates, state, params=None: (optax.tree.zeros_like(updates), state)
    )


def _decays(decay: float, groups: Groups) -> list[optax.GradientTransformation]:
    if groups.backbone_decay < 0:
        return [optax.add_decayed_weights(decay, decay_mask)]

    def where(backbone: bool) -> Callable[[Any], Any]:
        return lambda params: jax.tree.map(
            lambda kernel, inside: kernel and inside == backbone,
            decay_mask(params),
            groups.in_backbone(params),
        )

    return [
        optax.add_decayed_weights(decay, where(False)),
        optax.add_decayed_weights(groups.backbone_decay, where(True)),
    ]


def _scale_by_factors(factors: Callable[[Any], Any]) -> optax.GradientTransformation:
    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, factors(updates))

    return optax.stateless(update)
