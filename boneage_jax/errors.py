"""Errors that a user can mend, and how a command-line door shows them."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something handed in from outside is wrong: a file, a label, a config key, a checkpoint.

    The message is one line. It names the file or key, says what was found there, and what to do.
    """


class Stopped(SystemExit):
    """A run was asked to end before its last step; started again, it goes on.

    A SystemExit of status 75 (EX_TEMPFAIL), upon which schedulers start the same command again:
    so it passes through `except Exception`, and scripts that call `train` end with that status.

    `alone` is whether the other processes of the job know nothing of it.
    """

    def __init__(self, message: str, *, alone: bool = False):
        super().__init__(os.EX_TEMPFAIL)
        self.message = message  # one line
        self.alone = alone


class PeerLost(Stopped):
    """Another process of the job died or does not answer; a `Stopped` without a new checkpoint."""

    def __init__(self, message: str):
        super().__init__(message, alone=True)


def door(main: Callable[[], int | None]) -> int:
    """Runs `main`; an `InputError` becomes one line on standard error and exit status 2.

    `Stopped` becomes one line as well, and status 75.
    """
    try:
        return main() or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
