"""Downloads large files, with resumption and verification."""

import hashlib
import http.client
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from boneage_jax.errors import InputError

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def download(url: str, target: Path, sha256: str = "") -> Path:
    """Downloads `url` to `target`, which appears only once complete and verified.

    An interrupted download leaves `target` + `.part`, and the next call requests the rest. An
    existing `target` is used without a check.

    Args:
      url: http(s) address.
      target: file to write; its folder is created.
      sha256: expected digest, not checked if empty.

    Returns:
      `target`.

    Raises:
      InputError: no network, the server refuses, the file is truncated, the digest differs, or
        there is no space to write.
    """
    if target.exists():
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part)
        if sha256:
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                part.unlink()
                raise InputError(
                    f"{url}: sha256 {digest} is not the expected {sha256}; the file was damaged on "
                    "the way or has changed, and was deleted"
                )
        part.replace(target)
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{url} cannot be downloaded: HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise InputError(f"{url} cannot be downloaded: {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{url} cannot be downloaded to {target}: {reason}") from error
    return target


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()  # nothing left to send; the digest decides whether the part is complete
        return
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                total=total,
                initial=have if resumed else 0,
                desc=f"download {part.stem}",
                unit="B",
                unit_scale=True,
                mininterval=0.5,
                disable=None,
            ) as bar,
        ):
            if bar.disable:
                size = f"{total / 1e9:.2f} GB" if total else "unknown size"
                print(f"download {url} ({size})", file=sys.stderr)
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"cut off after {part.stat().st_size} of {total} bytes; run again to go on")
