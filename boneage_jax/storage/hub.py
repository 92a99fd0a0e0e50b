"""Fetches files from the Hugging Face hub: hf:OWNER/REPO and hf:OWNER/REPO/FILE."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from boneage_jax.errors import InputError

PREFIX = "hf:"
_CONNECT = 5.0  # seconds


def repository(source: str) -> tuple[str, str]:
    """Returns (OWNER/REPO, FILE or "") of hf:OWNER/REPO[/FILE].

    Raises:
      InputError: the text has another form.
    """
    parts = source.removeprefix(PREFIX).split("/")
    if len(parts) < 2 or not all(part.strip(".") for part in parts):
        raise InputError(f"{source} must read hf:OWNER/REPO or hf:OWNER/REPO/FILE")
    return "/".join(parts[:2]), "/".join(parts[2:])


def fetch_folder(source: str, patterns: Sequence[str]) -> Path:
    """Returns the local copy of a repository, downloaded or cached.

    Args:
      source: hf:OWNER/REPO.
      patterns: globs of the files to fetch.

    Raises:
      InputError: another form, no such repository, or neither a connection nor a cached copy.
    """
    repo, file = repository(source)
    if file:
        raise InputError(f"{source} must read hf:OWNER/REPO")
    with fetching(source) as (hub, offline):
        return Path(
            hub.snapshot_download(repo, allow_patterns=list(patterns), local_files_only=offline)
        )


@contextlib.contextmanager
def fetching(source: str) -> Iterator[tuple[Any, bool]]:
    """Context manager that turns errors of the hub into one line.

    Yields:
      (the package huggingface_hub, whether to ask only its cache). Without a connection the client
      would retry for a minute.

    Raises:
      InputError: the package is not installed, or the block fails.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{source} needs the package huggingface_hub; pip install 'boneage_jax[hf]'"
        ) from error
    offline = _is_offline()
    try:
        yield huggingface_hub, offline
    except Exception as error:  # from the hub and from whichever HTTP library it uses
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        reason = f"no connection to {_address()}, and not in the cache" if offline else reason
        raise InputError(
            f"{source} cannot be fetched ({reason}); check the name and the network, or download "
            "the file and name its path"
        ) from error


def _is_offline() -> bool:
    """Returns whether the hub, or the proxy on the way, accepts no connection."""
    try:
        address = urlsplit(getproxies().get("https") or _address())
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=_CONNECT).close()
    except (OSError, ValueError):
        return True
    return False


def _address() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
