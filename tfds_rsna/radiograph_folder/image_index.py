"""Finds the image that a cell of a table names."""

import os
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from boneage_jax.data.file_names import IMAGE_SUFFIXES, bare_name, normal_name, relative_name
from boneage_jax.data.find_files import find_images
from boneage_jax.errors import InputError


class ImageIndex:
    """The images below a folder, by path, by name and by name without suffix.

    Names are compared as `boneage_jax.data.file_names.normal_name` has them, in upper or lower case
    if that is no help.

    Attributes:
      images: the images, sorted.
      left_out: numbers of other files below the folder, by reason.
    """

    def __init__(self, folder: Path):
        """Searches `folder`, once.

        Raises:
          InputError: the folder cannot be read, or no image is below it.
        """
        self._folder = folder
        self.left_out: Counter[str] = Counter()
        self.images = find_images(folder, self.left_out)
        self._found: dict[str, list[Path]] = defaultdict(list)
        for image in self.images:
            path = PurePosixPath(relative_name(image, folder))
            stem = normal_name(bare_name(image))
            for key in {_key(str(path)), _key(path.name), stem, str(path.with_name(stem))}:
                self._found[key].append(image)
        # File systems of Windows and macOS do not tell upper from lower case.
        self._folded: dict[str, list[Path]] = defaultdict(list)
        for key, images in self._found.items():
            self._folded[key.casefold()] += images

    def find(self, name: str, place: str) -> Path | None:
        """Returns the image called `name`, a path below the folder, a file name or a stem.

        Args:
          name: content of a cell; backslashes count as slashes.
          place: file and line, for messages.

        Returns:
          The path of the image, None if there is none.

        Raises:
          InputError: the name is empty, leaves the folder, or fits several images.
        """
        if not name:
            raise InputError(f"{place} names no image")
        relative = PurePosixPath(name.replace("\\", "/"))
        for folder in (self._folder.absolute(), Path(os.path.realpath(self._folder))):
            if relative.is_relative_to(folder):
                relative = relative.relative_to(folder)
        if relative.is_absolute() or PureWindowsPath(name).drive or ".." in relative.parts:
            raise InputError(f"{place}: {name!r} leaves raw_dir; give a path below {self._folder}")
        if os.path.isfile(self._folder / relative):
            return self._folder / relative
        key = _key(normal_name(str(relative)))
        found = self._found.get(key) or self._folded.get(key.casefold(), [])
        if len(found) > 1:
            shown = " and ".join(relative_name(path, self._folder) for path in found[:2])
            raise InputError(
                f"{place}: {name!r} may be {shown}; give the path below {self._folder}"
            )
        return found[0] if found else None


def _key(name: str) -> str:
    stem, suffix = os.path.splitext(name.strip())
    return stem + suffix.lower() if suffix.lower() in IMAGE_SUFFIXES else name.strip()
