"""Serves a trained network over HTTP: radiograph in, bone age as JSON out.

usage: python -m boneage_jax.serve [--workdir=DIR|NAME] [--host=127.0.0.1] [--port=8000]
                                   [--token_file=FILE] [--batch_size=8] [--queue=32]
                                   [--megabytes=64] [--megapixels=40] [--extensions=FILE.py]

POST /predict   form with the field file, a radiograph, and optionally male (M/F); the columns of
                predict as JSON
GET /healthz    state of the service
GET /docs       page that describes and tries both

With --token_file, or BONEAGE_JAX_TOKEN in the environment, clients must send that token. SIGTERM
finishes what runs; the status is then 0. docs/serve.md says more.
"""

import sys
from collections.abc import Sequence

from boneage_jax.cli import Parser, path_argument, prepare_jax, run_door
from boneage_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Serves the network given by `argv` until SIGTERM; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument(
        "--workdir", help="a training or a network; the best of at most 10 MB if left out"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one")
    parser.add_argument(
        "--token_file", type=path_argument, help="file with the token of the clients"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images per step at most")
    parser.add_argument("--queue", type=int, default=32, help="requests at once; others get 503")
    parser.add_argument("--megabytes", type=float, default=64, help="largest upload")
    parser.add_argument("--megapixels", type=float, default=40, help="largest radiograph")
    args = parser.parse_args(argv)
    for name, most in (("queue", 1024), ("megabytes", 1024), ("megapixels", 100)):
        if not 0 < getattr(args, name) <= most:
            raise InputError(f"--{name}={getattr(args, name)} must be above 0, and at most {most}")

    try:
        from boneage_jax.serving.app import build_app
        from boneage_jax.serving.batches import load_ladder
        from boneage_jax.serving.bearer import read_token
        from boneage_jax.serving.limits import Limits
        from boneage_jax.serving.server import is_local, open_socket, serve
    except ImportError as error:
        raise InputError(f"serve needs {error.name}; pip install 'boneage_jax[serve]'") from error

    token = read_token(args.token_file)
    limits = Limits(int(args.megabytes * 2**20), int(args.megapixels * 1e6), args.queue)
    with open_socket(args.host, args.port) as listener:
        prepare_jax()
        app = build_app(load_ladder(args.workdir, args.batch_size), limits, token)
        if not (token or is_local(listener)):
            line = "no token is set: whoever reaches this machine may use the service"
            print(line, file=sys.stderr)
        serve(app, listener)
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-serve."""
    run_door(main)


if __name__ == "__main__":
    run()
