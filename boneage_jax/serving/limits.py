"""Limits of the service: how much it takes from one client, and from all at once."""

import contextlib
import dataclasses
from collections.abc import Iterator

from starlette.exceptions import HTTPException


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that the service takes.

    Attributes:
      upload_bytes: size of a request's body.
      pixels: size of a radiograph.
      queue: requests that are decoded or wait for the network at the same time.
      upload_seconds: time from a request's headers to the last byte of its body.
    """

    upload_bytes: int = 64 << 20
    pixels: int = 40_000_000
    queue: int = 32
    upload_seconds: float = 60.0


class Places:
    """A number of places for requests; who finds none is asked to come again.

    Attributes:
      most: number of places.
      taken: how many of them are taken.
    """

    def __init__(self, most: int):
        self.most, self.taken = most, 0

    def check(self) -> None:
        """Checks that a place is free.

        Raises:
          HTTPException: 503 with `Retry-After` if none is.
        """
        if self.taken >= self.most:
            line = f"{self.taken} requests are being answered; send this one again in a second"
            raise HTTPException(503, line, {"Retry-After": "1"})

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Context manager that takes a place.

        Raises:
          HTTPException: see `check`.
        """
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
