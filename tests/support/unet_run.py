"""A U-Net trained on phantoms, radiographs it can read, and the masks it writes of them."""

import os
import shutil
from pathlib import Path

import cv2
import pytest
from filelock import FileLock

from boneage_jax import main, segment
from boneage_jax.cli import exit_status
from tfds_rsna.hand_phantom.render import make_phantom

ROOT = Path(__file__).parents[2]


def call(module, *arguments) -> int:
    """Runs a command as a user does; returns its exit status."""
    return exit_status(module.main, [*map(str, arguments)])


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_folder):
    """Data and a U-Net for all tests that need one; trained once, each worker has a copy."""
    folder = tmp_path_factory.mktemp("segment")
    with FileLock(worker_folder / "unet.lock"):
        if not (worker_folder / "segment").exists():
            _train(folder)
            shutil.copytree(folder, worker_folder / "segment")
        else:
            shutil.copytree(worker_folder / "segment", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def worker_folder(tmp_path_factory):
    """A folder that all workers of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def _train(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        patch.chdir(ROOT)
        code = call(
            main,
            "--config=configs/seg.py",
            f"--workdir={folder / 'unet'}",
            "--config.data.config=64-small",
            "--config.steps=160",
            "--config.batch_size=12",
            "--config.eval_batch_size=32",
            "--config.evaluate_every=10.0",
            "--config.augment.invert=0.4",
            "--config.augment.frame=0.3",
            "--config.augment.rotate=30.0",
        )
        assert code == 0


@pytest.fixture
def here(shared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "data"))
    monkeypatch.chdir(ROOT)
    return shared


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory):
    """24 phantoms as PNG files of several sizes, with a CSV of their ages."""
    folder = tmp_path_factory.mktemp("radiographs")
    (folder / "images").mkdir()
    lines = ["file,age,sex"]
    for index in range(24):
        phantom = make_phantom(index, 128 + 8 * (index % 3), "test")
        image = phantom.image[:, index % 4 :]
        cv2.imwrite(str(folder / "images" / f"hand{index:02d}.png"), image)
        lines.append(f"hand{index:02d}.png,{phantom.bone_age:.1f},{'FM'[phantom.male]}")
    (folder / "ages.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def masks(shared, radiographs, tmp_path_factory):
    """What `segment` writes for the radiographs and three files that cannot be read."""
    output, bad = tmp_path_factory.mktemp("masks"), tmp_path_factory.mktemp("bad")
    (bad / "text.png").write_text("no image")
    (bad / "empty.png").write_bytes(b"")
    whole = (radiographs / "images" / "hand00.png").read_bytes()
    (bad / "cut.png").write_bytes(whole[: len(whole) // 2])
    arguments = (f"--workdir={shared / 'unet'}", f"--output={output}")
    assert call(segment, *arguments, radiographs / "images", bad) == 0
    return output
