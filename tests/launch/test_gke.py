"""launch/xpk.sh and the Dockerfile."""

import shlex

import pytest

from tests.support.clouds import HOSTILE, LAUNCH, ROOT, XPK, dry, training


def test_xpk_tpu(stubs):
    options = ["--tpu-type=v6e-8", "--num-slices=2", "--image=i:1", "--workdir=gs://b/w"]
    options += ["--data=/raw", "--storage=s", "--xpk-flag=--spot", "--zone=z", "--project=p"]
    [command] = dry(stubs, "xpk.sh", "run", *XPK, *options, "--", "--config.a=b $c")
    assert command[:4] == ["xpk", "workload", "create", "--cluster=c"]
    flags = {"--tpu-type=v6e-8", "--num-slices=2", "--docker-image=i:1", "--max-restarts=50"}
    flags |= {"--restart-on-exit-codes=75", "--storage=s", "--spot", "--zone=z", "--project=p"}
    assert flags <= set(command)
    [line] = [word.removeprefix("--command=") for word in command if word.startswith("--command=")]
    inner = shlex.split(line)
    assert inner[:2] == ["exec", "python"]
    assert training(inner)[1:] == [
        "--workdir=gs://b/w",
        "--config.data.raw_dir=/raw",
        "--config.a=b $c",
    ]
    assert stubs.run("xpk.sh", "run", *XPK, *options, "--", "--config.a=b $c").returncode == 0
    assert stubs.calls == [command]


def test_xpk_gpu(stubs):
    options = ["--device-type=h100-80gb-8", "--num-nodes=2", "--base-image=b", "--workdir=/w"]
    [command] = dry(stubs, "xpk.sh", "run", *XPK, *options)
    flags = {"--num-nodes=2", "--base-docker-image=b", f"--script-dir={ROOT}"}
    assert flags <= set(command)
    [line] = [word for word in command if word.startswith("--command=")]
    assert "JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT && exec python" in line
    done = stubs.run("xpk.sh", "run", *XPK, *options, "--", HOSTILE)
    assert done.returncode == 2 and "xpk cannot pass" in done.stderr and stubs.calls == []
    done = stubs.run("xpk.sh", "run", *XPK, *options, FAIL="1")
    assert done.returncode == 2 and "submitting w failed" in done.stderr


@pytest.mark.parametrize("type_", ["--tpu-type=v5litepod-16", "--device-type=h100-80gb-8"])
def test_xpk_wants_a_workdir_that_outlives_the_pod(stubs, type_):
    options = [*XPK, type_, "--image=i"]
    done = stubs.run("xpk.sh", "run", *options, "--workdir=runs/w")
    assert done.returncode == 2 and stubs.calls == []
    assert len(done.stderr.splitlines()) == 1 and "gs://BUCKET/PATH" in done.stderr
    for shared in ("gs://b/w", "/mnt/w"):
        dry(stubs, "xpk.sh", "run", *options, f"--workdir={shared}")


def test_xpk_build_pushes_what_it_built(stubs):
    gpu = ["--device-type=h100-80gb-8", "--image=r/i:1"]
    build, push = dry(stubs, "xpk.sh", "build", *gpu)
    assert build[:2] == ["docker", "build"] and "EXTRA=cuda" in build and build[-1] == str(ROOT)
    assert push == ["docker", "push", "r/i:1"]


def test_xpk_delete(stubs):
    gone = 'Error from server (NotFound): jobsets.jobset.x-k8s.io "w" not found'
    assert stubs.run("xpk.sh", "delete", *XPK, FAIL="1", SAYS=gone).returncode == 0
    assert stubs.run("xpk.sh", "delete", *XPK, FAIL="1", SAYS="no cluster").returncode == 2
    assert stubs.called("delete", "--workload=w", "--force")


def test_dockerfile_copies_what_is_sent():
    sent = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert copied == {line[1:] for line in sent if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
