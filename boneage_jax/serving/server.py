"""Runs the application on a socket until SIGTERM."""

import logging
import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI

from boneage_jax.errors import InputError

GRACE = 25  # seconds for what runs at SIGTERM; Kubernetes kills after 30


def open_socket(host: str, port: int) -> socket.socket:
    """Takes an address, which refuses connections until the service is ready.

    Args:
      host: name or address of an interface of this machine.
      port: 0 for any free one.

    Raises:
      InputError: no such host, or the port is in use or not allowed.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port={port} must be 0 to 65535")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host={host} is no host or address of this machine") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(
            f"--host={host} --port={port} cannot be used: {error.strerror}; name others"
        ) from error
    return listener


def address(listener: socket.socket) -> str:
    """Returns the URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Returns whether only this machine can reach the socket."""
    host = listener.getsockname()[0]
    return host == "::1" or host.startswith("127.")


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Prints the address and serves until SIGTERM, then finishes what runs and returns.

    For the main thread. The log goes to standard error, see `boneage_jax.serving.request_log`.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", force=True
    )
    logging.getLogger("boneage_jax.serving").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it may quote a form
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
    )

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn has its own handler while it runs, and raises the signal again at the end.
    before = signal.signal(signal.SIGTERM, end)
    try:
        listener.listen()  # whoever reads the line below may connect
        print(f"{address(listener)} answers POST /predict, GET /healthz and /docs", flush=True)
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
