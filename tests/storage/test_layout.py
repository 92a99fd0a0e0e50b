"""Names of workdirs, as users type them."""

import os
from pathlib import Path

import pytest

from boneage_jax.errors import InputError
from boneage_jax.storage.bucket import open_workdir
from boneage_jax.storage.layout import checked_path, is_workdir


@pytest.mark.parametrize(
    "name",
    [
        None,
        3,
        b"runs/a",
        ["runs"],
        "",
        "a\0b",
        "\ud800",
        "x" * 256,
        "ä" * 128,
        "/".join(["long"] * 1000),
    ],
)
def test_what_is_no_name_is_refused_in_one_line(name):
    for check in (checked_path, open_workdir):
        with pytest.raises(InputError, match="workdir=") as error:
            check(name)
        assert len(str(error.value)) < 4100 and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gs://", Path("gs://"), "s3://b/run", "ftp://host/run"])
def test_addresses_that_are_none(name):
    with pytest.raises(InputError, match="gs://"):
        open_workdir(name)


def test_names_are_taken_as_they_are_but_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert checked_path("~/runs/a") == tmp_path / "runs/a"
    for name in ("run [1]*", "a~b", "-x", "x" * 255):
        assert open_workdir(name) == open_workdir(Path(name)) == Path(name)
    with pytest.raises(InputError, match="not UTF-8"):  # orbax could not write to it
        open_workdir(os.fsdecode(b"\xff"))
    with pytest.raises(InputError, match="nobody_of_this_name"):
        checked_path("~nobody_of_this_name/a")


def test_a_workdir_holds_a_config_and_checkpoints_or_members(tmp_path):
    folders = {
        name: tmp_path / name for name in ("config", "checkpoints", "both", "members", "file")
    }
    for folder in folders.values():
        folder.mkdir()
    for name in ("config", "both", "members", "file"):
        (folders[name] / "config.json").write_text("{}")
    for name, kept in (
        ("checkpoints", "checkpoints"),
        ("both", "checkpoints"),
        ("members", "members"),
    ):
        (folders[name] / kept).mkdir()
    (folders["file"] / "checkpoints").touch()
    found = {name for name, folder in folders.items() if is_workdir(folder)}
    assert found == {"both", "members"}
    assert not is_workdir(tmp_path / "nowhere")
