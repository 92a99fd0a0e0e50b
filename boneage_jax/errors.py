"""Errors that a user can mend, and how a command-line door shows them."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something handed in from outside is wrong: a file, a label, a config key, a checkpoint.

    The message is one line. It names the file or key, says what was found there, and what to do.
    """


def door(main: Callable[[], int | None]) -> int:
    """Runs `main`; an `InputError` becomes one line on standard error and exit status 2."""
    try:
        return main() or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
