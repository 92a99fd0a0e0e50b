"""Lets in only clients that send a token, `Authorization: Bearer TOKEN` (RFC 6750)."""

import hmac
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from boneage_jax.errors import InputError

VARIABLE = "BONEAGE_JAX_TOKEN"
_SHORTEST, _LONGEST = 16, 4096  # characters


def read_token(file: Path | None) -> str:
    """Reads the token from a file, or without one from the environment variable `VARIABLE`.

    Returns:
      The token; "" where there is neither, so that everybody is let in.

    Raises:
      InputError: no such file, or the token is empty, too short to be safe, or not one ASCII word.
    """
    if file is None and VARIABLE not in os.environ:
        return ""
    source = VARIABLE if file is None else f"--token_file={file}"
    try:
        text = os.environ[VARIABLE] if file is None else _content(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise InputError(f"{source} cannot be read: {reason}") from error
    token = text.strip()
    if not _SHORTEST <= len(token) <= _LONGEST or not all("!" <= c <= "~" for c in token):
        raise InputError(
            f"{source} must hold one word of {_SHORTEST} to {_LONGEST} ASCII characters, "
            "e.g. from openssl rand -hex 32"
        )
    return token


def _content(file: Path) -> str:
    with file.open(encoding="ascii") as opened:
        return opened.read(_LONGEST + 3)  # a longer one is refused


def bearer_check(token: str) -> Callable[..., Awaitable[None]]:
    """Returns a dependency of FastAPI that answers requests without `token` with 401."""
    scheme = HTTPBearer(auto_error=False, description="The token that the service was started with")

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Security(scheme)],
    ) -> None:
        # The time that the comparison takes says nothing of where the two differ.
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            line = "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
            raise HTTPException(401, line, {"WWW-Authenticate": "Bearer"})

    return check
