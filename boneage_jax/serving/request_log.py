"""Logs each request in one line, without what could name a patient, and answers for its failures.

Names of files, paths that are not of the service, queries and messages of exceptions are left out:
each may hold a name. An exception that nothing else caught is logged by its type and place.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("boneage_jax.serving")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestLog:
    """ASGI middleware around the whole application.

    Args:
      app: application.
      paths: those that may be logged.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]):
        self._app, self._paths = app, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # by the server, when SIGTERM came too long ago
            if not status:
                line = "the service ends; send the request again"
                again = {"Retry-After": "5"}
                await JSONResponse({"error": line}, 503, again)(scope, receive, note_status)
        except Exception as error:
            LOG.error("%s", describe(error))
            if not status:
                line = f"internal error ({type(error).__name__}); the log of the service says where"
                await JSONResponse({"error": line}, 500)(scope, receive, note_status)
        LOG.info(
            "%s %s %s %.3f s",
            scope["method"] if scope["method"] in _METHODS else "-",
            scope["path"] if scope["path"] in self._paths else "-",
            status or "client gone",
            time.perf_counter() - began,
        )


def describe(error: BaseException) -> str:
    """Returns type and place of an exception, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno}" for frame in frames[-3:]]
    return f"{type(error).__name__} at {' > '.join(places) or 'an unknown place'}"
