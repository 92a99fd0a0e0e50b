"""Radiographs with a mask of the hand."""

from tfds_rsna.hand_mask.hand_mask_dataset_builder import Builder

__all__ = ["Builder"]
