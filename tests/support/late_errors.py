"""What failed reads and writes of orbax leave behind in a process for some seconds."""

import time

from boneage_jax.storage.quiet_orbax import without_late_errors


def wait_for_late_errors() -> None:
    """Wait until reads and writes that failed in earlier tests are forgotten."""
    deadline = time.monotonic() + 30
    while without_late_errors._depth and time.monotonic() < deadline:
        time.sleep(0.1)
