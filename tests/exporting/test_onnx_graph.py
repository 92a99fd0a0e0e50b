"""ONNX files in onnxruntime read what `predict` and `segment` read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.inference.atlas_ages import AtlasAges
from boneage_jax.inference.saliency import make_grad_cam
from boneage_jax.models.registry import create_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
if not jax.__version__.startswith("0.10."):
    pytest.skip("jax2onnx needs jax 0.10", allow_module_level=True)

from boneage_jax.exporting.onnx_graph import (  # noqa: E402
    to_onnx,
    with_float16_weights,
    with_int8_convolutions,
)
from tests.exporting.conftest import age_network  # noqa: E402


@pytest.fixture(scope="module")
def model(ages):
    return to_onnx(ages)


def _run(model, program, squares, male, *more):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    known = {"image": np.stack(squares)[..., None], "male": np.asarray(male, np.int32)}
    inputs = {name: known[name] for name in program.inputs}
    return dict(zip((*program.outputs, *more), session.run(None, inputs), strict=True))


def _sexes(count):
    return [n % 3 - 1 for n in range(count)]


def test_float32_equals_predict(model, ages, squares):
    male = _sexes(len(squares))
    found, wanted = _run(model, ages, squares, male), ages.read(squares, male)
    assert set(found) == set(wanted) - {"note"}
    for name in ("bone_age_months", "low_months", "high_months"):
        # But for the picture without contrast: normalising it magnifies the rounding.
        np.testing.assert_allclose(found[name][:-1], wanted[name][:-1], atol=1e-3)
    np.testing.assert_allclose(found["p_male"][:-1], wanted["p_male"][:-1], atol=1e-5)
    assert found["accepted"].tolist() == wanted["accepted"].tolist()
    assert not found["accepted"][-1]  # no hand


def test_efficientnet_equals_predict(squares, tmp_path):
    """Depthwise and pointwise convolutions, BatchNorm, ReLU6; one batch through all of them."""
    lite = age_network(tmp_path, model__name="tiny_lite0")
    hands, male = squares[:-1], _sexes(12)
    found, wanted = _run(to_onnx(lite), lite, hands, male), lite.read(hands, male)
    np.testing.assert_allclose(found["bone_age_months"], wanted["bone_age_months"], atol=1e-3)


@pytest.mark.parametrize(
    ("members", "changed"),
    [
        (2, {"model__name": "tiny_lite0", "test_flips": True, "test_zooms": "1,1.2"}),
        (1, {"model__name": "tiny_b0"}),  # squeeze-and-excite
    ],
)
def test_contributions_of_places_are_those_of_predict(members, changed, squares, tmp_path):
    """Beside ages of the same graph that do not change; the heads' gradient is in the graph."""
    network = age_network(tmp_path, members=members, model__hidden=16, **changed)
    hands, male = squares[:3], [1, 0, -1]
    model = to_onnx(network, explained=True)
    found = _run(model, network, hands, male, "contributions")
    wanted, grad_cam = network.read(hands, male), make_grad_cam(network.network)
    np.testing.assert_allclose(found["bone_age_months"], wanted["bone_age_months"], atol=1e-3)
    moved = [grad_cam(network.members, *each) for each in zip(hands, male, strict=True)]
    most = np.abs(moved).max()  # small in a B0 of random weights, whose features fade
    np.testing.assert_allclose(found["contributions"], moved, atol=0.01 * most)
    assert most > 0
    if members == 1:  # converting the other network once more takes long
        assert sum(node.op_type == "Conv" for node in model.graph.node) == sum(
            node.op_type == "Conv" for node in to_onnx(network).graph.node
        )


def test_a_network_that_reads_another_shape_equals_predict(squares, tmp_path):
    """Rectangles are resampled, and magnified, inside the graph; so is the age moved to a label."""
    shape = {"data__fit": "stretch", "data__height": 48, "data__width": 40}
    shape |= {"test_zooms": "1,1.2"}
    labels = np.arange(0, 240, 3)
    atlas = AtlasAges.fit(labels, np.arange(80) % 2, 2.0)
    network = age_network(tmp_path, model__name="tiny", atlas=atlas, **shape)
    hands, male = squares[:-1], _sexes(12)
    found, wanted = _run(to_onnx(network), network, hands, male), network.read(hands, male)
    np.testing.assert_allclose(found["bone_age_months"], wanted["bone_age_months"], atol=1e-3)
    assert np.isin(found["bone_age_months"], labels).all()
    assert len(np.unique(found["bone_age_months"])) > 1


def test_an_atlas_hides_no_impossible_age(squares, tmp_path):
    """An age far beyond training moves to a plate, and is not accepted; here and in the graph."""
    atlas = AtlasAges.fit(np.arange(24, 210, 6), np.arange(31) % 2, 4.0)
    network = age_network(tmp_path, model__name="tiny", atlas=atlas)
    plain, graph = network.calibration, network._calibrated
    assert plain is not None
    far = np.array([400.0, -400.0, 120.0], np.float32)
    rows = {"predicted_age": far, "p_male": np.full(3, 0.5, np.float32)}
    predictor = network.read.__self__
    found = predictor.calibrated(rows, squares[:3], np.array([1, 0, 1]))
    assert found["accepted"].tolist()[:2] == [False, False]
    assert ["beyond" in note for note in found["note"]] == [True, True, False]
    assert np.isin(found["bone_age_months"], np.arange(24, 210, 6)).all()
    inside = graph(
        {name: jnp.asarray(values) for name, values in rows.items()},
        jnp.asarray(np.stack(squares[:3])[..., None]),
        jnp.asarray([1, 0, 1]),
    )
    for name in ("bone_age_months", "accepted"):
        np.testing.assert_array_equal(inside[name], found[name])


def test_number_of_images_is_free(model, ages, squares):
    whole = _run(model, ages, squares, _sexes(len(squares)))["bone_age_months"]
    single = _run(model, ages, squares[3:4], _sexes(4)[3:])["bone_age_months"]
    np.testing.assert_allclose(single, whole[3:4], atol=1e-3)


def test_sex_and_mirror_images(model, ages, squares):
    """The sex changes the age, a mirror image does not: both are inside the graph."""
    female, male = (
        _run(model, ages, squares, [sex] * len(squares))["bone_age_months"] for sex in (0, 1)
    )
    assert np.abs(female - male).max() > 1e-3
    flipped = [square[:, ::-1] for square in squares]
    other = _run(model, ages, flipped, [1] * len(squares))["bone_age_months"]
    np.testing.assert_allclose(other, male, atol=1e-3)


def test_says_what_it_is(model):
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found["columns"] == "bone_age_months,low_months,high_months,p_male,accepted"
    assert (found["image_size"], found["fit"], found["members"]) == ("64", "pad", "2")
    assert "months" in found["validation_error"] and "32 images" in found["validation_error"]
    assert "medical" in found["terms"] and found["version"].startswith("boneage_jax ")


def test_smaller_files(masks, squares):
    model = to_onnx(masks)
    wanted = _run(model, masks, squares, [])["p_hand"].astype(int)
    batch = {"image": np.stack(squares)[..., None]}
    size = len(model.SerializeToString())
    for smaller, name, fraction, most in (
        (with_float16_weights(model), "float16", 0.7, 2),
        (with_int8_convolutions(model, [batch]), "int8", 0.8, 60),
    ):
        assert len(smaller.SerializeToString()) < fraction * size
        found = _run(smaller, masks, squares, [])["p_hand"]
        assert np.abs(found - wanted).max() <= most
        kept = {entry.key: entry.value for entry in smaller.metadata_props}
        assert kept["precision"].startswith(name) and kept["terms"]


def test_unet(masks, squares):
    found = _run(to_onnx(masks), masks, squares, [])["p_hand"]
    wanted = masks.read(squares, [])["p_hand"]
    assert found.dtype == np.uint8 and found.shape == (len(squares), 64, 64)
    # One level where the last bit decides how it is rounded.
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_portable_unet_computes_the_same():
    """Of 3 x 3 transposed convolutions; those of 2 x 2 are in `test_unet`."""
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    plain, portable = (create_model("unet_10", portable=flag) for flag in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(0), images)
    found = jax.jit(portable.apply)(variables, images)
    np.testing.assert_allclose(found, jax.jit(plain.apply)(variables, images), atol=1e-4)


def test_augmented_views_are_refused(ages):
    network = ages.network
    config = network.config.copy_and_resolve_references()
    config.test_views = 2
    views = dataclasses.replace(ages, network=dataclasses.replace(network, config=config))
    with pytest.raises(InputError, match=r"test_views.*stablehlo"):
        to_onnx(views)
