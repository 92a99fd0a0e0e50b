"""Where in a radiograph a network finds the age: Grad-CAM on the network's own input.

Selvaraju et al. 2017, arXiv:1610.02391: the channels of the last feature map, weighted by the mean
gradient of the output. The output is an age, not a class: a place may raise or lower it. So the
map's mean is taken off and its magnitude shown, in place of the rectified map of a class.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from boneage_jax.data.inputs import make_inputs
from boneage_jax.errors import InputError
from boneage_jax.inference.network import Network
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.storage.state import Tree

GradCam = Callable[[Sequence[Tree], np.ndarray, int], np.ndarray]


class _Pooled(nn.Module):
    """Stands in for a backbone: takes its last feature map in place of images."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, image_keys: Any = None) -> jax.Array:
        return x.mean((1, 2))


def make_grad_cam(network: Network) -> GradCam:
    """Builds `(members, square, male) -> contributions`, compiled on first use.

    `members` are {'params', 'batch_stats'} of each, `square` is uint8 [S, S] as the network gets
    it, `male` 1, 0 or -1. Contributions, float32 [h, w], are the months by which each place of the
    last feature map moves the age, from the mean of all places; averaged over members and, where
    the prediction is, over the mirror image.

    Raises:
      InputError: the backbone is no EfficientNet, so that its feature map is unknown.
    """
    task: Any = network.task
    net: Any = getattr(task, "model", None)
    if not isinstance(getattr(net, "backbone", None), EfficientNet):
        raise InputError("this network shows no feature map")
    head, inputs = net.clone(backbone=_Pooled()), make_inputs(network.config)

    def feature_map(module: Any, images: jax.Array) -> jax.Array:
        return module.backbone(images, train=False, endpoints=True)[1]["top"]

    def one(variables: Tree, images: jax.Array, male: jax.Array) -> jax.Array:
        top = net.apply(variables, inputs({"image": images}, None)["image"], method=feature_map)

        def age(top: jax.Array) -> jax.Array:
            read = head.apply({"params": variables["params"]}, top, male, train=False)
            return read["age"].sum() * task.age_std

        top = top.astype(jnp.float32)
        places = top.shape[1] * top.shape[2]
        weights = jax.grad(age)(top).mean((1, 2), keepdims=True) * places
        moved = (weights * top).sum(-1)
        return moved - moved.mean((1, 2), keepdims=True)

    @jax.jit
    def contributions(variables: Tree, images: jax.Array, male: jax.Array) -> jax.Array:
        found = one(variables, images, male)[0]
        if network.config.test_flips:
            found = (found + one(variables, images[:, :, ::-1], male)[0, :, ::-1]) / 2
        return found

    def grad_cam(members: Sequence[Tree], square: np.ndarray, male: int) -> np.ndarray:
        images, sexes = square[None, ..., None], np.array([male], np.int32)
        found = [np.asarray(contributions(member, images, sexes)) for member in members]
        return np.mean(found, axis=0)

    return grad_cam
