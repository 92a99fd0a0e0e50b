"""TFDS data sets of hand radiographs, prepared and read without TensorFlow.

Importing this package registers the builders, e.g. `tfds.builder("rsna_bone_age/512",
data_dir=...)`.
"""

from tfds_rsna import hand_mask, hand_phantom, radiograph_folder, rsna_bone_age

__all__ = ["hand_mask", "hand_phantom", "radiograph_folder", "rsna_bone_age"]
