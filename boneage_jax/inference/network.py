"""A network for inference: a task on its devices with its compiled eval step."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from ml_collections import ConfigDict

from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import batch_shapes, input_shape, padded_batch, reading_inputs
from boneage_jax.extensions import MODELS, TASKS
from boneage_jax.inference.eval_step import EvalStep, make_eval_step
from boneage_jax.models.flops import count_flops
from boneage_jax.runtime.parallel import Parallel
from boneage_jax.storage.program_cache import keep_program, load_program, program_key
from boneage_jax.storage.state import Tree
from boneage_jax.tasks.registry import make_task
from boneage_jax.tasks.task import Task

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Network:
    """A config turned into a network for inference; compiled on first use.

    Attributes:
      config: checked config.
      info: properties of the training data.
      parallel: devices and how steps run on them.
      task: model, loss and metrics.
    """

    config: ConfigDict
    info: DataInfo
    parallel: Parallel
    task: Task

    @property
    def batch_size(self) -> int:
        """Images per eval step."""
        return int(self.config.eval_batch_size)

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width in pixels of what the network reads, made from the stored images."""
        return input_shape(self.config.data, self.info.image_size)

    @functools.cached_property
    def eval_flops(self) -> int:
        """FLOPs of one eval step on all devices, counted from its jaxpr."""
        task = make_task(self.config, self.info, None)
        return count_flops(
            self.local_step(),
            jax.eval_shape(lambda: task.init(jax.random.key(0), (*self.input_shape, 1))),
            batch_shapes(self.batch_size, self.info.image_size, task),
        )

    def local_step(self) -> EvalStep:
        """Builds the eval step of one device as a plain function, to be counted or exported."""
        task = make_task(self.config, self.info, None)
        return make_eval_step(task, **_options(self.config))

    @functools.cached_property
    def eval_step(self) -> Any:
        """Eval step on the devices, see `boneage_jax.inference.eval_step`."""
        return self.parallel.eval_step(
            make_eval_step(
                self.task,
                **_options(self.config),
                axis_name=self.parallel.axis_name,
            )
        )

    @functools.cached_property
    def _program_key(self) -> str:
        """Name of the traced program among those kept; "" if code of the user's is in it."""
        own = MODELS.keys() | TASKS.keys()
        used = {self.config.model.name, self.config.task}
        if used & own or self.config.augment.extra or not self.parallel.is_plain:
            return ""
        info = dataclasses.asdict(self.info)
        return program_key({"config": self.config.to_dict(), "info": info})

    @functools.cached_property
    def _kept_program(self) -> export.Exported | None:
        """The eval step without its metrics, as an earlier start traced it."""
        return load_program(self._program_key) if self._program_key else None

    @functools.cached_property
    def _traced_shapes(self) -> Tree:
        """Shapes and dtypes of {'params', 'batch_stats'}."""
        if kept := self._kept_program:
            (variables, _), _ = jax.tree.unflatten(kept.in_tree, kept.in_avals)
            return variables
        return jax.eval_shape(lambda: self.task.init(jax.random.key(0), (*self.input_shape, 1)))

    @functools.cached_property
    def _predict_step(self) -> Any:
        """`eval_step` without its metrics, traced only if no earlier start did so."""
        program, step = self._kept_program, self.local_step()
        if self._program_key and not program:
            program = keep_program(
                self._program_key,
                lambda variables, batch: ({}, step(variables, batch)[1]),
                self._traced_shapes,
                batch_shapes(self.batch_size, self.info.image_size, self.task),
            )
        return self.parallel.eval_step(program.call) if program else self.eval_step

    def variable_shapes(self) -> Tree:
        """Returns shapes, dtypes and shardings of {'params', 'batch_stats'}."""
        return self.parallel.replicated_shapes(self._traced_shapes)

    def read(
        self,
        members: Sequence[Tree],
        images: Sequence[np.ndarray],
        labels: Mapping[str, np.ndarray] | None = None,
        keys: tuple[str, ...] = (),
    ) -> list[Rows]:
        """Runs several networks of the same shape on one batch of images.

        Args:
          members: {'params', 'batch_stats'} of each network.
          images: uint8 [S, S] each, 1 to `batch_size` of them.
          labels: inputs of the task by name, one value per image, e.g. `male`.
          keys: names of the predictions to return, `task.reported` if empty.

        Returns:
          For each member its predictions by name, [n, ...] each.

        Raises:
          InputError: more images than `batch_size`, or none.
        """
        count, keys = len(images), keys or self.task.reported
        batch = padded_batch(self.batch_size, list(images), self.task, labels or {})
        placed = self.parallel.put_batch(batch)
        outputs = [self._predict_step(variables, placed)[1] for variables in members]
        fetched = [self.parallel.fetch({key: each[key] for key in keys}) for each in outputs]
        return [{key: values[:count] for key, values in rows.items()} for rows in fetched]


def build_network(
    config: ConfigDict, info: DataInfo, devices: Sequence[jax.Device] | None = None
) -> Network:
    """Builds the network of a config; compiles and initialises nothing.

    Args:
      config: checked config.
      info: properties of the training data.
      devices: devices to run on, all by default.

    Raises:
      InputError: a config value that model, task, inputs or devices do not accept.
    """
    parallel = Parallel(config.parallel, devices)
    parallel.check_batch("eval_batch_size", config.eval_batch_size)
    reading_inputs(config)  # raises on a wrong value
    input_shape(config.data, info.image_size)  # likewise
    return Network(config, info, parallel, make_task(config, info, parallel.axis_name))


def _options(config: ConfigDict) -> dict[str, Any]:
    inputs, *zoomed = reading_inputs(config)
    return {
        "inputs": inputs,
        "zoomed": zoomed,
        "flips": config.test_flips,
        "views": config.test_views,
    }
