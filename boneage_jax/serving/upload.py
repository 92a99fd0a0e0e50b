"""Receives one radiograph in bounded memory: a multipart form, limited in size, time and parts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

import python_multipart  # noqa: F401  (Starlette imports it only when a form comes)
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from boneage_jax.data.file_names import normal_name
from boneage_jax.data.label_table import read_sex
from boneage_jax.serving.limits import Limits

FILE, SEX = "file", "male"
_LONGEST_FIELD = 256  # bytes
_LONGEST_NAME = 255  # characters


class Upload(NamedTuple):
    """A received radiograph: its content, the name of its file, 1 male, 0 female or -1 unknown.

    `sex_given` tells whether the client sent a sex, be it "unknown".
    """

    content: BinaryIO
    name: str
    male: int
    sex_given: bool


@contextlib.asynccontextmanager
async def read_upload(request: Request, limits: Limits) -> AsyncIterator[Upload]:
    """Context manager: receives the form of a request; its content is closed at the end.

    Up to 1 MiB of the content is held in memory, more of it in a file without a name in TMPDIR.

    Raises:
      HTTPException: 408 too slow, 413 too large, 415 no multipart form, 400 a damaged one, 422
        wrong fields, 507 no room in TMPDIR.
      ClientDisconnect: the client is gone.
    """
    if request.query_params:
        name = next(iter(request.query_params))
        line = (
            f"{name!r:.60} in the address is not read; send {FILE} and {SEX} as fields of the form"
        )
        raise HTTPException(422, line)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        line = f"send the radiograph as field {FILE!r} of a form, multipart/form-data"
        raise HTTPException(415, line)
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed) > limits.upload_bytes:
        raise _too_large(limits)
    limited = Request(request.scope, _counted(request.receive, limits))
    try:
        async with asyncio.timeout(limits.upload_seconds):
            form = await limited.form(max_files=1, max_fields=4, max_part_size=_LONGEST_FIELD)
    except TimeoutError:
        line = f"the upload took more than {limits.upload_seconds:g} s; send it again"
        raise HTTPException(408, line, {"Connection": "close"}) from None
    except OSError as error:
        line = f"the server has no room for the upload: {error.strerror}"
        raise HTTPException(507, line) from error
    try:
        yield _checked(form)
    finally:
        await form.close()


def _counted(receive: Receive, limits: Limits) -> Receive:
    """Returns `receive`, which ends an upload that turns out to be too large."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limits.upload_bytes:
            raise _too_large(limits)
        return message

    return counted


def _too_large(limits: Limits) -> HTTPException:
    most = f"{limits.upload_bytes / 2**20:.3g} MiB"
    return HTTPException(413, f"the upload is larger than {most}; send one radiograph alone")


def _checked(form: FormData) -> Upload:
    """Returns the fields of a form.

    Raises:
      HTTPException: 422, unknown, missing or repeated fields, or a wrong sex.
    """
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if name not in (FILE, SEX):
            raise HTTPException(422, f"unknown field {name!r:.60}; fields are {FILE} and {SEX}")
        if names.count(name) > 1:
            raise HTTPException(422, f"field {name!r} was sent {names.count(name)} times")
    file, sex = form.get(FILE), form.get(SEX)
    if not isinstance(file, UploadFile):
        line = f"there is no field {FILE!r} with a file, e.g. curl -F {FILE}=@hand.png"
        raise HTTPException(422, line)
    male = read_sex(sex, SEX) if isinstance(sex, str) else None if sex else -1
    if male is None:
        found = f"{sex!r:.40}" if isinstance(sex, str) else "a file"
        raise HTTPException(422, f"{SEX}={found} must be M/F, True/False or 1/0")
    return Upload(file.file, _base_name(file.filename or ""), male, sex is not None)


def _base_name(name: str) -> str:
    """Returns a name as a client sent it without folders and control characters."""
    name = PurePosixPath(normal_name(name).replace("\\", "/")).name
    return "".join(c for c in name if c.isprintable())[-_LONGEST_NAME:] or "image"
