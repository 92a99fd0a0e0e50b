"""Runs whose workdir is in a bucket, against an emulator of Google Cloud Storage on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from etils import epath

from boneage_jax.errors import InputError
from boneage_jax.storage import bucket
from boneage_jax.storage.bucket import address_of, checkpoint_folder, open_workdir, push
from tests.support.compiling import xla_flags
from tests.support.tiny_run import TINY_RUN, arguments

ROOT = Path(__file__).parents[2]
_EVALUATE = """
import tests.support.tiny_run
from boneage_jax import evaluate

evaluate.run()
"""
# The emulator forgets a header that Google's store sends and tensorstore asks for.
_EMULATOR = """
import sys, time
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

def download(request, response, storage, *args, _download=objects.download, **kwargs):
    try:
        params = request.params
        found = storage.get_file_obj(params["bucket_name"], params["object_id"])
        response["x-goog-generation"] = found["generation"]
    except NotFound:
        pass
    _download(request, response, storage, *args, **kwargs)

objects.download = download
from gcp_storage_emulator.server import create_server

create_server("127.0.0.1", int(sys.argv[1]), True, default_bucket="bucket").start()
while True:
    time.sleep(1)
"""
needs_emulator = pytest.mark.skipif(
    not (find_spec("gcp_storage_emulator") and find_spec("gcsfs")),
    reason="needs gcp-storage-emulator and gcsfs: pip install 'boneage_jax[test]'",
)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The address of a store with an empty bucket, and the environment that leads to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("emulator") / "log").open("w")
    process = subprocess.Popen([sys.executable, "-c", _EMULATOR, str(port)], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/storage/v1/b/bucket", timeout=5).close()
            break
        except OSError:
            time.sleep(0.1)
    if process.poll() is not None:
        pytest.fail(f"the emulator did not start: {Path(log.name).read_text()[-500:]}")
    yield {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    process.kill()
    process.wait()
    log.close()


@pytest.fixture
def machine(emulator, tmp_path, monkeypatch):
    """This process on a machine that has not seen the bucket before."""
    for key, value in (emulator | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(key, value)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("runs/a", "runs/a"),
        ("gs://bucket/a/b/", "gs://bucket/a/b"),
        (Path("gs://bucket/a"), "gs://bucket/a"),  # pathlib makes it gs:/bucket/a
        ("C:/runs", "C:/runs"),
    ],
)
def test_addresses_survive_pathlib(given, address):
    assert address_of(given) == address


def test_an_ordinary_folder_is_itself(tmp_path):
    assert open_workdir(tmp_path) == tmp_path
    assert checkpoint_folder(tmp_path) == tmp_path / "checkpoints"
    push(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_stores_are_refused():
    with pytest.raises(InputError, match=r"ftp://host/run must be a folder or gs://BUCKET/PATH"):
        open_workdir("ftp://host/run")
    with pytest.raises(InputError, match=r"s3://b/run: .* train in a folder and copy it"):
        open_workdir("s3://b/run")


def test_a_mirror_has_one_process(tmp_path):
    """Evaluating beside a training must not take the log from under it."""
    training = bucket._own_mirror(tmp_path, "gs://bucket/run")
    assert bucket._own_mirror(tmp_path, "gs://bucket/run") == training
    lock = bucket._locks.pop(training)  # as if another process held it
    beside = bucket._own_mirror(tmp_path, "gs://bucket/run")
    below = bucket._own_mirror(tmp_path, "gs://bucket/run/members/0")
    assert len({training, beside, below}) == 3 and training not in below.parents
    long = bucket._own_mirror(tmp_path, "gs://bucket/" + 90 * "\u00e9" + "/run")
    assert long.is_dir() and long != training
    bucket._locks.pop(long).release()
    for other in (lock, bucket._locks.pop(beside), bucket._locks.pop(below)):
        other.release()
    assert bucket._own_mirror(tmp_path, "gs://bucket/run") == training
    bucket._locks.pop(training).release()


@needs_emulator
def test_small_files_go_to_the_bucket_and_come_back(machine):
    folder = open_workdir("gs://bucket/small")
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_bytes(b"\x89PNG")
    (folder / "metrics.jsonl").write_text("1\n")
    (folder / "metrics.jsonl.part").write_text("torn")
    push(folder / "figures")  # any folder of the mirror stands for all of it
    shutil.rmtree(machine / "cache")
    bucket._pushed.clear()
    again = open_workdir("gs://bucket/small")
    found = {p.relative_to(again).as_posix(): p.read_bytes() for p in again.rglob("*.*")}
    found.pop(".bucket")
    assert found == {"figures/a.png": b"\x89PNG", "metrics.jsonl": b"1\n"}
    # The bucket is the truth: what it does not have is gone, what changed there is taken.
    (again / "report.json").write_text("{}")
    (again / "metrics.jsonl").write_text("older\n")
    with bucket._in_use_here(again):  # a training of this process writes to it: it is left alone
        assert open_workdir("gs://bucket/small") == again
    assert (again / "report.json").exists()
    third = open_workdir("gs://bucket/small")
    assert not (third / "report.json").exists()
    assert (third / "metrics.jsonl").read_text() == "1\n"


@needs_emulator
def test_what_did_not_change_is_not_sent_again(machine, monkeypatch):
    folder = open_workdir("gs://bucket/once")
    (folder / "a").write_text("1")
    push(folder)
    (folder / "b").write_text("2")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    (folder / "b").unlink()
    push(folder)  # nothing is new, so nothing is sent to where nobody listens


def _train(workdir: str, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *TINY_RUN, *arguments(workdir), *more]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@needs_emulator
def test_a_run_goes_on_from_a_bucket_on_another_machine(emulator, tmp_path):
    keep = os.environ | {"XLA_FLAGS": xla_flags()}
    keep |= emulator | {
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
    }
    first = keep | {"XDG_CACHE_HOME": str(tmp_path / "first")}
    second = keep | {"XDG_CACHE_HOME": str(tmp_path / "second")}
    whole = _train(str(tmp_path / "whole"), first)
    assert whole.returncode == 0, whole.stderr[-3000:]
    stopped = _train("gs://bucket/runs/a", first, "--config.max_seconds=0.01")
    assert stopped.returncode == 75, stopped.stderr[-3000:]
    assert "saved at step 1 of 8" in stopped.stderr
    done = _train("gs://bucket/runs/a", second)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from the checkpoint of step 1" in done.stderr
    assert "report: gs://bucket/runs/a/report.html" in done.stdout
    assert "Traceback" not in stopped.stderr + done.stderr
    mirror = next((tmp_path / "second").rglob(".bucket")).parent
    assert not (mirror / "checkpoints").exists()
    reports = [json.loads((f / "report.json").read_text()) for f in (tmp_path / "whole", mirror)]
    assert reports[0]["age"] == reports[1]["age"]
    # And a third one evaluates it.
    third = keep | {"XDG_CACHE_HOME": str(tmp_path / "third")}
    command = [sys.executable, "-c", _EVALUATE, "--workdir=gs://bucket/runs/a"]
    evaluated = subprocess.run(command, cwd=ROOT, env=third, capture_output=True, text=True)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert f"MAE {reports[0]['age']['mae']:.2f}" in evaluated.stdout


_READ = """
import json, sys
import tests.support.tiny_backbone
from boneage_jax import load_predictor
from tfds_rsna.hand_phantom.render import make_phantom

predict = load_predictor(sys.argv[1])
ages = predict([make_phantom(i, 96, "test").image for i in range(3)], male=[1, 0, -1])
print(json.dumps(ages["bone_age_months"].tolist()))
"""


@needs_emulator
def test_a_workdir_of_older_code_is_read_from_a_bucket(machine, emulator):
    old = ROOT / "tests" / "inference" / "old_workdirs"
    mirror = open_workdir("gs://bucket/old")
    for path in (old / "bone_age").rglob("*"):
        if path.is_file():
            target = epath.Path("gs://bucket/old") / path.relative_to(old / "bone_age").as_posix()
            target.write_bytes(path.read_bytes())
    bucket._locks.pop(mirror).release()
    environment = os.environ | {"XLA_FLAGS": xla_flags()}
    environment |= emulator | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _READ, "gs://bucket/old"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    truth = json.loads((old / "read_by_the_code_that_wrote_them.json").read_text())["bone_age"]
    assert json.loads(done.stdout) == pytest.approx(truth["bone_age_months"], rel=1e-5)
