"""Names of the files that are written of each radiograph."""

from collections.abc import Sequence
from pathlib import Path

from boneage_jax.data.file_names import bare_name
from boneage_jax.errors import InputError
from boneage_jax.storage.safe_write import check_writable


def output_names(files: Sequence[Path]) -> dict[Path, str]:
    """Returns a name without suffix for each file, its own, with -2, -3 ... where several have it.

    Upper and lower case count as the same, as they do on some disks.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, number = bare_name(file), 1
        while name.casefold() in taken:
            number += 1
            name = f"{bare_name(file)}-{number}"
        taken.add(name.casefold())
        names[file] = name
    return names


def open_folder(folder: Path, files: Sequence[Path], option: str) -> None:
    """Creates a folder for output.

    Raises:
      InputError: it is a file, cannot be written, or holds a radiograph that is read: its files
        would be read as radiographs the next time.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}={folder} is a file; name a folder")
    try:
        check_writable(folder)
    except InputError as error:
        reason = getattr(error.__cause__, "strerror", None) or "refused"
        raise InputError(
            f"{option}={folder} cannot be written ({reason}); name another folder"
        ) from error
    parents = {file.absolute().parent for file in files}
    if any(folder.samefile(parent) for parent in parents if parent.exists()):
        raise InputError(f"{option}={folder} holds the radiographs themselves; name another folder")
