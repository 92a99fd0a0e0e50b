"""What a task is: one problem's model, loss, metrics and summary together.

The steps, the loop and the report are shared; a task says only what is learned.
"""

import abc
from typing import Any, ClassVar

import clu.metrics
import jax
import numpy as np

Tree = Any
Arrays = dict[str, jax.Array]


class Task(abc.ABC):
    """One problem to learn. Instances are immutable and hold no arrays.

    Attributes:
      name: the value of `config.task`.
      metrics_type: clu collection of Averages (a total and a count), merged on the device.
      metric: the name of the metric that selects checkpoints; lower is better.
      labels: the features of the data set, beside `image`, that the task learns from.
      reported: the predictions that `summarize` and the figures of a report need.
    """

    name: ClassVar[str]
    metrics_type: ClassVar[type[clu.metrics.Collection]]
    metric: ClassVar[str]
    labels: ClassVar[tuple[str, ...]]
    reported: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Tree:
        """Fresh variables {'params', 'batch_stats'} for images [H, W, C]."""

    @abc.abstractmethod
    def apply(
        self, variables: Tree, batch: Arrays, *, train: bool, keys: jax.Array | None
    ) -> tuple[Arrays, Tree]:
        """Runs the model on normalised float32 images.

        Args:
          variables: {'params', 'batch_stats'}.
          batch: `image` [B, H, W, C] and the labels, of which only inputs may be read.
          train: batch statistics and dropout on.
          keys: one key per image, [B], for dropout and stochastic depth; None in evaluation.

        Returns:
          (outputs with a leading batch axis, new batch_stats).
        """

    @abc.abstractmethod
    def loss(self, outputs: Arrays, batch: Arrays) -> tuple[jax.Array, Arrays]:
        """Returns (loss per image [B], its parts and errors by name, each [B])."""

    @abc.abstractmethod
    def metrics(
        self, per_image: jax.Array, parts: Arrays, outputs: Arrays, batch: Arrays
    ) -> clu.metrics.Collection:
        """The metrics of one batch; images with `weight` 0 do not count."""

    @abc.abstractmethod
    def predictions(self, outputs: Arrays, parts: Arrays) -> Arrays:
        """What a user wants to see of the outputs, in the task's units; `parts` is of `loss`."""

    def mirror(self, outputs: Arrays) -> Arrays:
        """The outputs for an image, given those for its left-right mirror image."""
        return outputs

    @abc.abstractmethod
    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """The task's groups of report.json from predictions and labels of a whole split."""
