"""Fetches files from the Hugging Face hub: hf:OWNER/REPO[@REVISION][/FILE]."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from boneage_jax.errors import InputError

PREFIX = "hf:"
_CONNECT = 5.0  # seconds


class Address(NamedTuple):
    """What is to be fetched: OWNER/REPO, FILE or "", a branch, tag or commit or None."""

    repo: str
    file: str
    revision: str | None


def parse_address(source: str) -> Address:
    """Parses hf:OWNER/REPO[@REVISION][/FILE].

    Raises:
      InputError: the text has another form.
    """
    parts = source.removeprefix(PREFIX).split("/")
    name, at, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    if not all(part.strip(".") for part in (*parts, name)) or bool(at) != bool(revision):
        raise InputError(f"{source} must read hf:OWNER/REPO[@REVISION] or hf:OWNER/REPO/FILE")
    return Address(f"{parts[0]}/{name}", "/".join(parts[2:]), revision or None)


def fetch_folder(source: str, patterns: Sequence[str]) -> Path:
    """Returns the local copy of a repository, downloaded or cached.

    Args:
      source: hf:OWNER/REPO[@REVISION].
      patterns: globs of the files to fetch.

    Raises:
      InputError: another form, no such repository, or neither a connection nor a cached copy.
    """
    address = parse_address(source)
    if address.file:
        raise InputError(f"{source} must read hf:OWNER/REPO[@REVISION]")
    with fetching(source) as (hub, offline):
        return Path(
            hub.snapshot_download(
                address.repo,
                revision=address.revision,
                allow_patterns=list(patterns),
                local_files_only=offline,
            )
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
