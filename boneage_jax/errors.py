"""Errors that a user can fix, and exceptions for runs that end early."""

import os


class InputError(ValueError):
    """Invalid input from outside: a file, a label, a config key, a checkpoint.

    The message is one line that names the file or key, what was found there, and what to do.
    """


class Stopped(SystemExit):
    """A run was asked to stop before its last step; started again, it resumes.

    A SystemExit of status 75 (EX_TEMPFAIL), on which schedulers restart the same command. It passes
    through `except Exception`, and scripts that call `train` exit with that status.

    Attributes:
      message: one line for the user.
      alone: whether the other processes of the job are unaware of it.
    """

    def __init__(self, message: str, *, alone: bool = False):
        super().__init__(os.EX_TEMPFAIL)
        self.message = message  # one line
        self.alone = alone


class PeerLost(Stopped):
    """Another process of the job died or is not responding; no new checkpoint was saved."""

    def __init__(self, message: str):
        super().__init__(message, alone=True)
