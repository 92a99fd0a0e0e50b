"""Contender: keras.applications on the JAX backend, by Keras's own train and predict step."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras

from benchmarks.peers.contender import Ready, Settings, serve, synthetic_batch

AGE_MEAN, AGE_STD, SEX_WEIGHT = 127.32, 41.18, 0.1
NETWORKS = {"b0": keras.applications.EfficientNetB0, "b4": keras.applications.EfficientNetB4}


class Standardize(keras.layers.Layer):
    """Each image with mean 0 and standard deviation 1."""

    def call(self, images):
        x = keras.ops.cast(images, "float32")
        mean = keras.ops.mean(x, (1, 2, 3), keepdims=True)
        std = keras.ops.std(x, (1, 2, 3), keepdims=True)
        return (x - mean) / (std + 1e-6)


def build(settings: Settings) -> keras.Model:
    """uint8 images -> age (standardised) and sex logit, with mirror images in training."""
    if settings.dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    images = keras.Input((settings.size, settings.size, 1))
    x = Standardize()(images)
    x = keras.layers.RandomFlip("horizontal")(x)
    network = NETWORKS[settings.model]
    backbone = network(include_top=False, weights=None, input_tensor=x, pooling="avg")
    x = keras.layers.Dropout(0.2)(backbone.output)
    age = keras.layers.Dense(1, dtype="float32", name="age")(x)
    sex = keras.layers.Dense(1, dtype="float32", name="sex")(x)
    return keras.Model(images, {"age": age, "sex": sex})


def compiled_network(settings: Settings) -> keras.Model:
    """The network with loss and optimizer."""
    net = build(settings)
    net.compile(
        optimizer=keras.optimizers.AdamW(1e-3, weight_decay=0.05, global_clipnorm=1.0),
        loss={
            "age": "mean_absolute_error",
            "sex": keras.losses.BinaryCrossentropy(from_logits=True),
        },
        loss_weights={"age": 1.0, "sex": SEX_WEIGHT},
    )
    return net


def setup(settings: Settings) -> Ready:
    """The train or inference step."""
    net = compiled_network(settings)
    batch = synthetic_batch(settings)
    x = batch["image"].astype("float32")
    y = {
        "age": ((batch["bone_age"] - AGE_MEAN) / AGE_STD)[:, None],
        "sex": batch["male"].astype("float32")[:, None],
    }

    def train() -> None:
        net.train_on_batch(x, y)  # returns the loss as a number, so it has waited

    def inference() -> None:
        net.predict_on_batch(x)

    versions = {"keras": keras.__version__, "jax": jax.__version__}
    facts = {
        "parameters": sum(int(w.value.size) for w in net.trainable_variables),
        "versions": versions,
    }
    return Ready(train if settings.mode == "train" else inference, facts)


if __name__ == "__main__":
    serve(setup)
