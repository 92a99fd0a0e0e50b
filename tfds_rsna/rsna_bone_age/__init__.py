"""The radiographs of the RSNA Pediatric Bone Age Challenge 2017."""

from tfds_rsna.rsna_bone_age.rsna_bone_age_dataset_builder import Builder

__all__ = ["Builder"]
