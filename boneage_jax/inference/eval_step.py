"""The eval step: a pure function shared by all tasks."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from boneage_jax.data.inputs import Batch, Inputs
from boneage_jax.runtime.parallel import Metrics, sum_over_devices
from boneage_jax.storage.state import Tree
from boneage_jax.tasks.task import Task

EvalStep = Callable[[Tree, Batch], tuple[Metrics, Batch]]
_VIEWS = 0  # seed of the augmented views


def make_eval_step(
    task: Task,
    inputs: Inputs,
    *,
    zoomed: Sequence[Inputs] = (),
    flips: bool = False,
    views: int = 0,
    axis_name: str | None = None,
) -> EvalStep:
    """Builds `(variables, batch) -> (metrics, predictions)`.

    `variables` is {'params', 'batch_stats'}; predictions are arrays with a leading batch axis.
    Images of weight 0 (the padding of the last batch) do not count in the metrics.

    Args:
      task: model, loss and metrics.
      inputs: see `boneage_jax.data.inputs.make_inputs`; called with keys only for `views`.
      zoomed: likewise; the outputs are averaged over these inputs too (1 + their number times the
        compute).
      flips: average the outputs over the image and its mirror image (twice the compute).
      views: average also over this many augmented copies of each image, drawn as in training. All
        images get the same draws, whatever their batch (1 + views times the compute).
      axis_name: device axis to reduce the metrics over, or None.
    """

    def eval_step(variables: Tree, batch: Batch) -> tuple[Metrics, Batch]:
        def read(batch: Batch) -> Batch:
            outputs, _ = task.apply(variables, batch, train=False, keys=None)
            if not flips:
                return outputs
            mirrored = batch | {"image": batch["image"][:, :, ::-1]}
            others, _ = task.apply(variables, mirrored, train=False, keys=None)
            return jax.tree.map(lambda a, b: (a + b) / 2, outputs, task.mirror(others))

        def add_view(total: Batch, view: jax.Array) -> tuple[Batch, None]:
            key = jax.random.fold_in(jax.random.key(_VIEWS), view)
            keys = jnp.broadcast_to(key, stored["image"].shape[:1])
            return jax.tree.map(jnp.add, total, read(inputs(stored, keys))), None

        stored, batch = batch, inputs(batch, None)
        outputs = read(batch)
        for others in zoomed:
            outputs = jax.tree.map(jnp.add, outputs, read(others(stored, None)))
        if views:
            outputs, _ = jax.lax.scan(add_view, outputs, jnp.arange(views))
        if zoomed or views:
            outputs = jax.tree.map(lambda x: x / (1 + len(zoomed) + views), outputs)
        per_image, parts = task.loss(outputs, batch)
        metrics = task.metrics(per_image, parts, outputs, batch)
        return sum_over_devices(metrics, axis_name), task.predictions(outputs, parts)

    return eval_step
