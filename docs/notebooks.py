"""The notebooks of docs/, executed: GitHub shows the outputs that are committed.

usage: python docs/notebooks.py [--check] [NOTEBOOK ...]

Executes each notebook in an empty folder and writes its outputs into it, without those of cells
with the tag `progress`. With --check nothing is written: it fails where an execution gives other
outputs than those committed. Numbers, which differ in their last digits between processors, and the
pixels of pictures are not compared. `EXECUTE_NOTEBOOK=true mkdocs build` checks the same.
"""

import argparse
import difflib
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ("docs/first_steps.ipynb", "docs/from_dicom_to_report.ipynb")
_NUMBER = re.compile(r"[0-9a-f]{64}|[-+]?\d[\d.,]*(e[-+]?\d+)?")  # checksums too


def execute(path: Path) -> Any:
    """Returns a notebook with the outputs of an execution, and without traces of the machine.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, resources=resources, record_timing=False, coalesce_streams=True
        )
        client.execute(env=os.environ | {"TMPDIR": folder})
    metadata["sources_sha256"] = sources_sha256(notebook.cells)
    notebook.metadata = metadata  # the kernel's has the version of its Python
    for cell in notebook.cells:
        if "progress" in cell.metadata.get("tags", []):
            cell.outputs = []
    return notebook


def sources_sha256(cells: list[Any]) -> str:
    """Returns a checksum of the code, by which outputs of older code are found out.

    Args:
      cells: of nbformat, or of the file's JSON.
    """
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def outline(notebook: Any) -> list[str]:
    """Returns what two executions have in common: kinds of outputs, and texts without numbers."""
    lines = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            kinds = sorted(output.get("data", {}))
            lines.append(f"[{cell.id}] {output.output_type} {output.get('name', '')} {kinds}")
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            lines += [" ".join(_NUMBER.sub("#", line).split()) for line in text.splitlines()]
    return lines


def differences(committed: Any, executed: Any) -> list[str]:
    """Returns the lines of a diff between the outlines of two notebooks, none if they agree."""
    names = ("committed", "executed")
    return list(difflib.unified_diff(outline(committed), outline(executed), *names, lineterm=""))


def main() -> None:
    """Executes and writes, or compares."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true")
    parser.add_argument("notebooks", nargs="*", type=Path)
    args = parser.parse_args()
    different = []
    for path in args.notebooks or [ROOT / name for name in NOTEBOOKS]:
        executed = execute(path)
        if args.check:
            different += differences(nbformat.read(path, as_version=4), executed)
        else:
            nbformat.write(executed, path)
    print("\n".join(different))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
