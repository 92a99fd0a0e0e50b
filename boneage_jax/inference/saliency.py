"""Where in a radiograph a network finds the age: Grad-CAM on the network's own input.

Selvaraju et al. 2017, arXiv:1610.02391: the channels of the last feature map, weighted by the mean
gradient of the output. The output is an age, not a class: a place may raise or lower it. So the
map's mean is taken off and its magnitude shown, in place of the rectified map of a class.

The heads read the mean of the feature map over its places, so the gradient is the same at each: the
gradient with respect to the pooled features over the number of places. It goes backwards through
the heads alone, and age and map are made in one run of the backbone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from boneage_jax.data.inputs import padded_batch, reading_inputs
from boneage_jax.errors import InputError
from boneage_jax.inference.eval_step import EvalStep, make_eval_step
from boneage_jax.inference.network import Network
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.storage.state import Tree
from boneage_jax.tasks.registry import make_task
from boneage_jax.tasks.task import Arrays

GradCam = Callable[[Sequence[Tree], np.ndarray, int], np.ndarray]
CONTRIBUTIONS = "contributions"  # among the predictions of `explained_step`


class _Pooled(nn.Module):
    """Stands in for a backbone: takes its pooled features in place of images."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, image_keys: Any = None) -> jax.Array:
        return x


class _Explained:
    """A task with one more prediction: the contributions to the age, float32 [B, h, w]."""

    def __init__(self, task: Any):
        self._task = task
        self._head = task.model.clone(backbone=_Pooled())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def apply(self, variables: Tree, batch: Arrays, *, train: bool, keys: Any) -> Any:
        del train, keys  # the eval step has neither

        def read_backbone(module: Any, images: jax.Array) -> Any:
            return module.backbone(images, train=False, endpoints=True)

        def read_heads(pooled: jax.Array) -> tuple[jax.Array, Arrays]:
            params = {"params": variables["params"]}
            outputs = self._head.apply(params, pooled, batch["male"], train=False)
            return outputs["age"], outputs

        pooled, seen = self._task.model.apply(variables, batch["image"], method=read_backbone)
        age, pull, outputs = jax.vjp(read_heads, pooled.astype("float32"), has_aux=True)
        (gradient,) = pull(jnp.full_like(age, self._task.age_std))
        top = seen["top"].astype("float32")  # [B, h, w, F]
        weights = gradient[:, None, None] / (top.shape[1] * top.shape[2])
        moved = (weights * top).sum(-1)
        moved = moved - moved.mean((1, 2), keepdims=True)
        return outputs | {CONTRIBUTIONS: moved}, variables["batch_stats"]

    def mirror(self, outputs: Arrays) -> Arrays:
        turned = {CONTRIBUTIONS: outputs[CONTRIBUTIONS][:, :, ::-1]}
        return self._task.mirror(outputs) | turned

    def predictions(self, outputs: Arrays, parts: Arrays) -> Arrays:
        found = self._task.predictions(outputs, parts)
        return found | {CONTRIBUTIONS: outputs[CONTRIBUTIONS]}


def has_feature_map(network: Network) -> bool:
    """Returns whether the feature map of the backbone is known: that of an EfficientNet is."""
    model: Any = getattr(network.task, "model", None)
    return isinstance(getattr(model, "backbone", None), EfficientNet)


def explained_step(network: Network) -> EvalStep:
    """Builds the eval step of one device with `contributions`, float32 [B, h, w], beside the age.

    A contribution is the months, to first order, by which a place of the last feature map moves the
    age: what would be missing if it were like the mean of all places. They add up to 0. With
    `config.test_flips` they are averaged over the mirror image, as the age is, and with
    `config.test_zooms` place by place over the magnifications; augmented views are left out, whose
    places are others.

    Raises:
      InputError: the backbone is no EfficientNet, so that its feature map is unknown.
    """
    if not has_feature_map(network):
        raise InputError("this network shows no feature map")
    task: Any = _Explained(make_task(network.config, network.info, None))
    inputs, *zoomed = reading_inputs(network.config)
    return make_eval_step(task, inputs, zoomed=zoomed, flips=network.config.test_flips)


def make_grad_cam(network: Network) -> GradCam:
    """Builds `(members, square, male) -> contributions`, compiled on first use.

    `members` are {'params', 'batch_stats'} of each, `square` is uint8 [S, S] as the network gets
    it, `male` 1, 0 or -1. Contributions, float32 [h, w], are those of `explained_step`, averaged
    over members.

    Raises:
      InputError: the backbone is no EfficientNet, so that its feature map is unknown.
    """
    step = explained_step(network)

    @jax.jit
    def contributions(variables: Tree, batch: Arrays) -> jax.Array:
        return step(variables, batch)[1][CONTRIBUTIONS][0]

    def grad_cam(members: Sequence[Tree], square: np.ndarray, male: int) -> np.ndarray:
        batch: Any = padded_batch(1, [square], network.task, {"male": np.array([male], np.int32)})
        found = [np.asarray(contributions(member, batch)) for member in members]
        return np.mean(found, axis=0)

    return grad_cam
