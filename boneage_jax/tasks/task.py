"""A task: model, loss, metrics and summary of one learning problem.

The steps, the loop and the report are shared; a task defines only what is learned.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import clu.metrics
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from boneage_jax.models.initializers import init_variables

Tree = Any
Arrays = dict[str, jax.Array]


class AgeScale(Protocol):
    """Mean and standard deviation of the bone ages of the training split, in months."""

    @property
    def age_mean(self) -> float: ...

    @property
    def age_std(self) -> float: ...


class Task(abc.ABC):
    """One learning problem. Instances are immutable and hold no arrays.

    A subclass has a field `model`, a Flax module that is called as
    `model(images, train=..., image_keys=...)`, or overrides `init` and `apply`.

    Attributes:
      name: the value of `config.task`.
      metrics_type: clu collection of Averages (a total and a count), merged on the device.
      metric: name of the metric that selects checkpoints; lower is better.
      labels: features of the data set, besides `image`, that the task learns from.
      label_dtypes: dtypes of labels that are neither float32 nor built in (`bone_age`, `male`,
        `mask`); integers arrive as int32.
      reported: predictions that `summarize` and the figures of a report need.
    """

    name: ClassVar[str]
    metrics_type: ClassVar[type[clu.metrics.Collection]]
    metric: ClassVar[str]
    labels: ClassVar[tuple[str, ...]]
    reported: ClassVar[tuple[str, ...]]
    label_dtypes: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: ConfigDict, info: AgeScale, model: nn.Module) -> "Task":
        """Builds the task of a checked config.

        Args:
          config: the whole config.
          info: properties of the training data.
          model: network of `config.model`; for bone age the backbone, from images to features.

        Raises:
          InputError: a config value that the task does not accept.
        """

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Tree:
        """Returns fresh variables {'params', 'batch_stats'} for images [H, W, C]."""
        model: Any = self.model  # type: ignore[attr-defined]
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return {"batch_stats": {}} | init_variables(model, key, images)

    def adapt(self, params: Tree, before: "Task") -> Tree:
        """Returns parameters that predict with this task what `params` predict with `before`.

        Args:
          params: parameters of a network of the same shape.
          before: its task, which was built for other data.
        """
        return params

    def apply(
        self, variables: Tree, batch: Arrays, *, train: bool, keys: jax.Array | None
    ) -> tuple[Arrays, Tree]:
        """Runs the model on normalised float32 images.

        Args:
          variables: {'params', 'batch_stats'}.
          batch: `image` [B, H, W, C] and the labels, of which only inputs may be read.
          train: use batch statistics and dropout.
          keys: one key per image, [B], for dropout and stochastic depth; None in evaluation.

        Returns:
          (outputs with a leading batch axis, new batch_stats).
        """
        model: Any = self.model  # type: ignore[attr-defined]
        if not train:
            return model.apply(variables, batch["image"], train=False), variables["batch_stats"]
        images = batch["image"]
        outputs, updated = model.apply(
            variables, images, train=True, image_keys=keys, mutable=["batch_stats"]
        )
        return outputs, updated.get("batch_stats", {})

    @abc.abstractmethod
    def loss(self, outputs: Arrays, batch: Arrays) -> tuple[jax.Array, Arrays]:
        """Returns (loss per image [B], its parts and errors by name, each [B])."""

    @abc.abstractmethod
    def metrics(
        self, per_image: jax.Array, parts: Arrays, outputs: Arrays, batch: Arrays
    ) -> clu.metrics.Collection:
        """Returns the metrics of one batch; images with `weight` 0 do not count."""

    @abc.abstractmethod
    def predictions(self, outputs: Arrays, parts: Arrays) -> Arrays:
        """Returns predictions in the task's units; `parts` is the second result of `loss`."""

    def mirror(self, outputs: Arrays) -> Arrays:
        """Returns the outputs for an image, given those for its left-right mirror image."""
        return outputs

    @abc.abstractmethod
    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns the task's groups of report.json from predictions and labels of a whole split."""
