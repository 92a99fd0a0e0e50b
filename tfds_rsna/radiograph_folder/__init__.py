"""Any CSV of (file, age, sex) with its radiographs."""

from tfds_rsna.radiograph_folder.radiograph_folder_dataset_builder import Builder

__all__ = ["Builder"]
