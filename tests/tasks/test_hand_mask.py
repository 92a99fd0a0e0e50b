"""The hand-mask task: its loss and metrics against values worked out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.inference.eval_step import make_eval_step
from boneage_jax.tasks.hand_mask import HandMask
from boneage_jax.tasks.metrics import mask_summary


class Identity(nn.Module):
    """The image is the logits."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        return images


TASK = HandMask(Identity(), dice_weight=0.5)


def _batch(logits: np.ndarray, mask: np.ndarray, weight=None) -> dict:
    weights = np.ones(len(mask)) if weight is None else weight
    return {
        "image": jnp.asarray(logits, jnp.float32)[..., None],
        "mask": jnp.asarray(mask, jnp.uint8)[..., None],
        "weight": jnp.asarray(weights, jnp.float32),
    }


def test_loss_is_cross_entropy_plus_soft_dice():
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(3, 5, 7)), rng.integers(0, 2, (3, 5, 7))
    batch = _batch(logits, mask)
    loss, counts = TASK.loss({"logits": batch["image"]}, batch)
    p = 1 / (1 + np.exp(-logits))
    for n in range(3):
        entropy = -np.mean(mask[n] * np.log(p[n]) + (1 - mask[n]) * np.log(1 - p[n]))
        dice = (2 * (p[n] * mask[n]).sum() + 1) / (p[n].sum() + mask[n].sum() + 1)
        assert loss[n] == pytest.approx(entropy + 0.5 * (1 - dice), rel=1e-5)
    found = logits > 0
    np.testing.assert_array_equal(counts["true_positive"], (found & (mask == 1)).sum((1, 2)))
    np.testing.assert_array_equal(counts["false_positive"], (found & (mask == 0)).sum((1, 2)))
    assert all(sum(part[n] for part in counts.values()) == 35 for n in range(3))


def test_gradient_of_the_loss_is_that_of_its_formula():
    """Against the textbook's in float64, differentiated by JAX; sure pixels stay finite."""
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=4.0, size=(2, 6, 5, 1))
    mask = jnp.asarray(rng.integers(0, 2, logits.shape), jnp.uint8)
    weight = np.array([1.0, 3.0])

    def ours(logits):
        loss, _ = TASK.loss({"logits": logits}, {"mask": mask})
        return jnp.vdot(loss, weight)

    def textbook(logits):
        p, target = 1 / (1 + jnp.exp(-logits)), mask.astype(jnp.float64)
        entropy = -(target * jnp.log(p) + (1 - target) * jnp.log(1 - p)).mean((1, 2, 3))
        overlap, both = (p * target).sum((1, 2, 3)), (p + target).sum((1, 2, 3))
        return jnp.vdot(entropy + 0.5 * (1 - (2 * overlap + 1) / (both + 1)), weight)

    with jax.enable_x64(True):
        want = jax.grad(textbook)(jnp.asarray(logits, jnp.float64))
    got = jax.grad(ours)(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
    wrong = jnp.where(mask > 0, -300.0, 300.0)
    slope = np.where(mask > 0, -1, 1) * weight[:, None, None, None] / 30
    np.testing.assert_allclose(jax.grad(ours)(wrong), slope, rtol=1e-5)


def test_empty_masks_give_a_finite_loss_and_gradient():
    batch = _batch(np.full((1, 4, 4), -20.0), np.zeros((1, 4, 4)))
    loss, grads = jax.value_and_grad(lambda x: TASK.loss({"logits": x}, batch)[0].sum())(
        batch["image"]
    )
    assert loss == pytest.approx(0.0, abs=1e-5)
    assert np.isfinite(grads).all()
    both = _batch(np.full((1, 4, 4), -1.0), np.zeros((1, 4, 4)))
    per_image, counts = TASK.loss({"logits": both["image"]}, both)
    metrics = TASK.metrics(per_image, counts, {}, both).compute()
    assert metrics["dice"] == 1.0 and metrics["dice_error"] == 0.0


def test_metrics_leave_padding_out():
    mask = np.zeros((3, 2, 4))
    mask[:, :, :2] = 1
    logits = np.where(mask > 0, 3.0, -3.0)
    logits[1, :, 2] = 3.0  # two pixels too many: 2 * 4 / (2 * 4 + 2) = 0.8
    logits[2] = -logits[2]
    batch = _batch(logits, mask, weight=[1, 1, 0])
    per_image, counts = TASK.loss({"logits": batch["image"]}, batch)
    metrics = TASK.metrics(per_image, counts, {}, batch).compute()
    assert metrics["dice"] == pytest.approx(0.9)
    assert metrics["dice_error"] == pytest.approx(0.1)


def test_test_time_flips_mirror_the_logits_back():
    """A network that looks at its left neighbour: flipped back, it looks at its right one."""

    class Shifted(nn.Module):
        @nn.compact
        def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
            return jnp.roll(images, 1, axis=2)

    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 4, 6)).astype(np.float32)
    step = make_eval_step(HandMask(Shifted()), lambda batch, keys: batch, flips=True)
    batch = _batch(logits, np.zeros((2, 4, 6)))
    _, predictions = step({"params": {}, "batch_stats": {}}, batch)
    mean = (np.roll(logits, 1, axis=2) + np.roll(logits, -1, axis=2)) / 2
    want = 255 / (1 + np.exp(-mean))
    assert np.abs(predictions["p_hand"].astype(float) - want).max() <= 0.51


def test_summary_per_image_and_pooled():
    #        hit, extra, missed, rest
    counts = np.array([[50, 10, 0, 40], [10, 0, 30, 60], [0, 0, 0, 100]]).T
    group = mask_summary(*counts)
    f1 = [100 / 110, 20 / 50, 1.0]
    single, pooled = group["per_image"], group["pooled"]
    assert single["f1"] == pytest.approx(np.mean(f1))
    assert single["f1_worst"] == pytest.approx(0.4)
    assert single["f1_median"] == pytest.approx(100 / 110)
    assert single["precision"] == pytest.approx((50 / 60 + 1 + 1) / 3)
    assert single["recall"] == pytest.approx((1 + 0.25 + 1) / 3)
    assert single["iou"] == pytest.approx((50 / 60 + 0.25 + 1) / 3)
    assert single["pixel_accuracy"] == pytest.approx((0.9 + 0.7 + 1.0) / 3)
    assert pooled["f1"] == pytest.approx(120 / 160)
    assert pooled["iou"] == pytest.approx(60 / 100)
    assert pooled["precision"] == pytest.approx(60 / 70)
    with pytest.raises(ValueError, match="one length"):
        mask_summary(counts[0], counts[1], counts[2], counts[3][:2])
