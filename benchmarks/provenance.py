"""What is written of the making of a raw file: one form for all scripts of this folder."""

import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boneage_jax.runtime import machine
from boneage_jax.runtime.cpu_memory import SWITCH


def write_provenance(output: Path, settings: Mapping[str, Any], **facts: Any) -> None:
    """Writes date, command, settings, hardware, versions, environment and `facts` as JSON.

    Call it last: it starts JAX's backend, unless `facts` has `hardware` of another process.

    Args:
      output: the raw file. FILE.csv gets FILE.json beside it. FILE.json is written itself: then
        `facts` are its results.
      settings: all options of the script, `vars(args)`.
      facts: results and whatever else a reader needs; `hardware` and `versions` replace those of
        this process.
    """
    content = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "settings": dict(settings),
        "hardware": facts.pop("hardware", None) or machine.hardware(),
        "versions": facts.pop("versions", None) or machine.versions(),
        "environment": {
            key: os.environ[key]
            for key in ("GLIBC_TUNABLES", SWITCH, "XLA_FLAGS")
            if key in os.environ
        },
        "load_average": os.getloadavg()[0],  # of the last minute
        **facts,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(text + "\n")


def write_rows(
    output: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Writes a table FILE.csv and its provenance beside it; floats with six significant digits."""
    from boneage_jax.experiments.sweep_tables import write_table  # it loads matplotlib

    output.parent.mkdir(parents=True, exist_ok=True)
    write_table(output, rows, list(dict.fromkeys(column for row in rows for column in row)))
    write_provenance(output, settings)
