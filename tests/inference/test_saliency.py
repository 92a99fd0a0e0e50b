"""Where the age comes from, and how it changes with turns of the radiograph."""

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest

import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax.config import check_config
from boneage_jax.data.files import resize
from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import make_inputs, padded_batch
from boneage_jax.errors import InputError
from boneage_jax.inference.network import build_network
from boneage_jax.inference.saliency import explained_step, make_grad_cam
from boneage_jax.inference.stress import turned
from boneage_jax.report.overlay import heat_map, side_by_side
from configs import cls
from tests.inference.test_predictor import IMAGES

SIDE = 64


class Given(nn.Module):
    """Pooled features in place of images."""

    def __call__(self, x, *, train, image_keys=None):
        return x


def network(name, loss="l1", flips=False, **changed):
    """Its head is linear by default: then its weights are the truth below."""
    config = cls.get_config()
    config.model.name = name
    config.loss.age = loss
    config.test_flips = flips
    config.data.height = config.data.width = 0
    config.model.update(changed)
    info = DataInfo(image_size=SIDE, train_images=8, age_mean=120.0, age_std=40.0)
    return build_network(check_config(config), info, jax.local_devices()[:1])


def test_contributions_are_those_of_the_places_of_the_feature_map():
    """The age head is linear in pooled features: each place adds its own product."""
    net = network("tiny_lite0", sex_input=True, hidden=0)
    variables = net.task.init(jax.random.key(0), (SIDE, SIDE, 1))
    square = cv2.resize(IMAGES[0], (SIDE, SIDE))
    found = make_grad_cam(net)([variables], square, 1)
    images = make_inputs(net.config)({"image": square[None, ..., None]}, None)["image"]
    backbone = {
        key: values["backbone"] for key, values in jax.tree.map(lambda x: x, variables).items()
    }
    _, seen = net.task.model.backbone.apply(backbone, images, train=False, endpoints=True)
    features = np.asarray(seen["top"], np.float64)[0]
    weights = np.asarray(variables["params"]["age"]["kernel"])[: features.shape[-1], 0]
    expected = features @ weights * net.task.age_std / features[..., 0].size
    np.testing.assert_allclose(found, expected - expected.mean(), rtol=1e-3, atol=1e-4)
    assert found.std() > 0


def test_a_contribution_is_what_is_missing_without_the_place():
    """Heads that are not linear: places become the mean of all places, by and by."""
    net = network("tiny_lite0", sex_input=True, hidden=16, loss="distribution")
    variables = net.task.init(jax.random.key(0), (SIDE, SIDE, 1))
    square = cv2.resize(IMAGES[0], (SIDE, SIDE))
    found = make_grad_cam(net)([variables], square, -1)
    images = make_inputs(net.config)({"image": square[None, ..., None]}, None)["image"]
    backbone = {key: values["backbone"] for key, values in variables.items()}
    _, seen = net.task.model.backbone.apply(backbone, images, train=False, endpoints=True)
    places = np.asarray(seen["top"], np.float64)[0].reshape(found.size, -1)
    mean, heads = places.mean(0), net.task.model.clone(backbone=Given())

    def months(without):
        """Age where half of each place that is named is missing, or half is there twice."""
        away = (places - mean) / len(places)
        pooled = (mean - without @ away).astype(np.float32)[None]
        read = heads.apply({"params": variables["params"]}, pooled, np.array([-1]), train=False)
        return float(read["age"][0]) * net.task.age_std

    for place in np.eye(found.size):
        moved = months(-place / 2) - months(place / 2)
        assert moved == pytest.approx(found.ravel() @ place, rel=0.03, abs=2e-5)
    assert abs(found).max() > 3e-4


def test_ages_are_those_of_the_network_without_contributions():
    """And the mirror image of a picture has the mirror image of its contributions."""
    net = network("tiny_lite0", flips=True)
    variables = net.task.init(jax.random.key(0), (SIDE, SIDE, 1))
    square = cv2.resize(IMAGES[0], (SIDE, SIDE))
    batch = padded_batch(2, [square, square[:, ::-1]], net.task, {})
    found, plain = (step(variables, batch)[1] for step in (explained_step(net), net.local_step()))
    np.testing.assert_allclose(found["predicted_age"], plain["predicted_age"], rtol=1e-6)
    np.testing.assert_allclose(found["p_male"], plain["p_male"], rtol=1e-6)
    first, second = np.asarray(found["contributions"])
    np.testing.assert_allclose(first, second[:, ::-1], atol=1e-5)


def test_a_network_without_feature_map_is_refused():
    with pytest.raises(InputError, match="shows no feature map"):
        make_grad_cam(network("tiny"))


@pytest.mark.parametrize(("shape", "degrees"), [((90, 60), 10), ((60, 90), -20), ((80, 80), 90)])
def test_a_turn_of_a_stretched_image_is_that_of_the_radiograph(shape, degrees):
    """Turned before it was stretched, by OpenCV alone."""
    height, width = shape
    image = np.zeros(shape, np.uint8)
    cv2.line(image, (width // 2, height // 2), (width // 2, height // 2 - 25), 250, 7)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    before = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    expected = resize(before, SIDE, SIDE).astype(int)
    found = turned(resize(image, SIDE, SIDE), degrees, width / height)
    off = np.abs(found - expected).mean()
    assert off < np.abs(resize(image, SIDE, SIDE) - expected).mean() / 4
    assert (
        off
        < np.abs(turned(resize(image, SIDE, SIDE), -degrees, width / height) - expected).mean() / 4
    )


def test_the_hottest_place_is_where_the_age_moves_most():
    moved = np.zeros((4, 4), np.float32)
    moved[0, 3] = -9.0
    picture = heat_map(np.full((8, 8), 100, np.uint8), moved, 40, 20)
    assert picture.shape == (40, 20, 3)
    away = np.abs(picture.astype(int) - 100).sum(-1)
    assert np.unravel_index(away.argmax(), away.shape) > (0, 15)
    assert away[20:, :10].max() == 0  # where nothing moves it the radiograph is left as it is
    assert side_by_side([picture, picture[..., 0]], ["text"]).shape[0] > 40
