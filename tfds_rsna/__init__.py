"""Data sets of hand radiographs for TFDS, prepared and read without TensorFlow.

Importing this package makes `tfds.builder("rsna_bone_age/512", data_dir=...)` and the others known.
"""

from tfds_rsna import hand_mask, hand_phantom, radiograph_folder, rsna_bone_age

__all__ = ["hand_mask", "hand_phantom", "radiograph_folder", "rsna_bone_age"]
