"""Files are replaced as a whole, and never what a user would miss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from boneage_jax.errors import InputError
from boneage_jax.storage.safe_write import check_replaces_nothing, in_one_piece, write_text

ROOT = Path(__file__).parents[2]


def test_what_a_link_names_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.csv").write_text("old")
    (tmp_path / "a.csv").symlink_to("real/a.csv")
    write_text(tmp_path / "a.csv", "new")
    assert os.readlink(tmp_path / "a.csv") == "real/a.csv"
    assert (tmp_path / "real" / "a.csv").read_text() == "new"
    assert len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "link"])
def test_standard_output_may_be_a_file(name, tmp_path):
    """What the shell has opened stays the file that it names."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path\n"
        "from boneage_jax.storage.safe_write import in_one_piece\n"
        "with in_one_piece(Path(sys.argv[1])) as part, part.open('a') as file:\n"
        "    file.write('rows\\n')\n"
        "print('summary')"
    )
    with (tmp_path / "out").open("a") as out:
        command = [sys.executable, "-c", code, name]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, stdout=out, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "out").read_text() == "rows\nsummary\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), in_one_piece(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_read_is_not_replaced_by_whatever_name(tmp_path):
    read = tmp_path / "read.csv"
    read.write_text("x")
    (tmp_path / "other").symlink_to(read)
    (tmp_path / "hard").hardlink_to(read)
    for name in ("read.csv", "other", "hard"):
        with pytest.raises(InputError, match=rf"--out=.*{name} names an input"):
            check_replaces_nothing(tmp_path / name, "--out", [tmp_path / "none", read])
    for name in ("new", ".", "..", "/"):
        check_replaces_nothing(tmp_path / name, "--out", [read])
    check_replaces_nothing(Path("."), "--out", [read])
    part = tmp_path / "new.part"  # what is written on the way
    part.write_text("x")
    with pytest.raises(InputError, match="new names an input"):
        check_replaces_nothing(tmp_path / "new", "--out", [read, part])
