"""Procedural hand radiographs with known bone age, sex and hand mask."""

from tfds_rsna.hand_phantom.hand_phantom_dataset_builder import Builder

__all__ = ["Builder"]
