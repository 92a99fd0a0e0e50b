"""Downloads large files, with resumption and verification."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from boneage_jax.errors import InputError
from boneage_jax.runtime.progress import progress

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def download(url: str, target: Path, sha256: str = "") -> Path:
    """Downloads `url` to `target`, which appears only once complete and verified.

    An interrupted download leaves `target` + `.part`, and beside it what the server calls that
    version of the file. The next call requests the rest of the same version, else the whole file.
    An existing `target` is used without a check.

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
        _fetch(url, part, verified=bool(sha256))
        if sha256:
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                part.unlink()
                _version_file(part).unlink(missing_ok=True)
                raise InputError(
                    f"{url}: sha256 {digest} is not the expected {sha256}; the file was damaged on "
                    "the way or has changed, and was deleted"
                )
        part.replace(target)
        _version_file(part).unlink(missing_ok=True)
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{url} cannot be downloaded: HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise InputError(f"{url} cannot be downloaded: {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{url} cannot be downloaded to {target}: {reason}") from error
    return target


def _fetch(url: str, part: Path, *, verified: bool) -> None:
    """Downloads the rest of `part`, or all of it.

    Args:
      url: http(s) address.
      part: may exist.
      verified: a digest will be checked, so a part of unknown version may be continued.
    """
    version = _version_file(part).read_text() if _version_file(part).exists() else ""
    have = part.stat().st_size if part.exists() and (version or verified) else 0
    response = _request(url, have, version)
    if response is None:
        return
    with response:
        resumed = response.status == 206
        if not resumed:
            part.unlink(missing_ok=True)  # never beside the version of another one
        _version_file(part).write_text(_version(response))
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        with (
            part.open("ab" if resumed else "wb") as file,
            progress(
                total=total,
                initial=have if resumed else 0,
                desc=f"download {part.stem}",
                unit="B",
                unit_scale=True,
            ) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"cut off after {part.stat().st_size} of {total} bytes; run again to go on")


def _request(url: str, have: int, version: str) -> http.client.HTTPResponse | None:
    """Requests a file from byte `have` on, or from its start if it has another version.

    Returns:
      The response, of status 206 if it starts at `have`; None if nothing is left to send.
    """
    asked = {"Range": f"bytes={have}-"} if have else {}
    if have and version:
        asked["If-Range"] = version  # RFC 9110, 13.1.5
    try:
        request = urllib.request.Request(url, headers=asked)
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if error.code != 416:
            raise
        error.close()
        return None if size in ("", "*", str(have)) else _request(url, 0, "")
    span = response.headers.get("Content-Range") or f"bytes {have}-"
    # Some servers know Range and not If-Range.
    other = version and _version(response) not in ("", version)
    if response.status == 206 and (other or not span.startswith(f"bytes {have}-")):
        response.close()
        return _request(url, 0, "")
    return response


def _version(response: http.client.HTTPResponse) -> str:
    """Returns what the server calls the version of a file: a strong ETag or a time, or ""."""
    etag = response.headers.get("ETag") or ""
    if etag.startswith('"'):
        return etag
    return response.headers.get("Last-Modified") or ""


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")
