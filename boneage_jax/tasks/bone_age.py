"""Bone age in months and sex from one radiograph."""

import dataclasses
from typing import Any, ClassVar

import clu.metrics
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from boneage_jax.errors import InputError
from boneage_jax.models.initializers import init_variables
from boneage_jax.tasks.metrics import age_summary, sex_summary
from boneage_jax.tasks.task import AgeScale, Arrays, Task, Tree

LOSSES = ("l1", "huber", "mse", "distribution")
AGE_RANGE = (0.0, 240.0)  # months spanned by the bins of a label distribution
_HEAD_LAYER = 10_000  # folded into the keys of the head's dropout, beyond any backbone layer


def bin_centers(bins: int, age_mean: float, age_std: float) -> tuple[float, ...]:
    """Returns the standardised centres of equal bins over `AGE_RANGE`."""
    low, high = AGE_RANGE
    middles = low + (np.arange(bins) + 0.5) * (high - low) / bins
    return tuple(((middles - age_mean) / age_std).tolist())


class BoneAgeNet(nn.Module):
    """Backbone with an age head and a sex head.

    The sex head reads only the image features; the embedded sex enters the age head after that
    branch, so the sex head cannot read its own label.

    Attributes:
      backbone: maps images [B, H, W, C] to pooled features [B, F].
      sex_input: feed the sex to the age head. If it is unknown (-1) the network's own estimate is
        used, so that such a model also reads images of unknown sex.
      hidden: width of a dense layer before the age output, 0 for none.
      dropout: dropout rate on the features, drawn per image.
      centers: standardised ages of bins; the age is then the mean of a distribution over them.
        Empty to predict a single number.
    """

    backbone: nn.Module
    sex_input: bool = False
    hidden: int = 0
    dropout: float = 0.0
    centers: tuple[float, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        male: jax.Array,
        *,
        train: bool = False,
        image_keys: jax.Array | None = None,
    ) -> Arrays:
        """Predicts age and sex.

        Args:
          images: [B, H, W, C].
          male: [B], 1, 0, -1 for unknown, values between 0 and 1 for a mixture.
          train: use batch statistics and dropout.
          image_keys: [B], one key per image, for random draws; None in evaluation.

        Returns:
          `age` (standardised) and `sex_logit` (male positive), float32 [B]; `features` of the
          backbone, float32 [B, F]; with `centers` also `age_logits` [B, bins].
        """
        features = self.backbone(images, train=train, image_keys=image_keys)
        if features.ndim != 2:  # the losses would broadcast
            raise InputError(
                "config.model.name: the network must return features [B, F] of images "
                f"{list(images.shape)}, not {list(features.shape)}"
            )
        features = features.astype(jnp.float32)
        x = features
        if train and self.dropout:
            assert image_keys is not None
            keys = jax.vmap(jax.random.fold_in, (0, None))(image_keys, _HEAD_LAYER)
            draw = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.dropout, x.shape[1:]))
            x = jnp.where(draw(keys), x / (1 - self.dropout), 0.0)
        sex_logit = nn.Dense(1, name="sex")(x)[:, 0]
        if self.sex_input:
            guess = jax.nn.sigmoid(jax.lax.stop_gradient(sex_logit))
            p_male = jnp.where(male < 0, guess, male.astype(jnp.float32))
            sexes = jnp.concatenate([p_male[:, None], 1 - p_male[:, None]], axis=-1)
            x = jnp.concatenate([x, nn.Dense(32, name="sex_embedding")(sexes)], axis=-1)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, name="age_hidden")(x))
        found = {"sex_logit": sex_logit, "features": features}
        if not self.centers:
            return found | {"age": nn.Dense(1, name="age")(x)[:, 0]}
        # Small weights: the initial distribution is flat, with its mean in the middle of the bins.
        logits = nn.Dense(
            len(self.centers), name="age_bins", kernel_init=nn.initializers.normal(0.01)
        )(x)
        age = jax.nn.softmax(logits) @ jnp.asarray(self.centers)
        return found | {"age": age, "age_logits": logits}


@flax.struct.dataclass
class BoneAgeMetrics(clu.metrics.Collection):
    """Averages over images: loss, absolute error in months, sex accuracy (known sexes only)."""

    loss: clu.metrics.Average.from_output("loss")  # type: ignore[valid-type]
    mae: clu.metrics.Average.from_output("error")  # type: ignore[valid-type]
    sex_accuracy: clu.metrics.Average.from_fun(  # type: ignore[valid-type]
        lambda sex_correct, sex_mask, **_: {"values": sex_correct, "mask": sex_mask}
    )


@dataclasses.dataclass(frozen=True)
class BoneAge(Task):
    """The bone-age task.

    Attributes:
      model: see `BoneAgeNet`.
      age_mean, age_std: months; the network learns (age - mean) / std. Those of the training split,
        or 0 and 1 to learn months.
      loss_name: l1 | huber | mse, on the standardised age; or distribution, for a model with
        `centers`: l1 on the mean plus `distribution_weight` times the KL divergence from a normal
        distribution around the age, truncated and renormalised on the bins (label distribution
        learning, Geng 2016, arXiv:1408.6027; with l1 as in Gao et al. 2018, DLDL-v2,
        arXiv:1807.08478).
      sex_weight: weight of the sex head's binary cross-entropy.
      distribution_weight: see `loss_name`.
      sigma: standard deviation of that normal distribution in months.
      train_mean: mean age of the training split in months, the baseline prediction without a
        network.
    """

    model: BoneAgeNet
    age_mean: float
    age_std: float
    loss_name: str = "l1"
    sex_weight: float = 0.1
    distribution_weight: float = 1.0
    sigma: float = 10.0
    train_mean: float | None = None

    name: ClassVar[str] = "bone_age"
    metrics_type: ClassVar[type[clu.metrics.Collection]] = BoneAgeMetrics
    metric: ClassVar[str] = "mae"
    labels: ClassVar[tuple[str, ...]] = ("bone_age", "male")
    reported: ClassVar[tuple[str, ...]] = ("predicted_age", "p_male")

    @classmethod
    def from_config(cls, config: ConfigDict, info: AgeScale, model: nn.Module) -> "BoneAge":
        loss = config.loss
        scale = (info.age_mean, info.age_std) if loss.standardize else (0.0, 1.0)
        net = BoneAgeNet(
            model,
            sex_input=config.model.sex_input,
            hidden=config.model.hidden,
            dropout=float(config.model.dropout),
            centers=bin_centers(loss.bins, *scale) if loss.age == "distribution" else (),
        )
        return cls(
            net,
            *scale,
            loss_name=loss.age,
            sex_weight=float(loss.sex_weight),
            distribution_weight=float(loss.distribution_weight),
            sigma=float(loss.sigma),
            train_mean=info.age_mean,
        )

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Tree:
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        male = jax.ShapeDtypeStruct((1,), jnp.int32)
        # A backbone without BatchNorm has no statistics.
        return {"batch_stats": {}} | init_variables(self.model, key, images, male)

    def adapt(self, params: Tree, before: Task) -> Tree:
        """Rescales the age head, whose output is in standard deviations of the training ages."""
        if "age" not in params or not isinstance(before, BoneAge):
            return params  # the bins of a distribution are in months
        head, ratio = params["age"], before.age_std / self.age_std
        offset = (before.age_mean - self.age_mean) / self.age_std
        rescaled = {"kernel": head["kernel"] * ratio, "bias": head["bias"] * ratio + offset}
        return {**params, "age": head | rescaled}

    def apply(
        self, variables: Tree, batch: Arrays, *, train: bool, keys: jax.Array | None
    ) -> tuple[Arrays, Tree]:
        args = (variables, batch["image"], batch["male"])
        if not train:
            read: Any = self.model.apply(*args, train=False)
            return read, variables["batch_stats"]
        outputs: Any
        outputs, updated = self.model.apply(
            *args, train=True, image_keys=keys, mutable=["batch_stats"]
        )
        return outputs, updated.get("batch_stats", {})

    def loss(self, outputs: Arrays, batch: Arrays) -> tuple[jax.Array, Arrays]:
        import optax  # 0.1 s, which a start with a kept program saves

        target = (batch["bone_age"] - self.age_mean) / self.age_std
        difference = outputs["age"] - target
        match self.loss_name:
            case "l1":
                age_loss = jnp.abs(difference)
            case "distribution":
                centers = jnp.asarray(self.model.centers)
                away = (centers - target[:, None]) * (self.age_std / self.sigma)
                divergence = optax.kl_divergence(
                    jax.nn.log_softmax(outputs["age_logits"]), jax.nn.softmax(-0.5 * away**2)
                )
                age_loss = jnp.abs(difference) + self.distribution_weight * divergence
            case "huber":
                age_loss = optax.huber_loss(difference, delta=1.0)
            case _:
                age_loss = jnp.square(difference)
        known = batch["male"] >= 0
        male = batch["male"] > 0.5
        cross_entropy = optax.sigmoid_binary_cross_entropy(
            outputs["sex_logit"], batch["male"].astype(jnp.float32)
        )
        parts = {
            "error": jnp.abs(difference) * self.age_std,
            "sex_correct": (outputs["sex_logit"] > 0) == male,
            "sex_known": known,
        }
        return age_loss + self.sex_weight * jnp.where(known, cross_entropy, 0.0), parts

    def metrics(
        self, per_image: jax.Array, parts: Arrays, outputs: Arrays, batch: Arrays
    ) -> clu.metrics.Collection:
        counts = batch["weight"] > 0
        return BoneAgeMetrics.single_from_model_output(
            loss=per_image,
            error=parts["error"],
            sex_correct=parts["sex_correct"].astype(jnp.float32),
            sex_mask=parts["sex_known"] & counts,
            mask=counts,
        )

    def predictions(self, outputs: Arrays, parts: Arrays) -> Arrays:
        return {
            "predicted_age": outputs["age"] * self.age_std + self.age_mean,
            "p_male": jax.nn.sigmoid(outputs["sex_logit"]),
            **({"features": outputs["features"]} if "features" in outputs else {}),
        }

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        mean = self.age_mean if self.train_mean is None else self.train_mean
        age = age_summary(rows["predicted_age"], rows["true_age"], rows["male"], mean)
        if "network_age" in rows:
            error = np.abs(rows["network_age"] - rows["true_age"])
            age["mae_before_atlas"] = float(error.astype(np.float64).mean())
        groups: dict[str, Any] = {"age": age}
        if (rows["male"] >= 0).any():
            groups["sex"] = sex_summary(rows["p_male"], rows["male"])
        return groups
