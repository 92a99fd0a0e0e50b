"""The committed notebooks are as `docs/notebooks.py` leaves them: executed, small, of no machine.

That an execution gives the same outputs is checked where the site is built, see `.ci/run`.
"""

import base64
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
notebooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(notebooks)


@pytest.fixture(params=notebooks.NOTEBOOKS)
def notebook(request):
    return json.loads((ROOT / request.param).read_text(encoding="utf-8"))


def _outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_outputs_are_those_of_the_code(notebook):
    assert notebook["metadata"]["sources_sha256"] == notebooks.sources_sha256(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        prints = "print(" in "".join(cell["source"])
        assert cell["outputs"] or not prints or "progress" in cell["metadata"].get("tags", [])


def test_outputs_tell_nothing_of_the_machine_and_no_warnings(notebook):
    text = json.dumps(
        [
            {**o, "data": {k: v for k, v in o.get("data", {}).items() if "/png" not in k}}
            for o in _outputs(notebook)
        ]
    )
    assert not re.search(r"/(tmp|home|root|work|Users|var|usr)/|site-packages|[Ww]arning", text)
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b", text)  # dates, times
    assert not [o for o in _outputs(notebook) if o["output_type"] == "error"]
    assert not [o for o in _outputs(notebook) if o.get("name") == "stderr"]


def test_pictures_are_small(notebook):
    pictures = [
        o["data"]["image/png"] for o in _outputs(notebook) if "image/png" in o.get("data", {})
    ]
    sizes = [len(base64.b64decode("".join(picture))) for picture in pictures]
    assert sizes and max(sizes) < 110_000


def test_numbers_may_differ_and_words_may_not():
    nbformat = pytest.importorskip("nbformat")

    def with_text(text):
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(id="a", outputs=[output])])

    before = with_text("step  188: 25.1 months\nlike training: True")
    assert not notebooks.differences(
        before, with_text("step 188: -1.5e-3 months\nlike training: True")
    )
    assert notebooks.differences(before, with_text("step  188: 25.1 months\nlike training: False"))
    assert notebooks.differences(before, with_text("step  188: 25.1 months"))
