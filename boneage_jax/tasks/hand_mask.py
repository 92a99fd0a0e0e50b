"""The mask of the hand: which pixels of a radiograph show it."""

import dataclasses
from typing import Any, ClassVar

import clu.metrics
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from boneage_jax.metrics import mask_summary
from boneage_jax.tasks.task import Arrays, Task, Tree

_SMOOTH = 1.0  # pixels added above and below in the soft Dice: empty masks stay finite


@flax.struct.dataclass
class HandMaskMetrics(clu.metrics.Collection):
    """Averages over images: loss, Dice of the thresholded mask, and 1 - Dice."""

    loss: clu.metrics.Average.from_output("loss")  # type: ignore[valid-type]
    dice: clu.metrics.Average.from_output("dice")  # type: ignore[valid-type]
    dice_error: clu.metrics.Average.from_output("dice_error")  # type: ignore[valid-type]


@dataclasses.dataclass(frozen=True)
class HandMask(Task):
    """The hand-mask task.

    The loss is the mean binary cross-entropy of an image's pixels plus `dice_weight` times
    1 - soft Dice of that image (Milletari et al., V-Net, 3DV 2016, with plain sums below).

    Attributes:
      model: maps images [B, H, W, 1] to logits [B, H, W, 1].
      dice_weight: weight of the soft Dice term.
    """

    model: nn.Module
    dice_weight: float = 1.0

    name: ClassVar[str] = "hand_mask"
    metrics_type: ClassVar[type[clu.metrics.Collection]] = HandMaskMetrics
    metric: ClassVar[str] = "dice_error"
    labels: ClassVar[tuple[str, ...]] = ("mask",)
    reported: ClassVar[tuple[str, ...]] = (
        "true_positive",
        "false_positive",
        "false_negative",
        "true_negative",
        "p_hand",
    )

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Tree:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = jax.jit(lambda k: self.model.init(k, images))(key)
        return {"batch_stats": {}} | variables  # a network without BatchNorm has none

    def apply(
        self, variables: Tree, batch: Arrays, *, train: bool, keys: jax.Array | None
    ) -> tuple[Arrays, Tree]:
        del keys  # nothing in the network is random
        if not train:
            logits: Any = self.model.apply(variables, batch["image"], train=False)
            return {"logits": logits}, variables["batch_stats"]
        outputs: Any
        outputs, updated = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        return {"logits": outputs}, updated.get("batch_stats", {})

    def loss(self, outputs: Arrays, batch: Arrays) -> tuple[jax.Array, Arrays]:
        logits = outputs["logits"]
        hand = batch["mask"] > 0  # [B, H, W, 1]
        target = hand.astype(jnp.float32)
        pixels = (1, 2, 3)
        cross_entropy = optax.sigmoid_binary_cross_entropy(logits, target).mean(pixels)
        p = jax.nn.sigmoid(logits)
        overlap, both = (p * target).sum(pixels), (p + target).sum(pixels)
        soft_dice = (2 * overlap + _SMOOTH) / (both + _SMOOTH)
        found = logits > 0
        counts = {
            "true_positive": (found & hand).sum(pixels),
            "false_positive": (found & ~hand).sum(pixels),
            "false_negative": (~found & hand).sum(pixels),
            "true_negative": (~found & ~hand).sum(pixels),
        }
        return cross_entropy + self.dice_weight * (1 - soft_dice), counts

    def metrics(
        self, per_image: jax.Array, parts: Arrays, outputs: Arrays, batch: Arrays
    ) -> clu.metrics.Collection:
        hits, errors = parts["true_positive"], parts["false_positive"] + parts["false_negative"]
        # Nothing to find and nothing found is a perfect mask.
        dice = jnp.where(hits + errors > 0, 2 * hits / jnp.maximum(2 * hits + errors, 1), 1.0)
        return HandMaskMetrics.single_from_model_output(
            loss=per_image, dice=dice, dice_error=1 - dice, mask=batch["weight"] > 0
        )

    def predictions(self, outputs: Arrays, parts: Arrays) -> Arrays:
        """Pixel counts [B] at the stored size, and `p_hand`, probabilities as uint8 [B, H, W]."""
        p = jax.nn.sigmoid(outputs["logits"][..., 0])
        return parts | {"p_hand": jnp.round(255 * p).astype(jnp.uint8)}

    def mirror(self, outputs: Arrays) -> Arrays:
        return {"logits": outputs["logits"][:, :, ::-1]}

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"mask": mask_summary(*(rows[name] for name in self.reported[:4]))}
