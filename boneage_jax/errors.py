"""Errors that a user can mend, and runs that end early."""

import os


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
