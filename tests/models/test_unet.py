"""The U-Net against the same network written in Keras, and against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.models.flops import count_flops
from boneage_jax.models.initializers import init_variables
from boneage_jax.models.registry import UNET_NAMES, create_model
from boneage_jax.models.resolution import depth_to_space, space_to_depth


def _init(name, shape, **options):
    model = create_model(name, **options)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return model, init_variables(model, jax.random.key(0), images)


@pytest.mark.parametrize("name", UNET_NAMES)
def test_logits_of_every_pixel_at_any_size(name):
    model, variables = _init(name, (1, 64, 64, 1))
    read = jax.jit(lambda v, x: model.apply(v, x))
    for shape in ((2, 64, 64, 1), (1, 37, 50, 1)):
        logits = read(variables, jnp.ones(shape))
        assert (logits.shape, logits.dtype) == (shape, jnp.float32)
        assert np.isfinite(logits).all()


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    model, variables = _init("unet", (1, 64, 64, 1), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 1)), jnp.float32)
    exact = create_model("unet").apply(variables, images)
    rough = model.apply(variables, images)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(exact - rough).max() < 0.2
    program = str(jax.make_jaxpr(lambda v, x: model.apply(v, x))(variables, images))
    convolutions = [line for line in program.splitlines() if "conv_general_dilated[" in line]
    assert convolutions and all("bf16[" in line for line in convolutions)


def test_blocks_of_pixels_in_reading_order_and_back():
    image = jnp.arange(2 * 4 * 6 * 1).reshape(2, 4, 6, 1)
    blocks = space_to_depth(image, 2)
    assert blocks.shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(blocks[0, 1, 2], [16, 17, 22, 23])
    np.testing.assert_array_equal(depth_to_space(blocks, 2), image)


def test_the_earlier_recipes_network_is_that_of_keras():
    """`unet_10` against its description written down in Keras: same weights, same logits."""
    keras = pytest.importorskip("keras", reason="keras is not installed")
    layers = keras.layers
    widths = (10, 20, 40, 80, 160)

    def pair(x, filters, name):
        for index in range(2):
            x = layers.Conv2D(
                filters, 3, padding="same", activation="relu", name=f"{name}_{index}_conv"
            )(x)
        return x

    inputs = keras.Input((64, 48, 1))
    x, skips = inputs, []
    for level, filters in enumerate(widths):
        if level:
            skips.append(x)
            x = layers.MaxPooling2D(2)(x)
        x = pair(x, filters, f"down{level}")
    for level in (3, 2, 1, 0):
        x = layers.Conv2DTranspose(widths[level], 3, 2, padding="same", name=f"up{level}")(x)
        x = pair(layers.Concatenate()([skips.pop(), x]), widths[level], f"merge{level}")
    reference = keras.Model(inputs, layers.Conv2D(1, 2, padding="same", name="head")(x))

    model, variables = _init("unet_10", (1, 64, 48, 1))
    assert set(variables) == {"params"}
    params = variables["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + rng.normal(scale=0.05, size=p.shape).astype("f4"), params)
    for name, weights in params.items():
        kernel = np.asarray(weights["kernel"])
        if name.startswith("up"):  # Keras keeps the kernel of the convolution it transposes
            kernel = kernel[::-1, ::-1].swapaxes(2, 3)
        reference.get_layer(name).set_weights([kernel, np.asarray(weights["bias"])])
    assert reference.count_params() == sum(p.size for p in jax.tree.leaves(params)) == 843601
    images = rng.normal(size=(2, 64, 48, 1)).astype(np.float32)
    want = np.asarray(reference(images))
    got = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_flops_of_the_earlier_recipes_network_by_hand():
    model = create_model("unet_10")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 256, 256, 1))))
    images = jax.ShapeDtypeStruct((1, 256, 256, 1), jnp.float32)
    widths = (10, 20, 40, 80, 160)
    multiply_adds = 256 * 256 * 10 * 2 * 2  # the 2x2 output convolution
    for level, filters in enumerate(widths):
        pixels, before = (256 >> level) ** 2, widths[level - 1] if level else 1
        multiply_adds += pixels * 9 * (before * filters + filters * filters)
        if level < 4:
            multiply_adds += pixels * 9 * (2 * filters * filters + filters * filters)
            # A transposed convolution does 9 products for each pixel that it reads.
            multiply_adds += pixels // 4 * 9 * widths[level + 1] * filters
    counted = count_flops(lambda v, x: model.apply(v, x), shapes, images)
    assert counted == 2 * multiply_adds


def test_the_default_costs_a_fraction_of_the_earlier_network():
    images = jax.ShapeDtypeStruct((1, 256, 256, 1), jnp.float32)

    def flops(name):
        model = create_model(name)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 1))))
        return count_flops(lambda v, x: model.apply(v, x), shapes, images)

    assert flops("unet") < flops("unet_10") / 11


def test_an_option_of_the_other_family_is_refused():
    with pytest.raises(InputError, match=r"'drop_path_rate' of unet"):
        create_model("unet", drop_path_rate=0.1)
