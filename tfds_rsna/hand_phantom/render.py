"""Renders a hand radiograph and its mask from an index.

All random numbers are drawn before the image size is used, so an index gives the same hand at every
size. Bones are drawn at twice the size; the simulated sensor averages them down.
"""

from typing import NamedTuple

import cv2
import numpy as np

from tfds_rsna.hand_phantom import maturity
from tfds_rsna.hand_phantom.acquisition import draw_exposure, expose
from tfds_rsna.hand_phantom.bones import draw_bones
from tfds_rsna.hand_phantom.pose import draw_pose
from tfds_rsna.hand_phantom.skeleton import grow_skeleton
from tfds_rsna.hand_phantom.soft_tissue import draw_silhouette, tissue_thickness

_OVERSAMPLE = 2
_TEXTURE = 192  # pixels of the trabecular texture, for all image sizes
_SPLITS = {"train": 0, "validation": 1, "test": 2}


class Phantom(NamedTuple):
    """image uint8 [S, S], mask uint8 [S, S] (1 hand, 0 background), bone age in months, sex."""

    image: np.ndarray
    mask: np.ndarray
    bone_age: float
    male: bool


def make_phantom(index: int, size: int, split: str | int = "train") -> Phantom:
    """Returns phantom number `index` of a split.

    Args:
      index: 0, 1, 2 ...; the same index is the same hand at every size.
      size: side in pixels.
      split: train, validation or test; or an integer seed, which gives other hands.

    Returns:
      See `Phantom`. The same arguments give the same hand in every process.
    """
    # An integer seed is a third key, so that it never repeats hands of the splits.
    key = [_SPLITS[split], index] if isinstance(split, str) else [len(_SPLITS), index, split]
    rng = np.random.default_rng(np.random.SeedSequence(key))
    male = bool(rng.random() < 0.5)
    age = float(rng.uniform(*maturity.MONTHS))
    return draw_hand(age, male, size, rng)


def draw_hand(age: float, male: bool, size: int, rng: np.random.Generator) -> Phantom:
    """Draws a hand of a given bone age (months) and sex in a square of `size` pixels.

    Args:
      age: bone age in months.
      male: sex.
      size: side in pixels.
      rng: draws everything else.
    """
    # Separate streams, so that an additional bone does not change the pose or the exposure.
    body, posing, exposing, texture = rng.spawn(4)
    pose = draw_pose(posing)
    skeleton = grow_skeleton(age, male, body)
    exposure = draw_exposure(exposing, left=pose.left)
    trabeculae = texture.standard_normal((_TEXTURE, _TEXTURE), dtype=np.float32)

    side = _OVERSAMPLE * size
    attenuation = draw_bones(skeleton, pose.canvas(side), trabeculae)
    attenuation *= exposure.bone
    # Soft tissue is smooth: a quarter of the pixels suffices and halves the time at 512 px.
    canvas = pose.canvas(size)
    hand = draw_silhouette(skeleton, canvas)
    tissue = tissue_thickness(hand, canvas)
    attenuation += exposure.soft * cv2.resize(tissue, (side, side), interpolation=cv2.INTER_LINEAR)
    mask = (hand >= 128).astype(np.uint8)
    return Phantom(expose(attenuation, exposure, size), mask, age, male)
