"""Where files that can be made again lie, for users with and without a home."""

from pathlib import Path

import jax
import pytest

from boneage_jax.errors import InputError
from boneage_jax.runtime.cache_folder import cache_folder
from boneage_jax.runtime.compile_cache import use_compile_cache
from boneage_jax.storage.bucket import open_workdir


@pytest.fixture
def no_home(monkeypatch):
    """The user of `docker run --user 12345`."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 12345)


@pytest.mark.parametrize(
    ("chosen", "home", "folder"),
    [
        ("", "/home/ada", "/home/ada/.cache/boneage_jax"),
        ("/scratch", "/home/ada", "/scratch/boneage_jax"),
        ("~/.cache", "/home/ada", "/home/ada/.cache/boneage_jax"),  # of an ENV line of a Dockerfile
        ("cache", "/home/ada", "/home/ada/.cache/boneage_jax"),
        ("", "~", None),
    ],
)
def test_the_folder(chosen, home, folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    monkeypatch.setenv("HOME", home)
    assert cache_folder() == (Path(folder) if folder else None)


def test_the_folder_of_a_user_without_a_home(no_home, monkeypatch):
    assert cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder() == Path("/scratch/boneage_jax")


@pytest.fixture
def compile_cache(monkeypatch):
    """The settings of JAX that `use_compile_cache` changes."""
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    return changed


def test_programs_are_kept_for_each_kind_of_processor(compile_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compile_cache()
    folder = Path(compile_cache["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path / "boneage_jax/compiled" and folder.is_dir()


def test_without_a_home_every_program_is_compiled(compile_cache, no_home):
    use_compile_cache()
    assert not compile_cache


@pytest.mark.parametrize("trouble", ["a file", "read-only"])
def test_without_a_folder_every_program_is_compiled(trouble, compile_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if trouble == "a file":
        (tmp_path / "boneage_jax").touch()
    else:
        monkeypatch.setattr("os.access", lambda path, mode: False)
    use_compile_cache()
    assert not compile_cache


def test_a_bucket_needs_a_folder_for_its_log(no_home):
    with pytest.raises(InputError, match="this user has no home; set XDG_CACHE_HOME"):
        open_workdir("gs://bucket/runs/x")
