"""Builds the task of a config, with its model."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from boneage_jax.errors import InputError
from boneage_jax.extensions import TASKS
from boneage_jax.models.registry import UNET_NAMES, create_model, options_of
from boneage_jax.tasks.bone_age import BoneAge
from boneage_jax.tasks.hand_mask import HandMask
from boneage_jax.tasks.task import AgeScale, Task

_OWN: dict[str, type[Task]] = {task.name: task for task in (BoneAge, HandMask)}


def task_class(name: str) -> type[Task]:
    """Returns the class of `config.task`.

    Raises:
      InputError: an unknown task.
    """
    if name in _OWN:
        return _OWN[name]
    if name not in TASKS:
        raise TASKS.unknown(name, _OWN)
    return TASKS[name]


def make_task(
    config: ConfigDict,
    info: AgeScale,
    axis_name: str | None,
    frozen: frozenset[str] = frozenset(),
    images_per_device: int = 0,
) -> Task:
    """Builds the task that a config names, with its model.

    Args:
      config: checked config.
      info: properties of the training data.
      axis_name: device axis over which BatchNorm statistics are averaged, or None.
      frozen: layers of the backbone that are not trained.
      images_per_device: images of a micro-batch on one device, or 0 if the network is built for no
        device.

    Raises:
      InputError: an unknown task, model or model option, or a model that does not fit the task.
    """
    model, task = config.model, task_class(config.task)
    if ((model.name in UNET_NAMES) and config.task == "bone_age") or (
        config.task == "hand_mask" and model.name.startswith("efficientnet_")
    ):
        raise InputError(
            f"config.model.name={model.name!r} does not fit config.task={config.task!r}; "
            f"hand_mask takes {', '.join(UNET_NAMES)}, bone_age any other"
        )
    options: dict[str, Any] = {
        "dtype": jnp.dtype(model.dtype),
        "bn_momentum": float(model.bn_momentum),
        "bn_axis_name": axis_name if model.bn_sync else None,
        "drop_path_rate": float(model.drop_path_rate),
        "padding": model.padding,
        "bn_epsilon": float(model.bn_epsilon),
        "depthwise": model.depthwise,
        "remat": bool(model.remat),
        "frozen": frozen,
        "images_per_device": images_per_device,
    }
    known = options_of(model.name)
    options = {key: value for key, value in options.items() if key in known}
    own = model.get("options", ConfigDict()).to_dict()
    if "name" in own:  # an argument of create_model
        raise InputError(f"config.model.options.name is no option of {model.name}")
    return task.from_config(config, info, create_model(model.name, **options | own))
