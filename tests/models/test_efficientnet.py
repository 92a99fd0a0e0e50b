"""EfficientNet against keras.applications, published counts, and its own invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.models.layers import Conv
from boneage_jax.models.registry import create_model
from boneage_jax.pretrained.names import from_keras

# Trainable and moving parameters with 1000 classes and 3 channels: keras.io/api/applications less
# Keras's 7 input-normalisation values; Lite: timm's results table.
PARAMETERS = {
    "efficientnet_b0": 5_330_571 - 7,
    "efficientnet_b1": 7_856_239 - 7,
    "efficientnet_b2": 9_177_569 - 7,
    "efficientnet_b3": 12_320_535 - 7,
    "efficientnet_b4": 19_466_823 - 7,
    "efficientnet_b5": 30_562_527 - 7,
    "efficientnet_b6": 43_265_143 - 7,
    "efficientnet_b7": 66_658_687 - 7,
}
LITE_TRAINABLE = {"efficientnet_lite0": 4_652_008, "efficientnet_lite4": 13_006_568}


def shapes(name, **options):
    model = create_model(name, **options)
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images))


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_keras_documents(name):
    assert size(shapes(name, num_classes=1000)) == PARAMETERS[name]


@pytest.mark.parametrize("name", LITE_TRAINABLE)
def test_lite_parameters_are_as_many_as_timm_lists(name):
    assert size(shapes(name, num_classes=1000)["params"]) == LITE_TRAINABLE[name]


@pytest.fixture(scope="module", params=[("B0", 96), ("B4", 67)], ids=["B0 96 px", "B4 67 px"])
def in_keras(request):
    """A network of Keras with random weights and statistics, and the same in ours."""
    keras = pytest.importorskip("keras")
    name, side = request.param
    source = getattr(keras.applications, f"EfficientNet{name}")(
        weights=None, classes=5, classifier_activation=None, input_shape=(side, side, 3)
    )
    name = f"efficientnet_{name.lower()}"
    for layer in source.layers:  # no dropout: training mode then only means batch statistics
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    rng = np.random.default_rng(0)
    for weight in source.weights:
        if weight.path.startswith("normalization"):
            continue
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.6, 1.4, weight.shape))
        elif weight.path.endswith(("beta", "moving_mean", "bias")):
            weight.assign(rng.normal(0, 0.1, weight.shape))
    arrays = {w.path: np.asarray(w) for w in source.weights}
    variables = from_keras(arrays, shapes(name, num_classes=5))
    return name, side, source, arrays, variables


def relative_error(ours, theirs) -> float:
    theirs = np.asarray(theirs)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def test_outputs_are_those_of_keras(in_keras):
    """In inference and, at the odd size, in training mode, statistics included."""
    name, side, source, _, variables = in_keras
    images = np.random.default_rng(1).uniform(size=(4, side, side, 3)).astype(np.float32)
    model = create_model(name, num_classes=5, dropout=0.0, drop_path_rate=0.0)

    ours = jax.jit(model.apply)(variables, images)
    trainable = [v.value for v in source.trainable_variables]
    fixed = [v.value for v in source.non_trainable_variables]
    # Keras rescales by 1/255 inside.
    theirs, _ = jax.jit(source.stateless_call)(trainable, fixed, images * 255.0)
    assert relative_error(ours, theirs) < 1e-4

    if side % 2 == 0:
        return
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    ours, updated = train(variables, images)
    theirs, after = jax.jit(lambda t, f, x: source.stateless_call(t, f, x, training=True))(
        trainable, fixed, images * 255.0
    )
    assert relative_error(ours, theirs) < 1e-4
    paths = [v.path for v in source.non_trainable_variables]
    moved = dict(zip(paths, after, strict=True))
    for layer in ("stem_bn", "block3b_expand_bn", "top_bn"):
        stats = updated["batch_stats"][layer]
        assert relative_error(stats["mean"], moved[f"{layer}/moving_mean"]) < 1e-4
        assert relative_error(stats["var"], moved[f"{layer}/moving_variance"]) < 1e-4


def test_weights_of_another_network_are_refused(in_keras):
    name, _, _, arrays, _ = in_keras
    with pytest.raises(InputError, match="shape"):
        from_keras(arrays, shapes("efficientnet_b3", num_classes=5))
    fewer = {k: v for k, v in arrays.items() if not k.startswith("block2b_bn")}
    with pytest.raises(InputError, match="block2b_bn"):
        from_keras(fewer, shapes(name, num_classes=5))


def small_network(variant):
    model = EfficientNet(variant, drop_path_rate=0.5)
    images = jax.random.normal(jax.random.key(1), (4, 40, 40, 1))
    rng = np.random.default_rng(0)  # compiling 200 random initialisers would take 20 s
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(x.dtype), like)
    return model, variables, images


@pytest.fixture(scope="module")
def b0():
    return small_network("efficientnet_b0")


@pytest.fixture(scope="module")
def tiny_b0():
    return small_network("tiny_b0")


def test_endpoints_name_the_features_of_each_stage(b0):
    model, variables, images = b0
    pooled, seen = jax.eval_shape(lambda: model.apply(variables, images, endpoints=True))
    assert pooled.shape == (4, 1280)
    sides = {name: value.shape[1] for name, value in seen.items() if value.ndim == 4}
    assert sides == {
        **{"stem": 20, "block1": 20, "block2": 10, "block3": 5, "block4": 3},
        **{"block5": 3, "block6": 2, "block7": 2, "top": 2},
    }


def test_random_depth_follows_the_image_not_its_place_in_the_batch(b0):
    """With frozen statistics, an image's training output depends on the image and its key only."""
    _, variables, images = b0
    frozen = EfficientNet("efficientnet_b0", drop_path_rate=0.5, bn_momentum=1.0)
    keys = jax.random.split(jax.random.key(7), 4)
    order = jnp.array([2, 0, 3, 1])

    @jax.jit
    def run(images, keys):
        # Every image beside copies of the same batch: equal batch statistics in any order.
        return frozen.apply(variables, images, train=True, image_keys=keys, mutable="batch_stats")[
            0
        ]

    straight, permuted = run(images, keys), run(images[order], keys[order])
    np.testing.assert_allclose(permuted, straight[order], rtol=2e-3, atol=2e-3)
    others = run(images, jax.random.split(jax.random.key(8), 4))
    assert np.abs(others - straight).max() > 0.05


def test_random_depth_drops_its_share_and_keeps_the_mean(b0):
    """Many copies of one image: block2b (the third of 16) is dropped for rate = 2/16 of them."""
    _, variables, images = b0
    count = 512
    batch = jnp.broadcast_to(images[:1, :16, :16], (count, 16, 16, 1))
    keys = jax.random.split(jax.random.key(3), count)

    def block2(drop_path_rate):
        model = EfficientNet("efficientnet_b0", drop_path_rate=drop_path_rate)

        @jax.jit  # what block2 does not need is not compiled
        def run(variables):
            apply = functools.partial(model.apply, mutable="batch_stats", endpoints=True)
            (_, seen), _ = apply(variables, batch, train=True, image_keys=keys)
            return seen["block2"]

        return np.asarray(run(variables), np.float64)

    whole, dropping = block2(0.0), block2(1.0)
    distances = np.abs(dropping - dropping[:1]).max((1, 2, 3))
    share = min((distances < 1e-5).mean(), (distances >= 1e-5).mean())
    assert share == pytest.approx(2 / 16, abs=4 * np.sqrt(2 / 16 * 14 / 16 / count))
    # Two outcomes, x and x + branch / (1 - rate), of which the drawn mean is x + branch.
    low, high = dropping[distances < 1e-5][0], dropping[distances >= 1e-5][0]
    if (distances < 1e-5).mean() > 0.5:
        low, high = high, low
    np.testing.assert_allclose(low + (high - low) * 14 / 16, whole[0], rtol=1e-4, atol=1e-4)


def test_training_without_keys_is_refused(b0):
    model, variables, images = b0
    with pytest.raises(ValueError, match="image_keys"):
        model.apply(variables, images, train=True, mutable="batch_stats")


def test_bfloat16_computes_low_and_keeps_parameters_high():
    model = create_model("efficientnet_lite0", dtype=jnp.bfloat16)
    images = jnp.zeros((2, 32, 32, 1))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    keys = jax.random.split(jax.random.key(0), 2)
    out, updated = jax.eval_shape(
        lambda v: model.apply(v, images, train=True, image_keys=keys, mutable="batch_stats"),
        variables,
    )
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}


def test_paddings_at_stride_two_read_the_pixels_of_their_framework():
    """A 3x3 kernel that copies its centre: TensorFlow pads an even side (0, 1), PyTorch (1, 1)."""
    image = jnp.arange(36.0).reshape(1, 6, 6, 1)
    centre = {"params": {"kernel": jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)}}
    same = Conv(1, 3, 2, padding="same").apply(centre, image)
    symmetric = Conv(1, 3, 2, padding="symmetric").apply(centre, image)
    np.testing.assert_array_equal(same, image[:, 1::2, 1::2])
    np.testing.assert_array_equal(symmetric, image[:, 0::2, 0::2])


def test_an_unknown_padding_is_refused():
    with pytest.raises(InputError, match="symmetric"):
        Conv(1, 3, padding="valid").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


@pytest.mark.parametrize("name", ["block2b_dwconv", "block2b_expand_conv", "stem_conv"])
def test_new_weights_are_spread_as_in_keras(name):
    """Standard deviation sqrt(2 / (k * k * outputs of one group)): of B0, with 3 channels."""
    model = create_model("efficientnet_b0")
    init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"][name])
    kernel = init()["kernel"]
    outputs = 1 if kernel.shape[2] == 1 else kernel.shape[3]
    wanted = np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * outputs))
    assert float(kernel.std()) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_any_number_of_channels_is_read(channels):
    model = create_model("efficientnet_lite0")
    images = jnp.zeros((1, 32, 32, channels))
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    assert variables["params"]["stem_conv"]["kernel"].shape[2] == channels


def test_unknown_names_and_options_are_explained():
    with pytest.raises(InputError, match="efficientnet_b4"):
        create_model("efficientnet-b4")
    with pytest.raises(InputError, match="drop_path_rate"):
        create_model("efficientnet_b0", drop_path=0.1)


def test_the_arrangement_for_tpus_is_the_same_network(tiny_b0):
    """Outputs, statistics and gradients of depthwise='fused' are those of plain lax."""
    _, variables, images = tiny_b0

    def run(implementation):
        model = EfficientNet("tiny_b0", depthwise=implementation, drop_path_rate=0.0)

        def loss(params):
            inputs = {"params": params, "batch_stats": variables["batch_stats"]}
            out, new = model.apply(inputs, images, train=True, mutable=["batch_stats"])
            return jnp.square(out).sum(), (out, new)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    grads, (out, new) = run("lax")
    fused_grads, (fused_out, fused_new) = run("fused")
    np.testing.assert_allclose(fused_out, out, rtol=1e-3, atol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), fused_new, new
    )
    scale = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    for ours, theirs in zip(jax.tree.leaves(fused_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-4 * scale)
