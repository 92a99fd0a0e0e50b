"""What a raw file must say of its making, beside it."""

import datetime
import json
import os
from pathlib import Path
from typing import Any


def write_provenance(output: Path, **facts: Any) -> None:
    """Writes date, hardware, versions, settings of the process and `facts` as JSON beside a CSV.

    It starts JAX's backend, so it comes last.
    """
    from boneage_jax.runtime.machine import hardware, versions

    content = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "environment": {
            key: os.environ[key] for key in ("GLIBC_TUNABLES", "XLA_FLAGS") if key in os.environ
        },
        "load_average": os.getloadavg()[0],
        **facts,
    }
    output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
