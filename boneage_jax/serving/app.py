"""The web application: `POST /predict`, `/healthz`, `/docs`."""

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

import boneage_jax
from boneage_jax.data.dicom_header import read_patient
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_radiograph
from boneage_jax.data.headers import pixel_limit
from boneage_jax.data.notes import is_too_small
from boneage_jax.errors import InputError
from boneage_jax.inference.patients import Patient, identify, patient_cells
from boneage_jax.inference.read_ahead import attempt
from boneage_jax.serving.answers import Health, Prediction, Problem, bad_row, good_row
from boneage_jax.serving.batches import Batches
from boneage_jax.serving.bearer import bearer_check
from boneage_jax.serving.limits import Limits, Places
from boneage_jax.serving.request_log import RequestLog
from boneage_jax.serving.upload import FILE, SEX, Upload, read_upload

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor

T = TypeVar("T")

PATHS = ("/predict", "/healthz", "/docs", "/openapi.json")
_DECODERS = 4  # threads at most: each may hold a radiograph of the largest size
_UPLOADS = 4  # times the queue: slow clients must not keep the others out
_DESCRIPTION = """\
Bone age in months from a radiograph of the hand (PNG, JPEG, TIFF or DICOM). For research, not for
the care of patients."""
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FILE],
                "properties": {
                    FILE: {"type": "string", "format": "binary", "description": "The radiograph"},
                    SEX: {
                        "type": "string",
                        "description": "M/F, true/false or 1/0; unknown if left out",
                        "example": "F",
                    },
                },
            }
        }
    },
}
_ELSEWHERE = {
    404: f"there is nothing here; the paths are {', '.join(PATHS)}",
    405: "another method is needed here: POST for /predict, GET for the others",
}
_PROBLEMS = {
    400: "The form is damaged",
    401: "The token is missing or wrong",
    408: "The upload took too long",
    413: "The upload is too large",
    415: "The request is no multipart form",
    503: "Too many requests at once: send it again after the seconds of `Retry-After`",
    507: "The server has no room for the upload",
}


class Service:
    """Reads radiographs for many clients at once.

    Args:
      predictors: the same network for different batch sizes, see `Batches`.
      limits: the most that it takes.
    """

    def __init__(self, predictors: Sequence["Predictor"], limits: Limits):
        self.limits = limits
        self.batches = Batches(predictors)
        self.uploads, self.queue = Places(_UPLOADS * limits.queue), Places(limits.queue)
        self._predictor = predictors[0]
        self._decoders = ThreadPoolExecutor(min(os.cpu_count() or 1, _DECODERS), "decoder")

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Context manager around the life of the application: runs the network's steps."""
        steps = asyncio.create_task(self.batches.run())
        try:
            yield
        finally:
            steps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await steps
            self._decoders.shutdown(wait=False, cancel_futures=True)

    async def predict(self, request: Request) -> JSONResponse:
        """Answers a request with a row of `predict`: status 200, or 422 for an unreadable file.

        Raises:
          HTTPException: the request is refused, see `read_upload` and `Places`.
          ClientDisconnect: the client is gone; its work is cancelled.
        """
        self.queue.check()  # rather than after the upload
        async with contextlib.AsyncExitStack() as stack:
            with self.uploads.one():
                upload = await stack.enter_async_context(read_upload(request, self.limits))
            with self.queue.one():
                row = await _while_connected(request, self._row(upload))
        return JSONResponse(row, 422 if row["error"] else 200)

    async def _row(self, upload: Upload) -> dict[str, Any]:
        predictor, loop = self._predictor, asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._decoders, attempt, self._decode, upload)
        if isinstance(decoded, InputError):
            line = " ".join(str(decoded).split())
            return bad_row(upload.name, predictor.columns, predictor.judges_images, line)
        square, notes, patient = decoded
        row = await self.batches.read(square, patient.male)
        if upload.sex_given and not predictor.takes_sex:
            notes = (*notes, f"{SEX} is of no effect: the sex is no input of this network")
        if is_too_small(notes) and predictor.judges_images:
            row = row | {"accepted": False}
        note = "; ".join(filter(None, (*notes, str(row["note"]))))
        age = float(row.get("bone_age_months", math.nan))
        cells, _ = patient_cells(patient, age, None)  # its notes are among those above
        return good_row(upload.name, predictor.columns, row, note, cells)

    def _decode(self, upload: Upload) -> tuple[np.ndarray, tuple[str, ...], Patient]:
        content = upload.content.read()
        with pixel_limit(self.limits.pixels):
            pixels, notes = read_radiograph(content, upload.name)
        patient = identify(
            upload.male,
            read_patient(content, upload.name),
            sex_matters=self._predictor.takes_sex,
        )
        stem = image_stem(PurePosixPath(upload.name))
        square, put_right = self._predictor.put_right_and_fit(pixels, stem)
        return square, (*notes, *put_right, *patient.notes), patient


def build_app(
    predictors: Sequence["Predictor"], limits: Limits | None = None, token: str = ""
) -> FastAPI:
    """Builds the application.

    Args:
      predictors: the same network for different batch sizes, see `Batches`.
      limits: the most that it takes.
      token: if given, `/predict` asks for it, see `boneage_jax.serving.bearer`.
    """
    service = Service(predictors, limits or Limits())
    app = FastAPIOffline(  # the scripts of /docs come from the package, not from another server
        title="boneage_jax",
        version=boneage_jax.__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # /docs asks no other server
        lifespan=service.running,
    )
    app.add_middleware(RequestLog, paths=PATHS)
    app.add_exception_handler(HTTPException, _refused)
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        summary="Read the bone age from a radiograph",
        description="Answers with a row of the command `predict`.",
        operation_id="predict",
        dependencies=[Depends(bearer_check(token))] if token else [],
        openapi_extra={"requestBody": _FORM},
        response_model=None,
        responses={
            200: {"model": Prediction},
            422: {"model": Prediction | Problem, "description": "The file or a field is unusable"},
            **{code: {"model": Problem, "description": text} for code, text in _PROBLEMS.items()},
        },
    )

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="State of the service", operation_id="healthz")
    async def healthz() -> Health:
        batches, queue = service.batches, service.queue
        return Health(
            status="ok",
            version=boneage_jax.__version__,
            queue=queue.taken,
            queue_limit=queue.most,
            images=batches.images,
            steps=batches.steps,
        )

    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """Answers what was refused with its one line."""
    assert isinstance(error, HTTPException)
    line = _ELSEWHERE.get(error.status_code, error.detail)
    if error.status_code == 400:  # by Starlette, which says what is wrong alone
        line = f"{line.rstrip('.')}; send one radiograph, e.g. curl -F {FILE}=@hand.png"
    return JSONResponse({"error": line}, error.status_code, error.headers)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of `work`, which is cancelled when the client closes its connection."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # after the body, only that comes
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
