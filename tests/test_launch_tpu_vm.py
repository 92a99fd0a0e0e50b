"""launch/tpu_vm.sh: what it would run, and what it does with a stub cloud that fails."""

import shlex

import pytest
from clouds import HOSTILE, QUEUED, ROOT, VM, dry, training, wait_for


def test_tpu_vm_dry_run(stubs):
    options = ["--spot", "--data=gs://b/raw", "--project=p", "--create-flag=--network=n n"]
    commands = dry(stubs, "tpu_vm.sh", "train", *VM, *options, "--", HOSTILE)
    verbs = [c[4] if c[0] == "gcloud" else c[0] for c in commands]
    assert " ".join(verbs) == "list create tar scp rm ssh ssh ssh mkdir scp scp list delete"
    create = commands[1]
    assert " ".join(create[:6]) == "gcloud compute tpus tpu-vm create v"
    assert {"--zone=z", "--project=p", "--spot", "--quiet", "--network=n n"} <= set(create)
    assert {"--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite"} <= set(create)
    setup, start, follow = (c for c in commands if c[4:5] == ["ssh"])
    assert "--worker=all" in setup and "gcloud storage rsync --recursive gs://b/raw" in setup[-1]
    assert "--worker=all" in start and "--worker=0" in follow
    inner = shlex.split(start[-1].removeprefix("--command="))
    job = shlex.split(inner[inner.index("-c") + 1].replace("; echo $?", " ; echo $?"))
    assert training(job)[:4] == [
        "--config=configs/cls.py:rsna",
        "--workdir=runs/v",
        "--config.data.raw_dir=raw",
        HOSTILE,
    ]


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v6e-8", "v2-alpha-tpuv6e"), ("v5p-8", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_tpu_software_version(stubs, accelerator, runtime):
    assert (
        f"--version={runtime}"
        in dry(stubs, "tpu_vm.sh", "create", *VM, f"--accelerator={accelerator}")[1]
    )
    assert (
        f"--runtime-version={runtime}"
        in dry(stubs, "tpu_queued.sh", "train", *QUEUED, f"--accelerator={accelerator}")[1]
    )


def test_tpu_vm_train(stubs, tmp_path):
    done = stubs.run("tpu_vm.sh", "train", *VM, f"--out={tmp_path}/out", "--", HOSTILE)
    assert done.returncode == 0, done.stderr
    assert not stubs.exists("vm")
    [train] = stubs.called("train", "boneage_jax.main")
    assert training(train) == ["--config=configs/cls.py:rsna", "--workdir=runs/v", HOSTILE]
    assert (stubs.home / "boneage/boneage_jax/main.py").read_text() == (
        ROOT / "boneage_jax/main.py"
    ).read_text()
    assert (tmp_path / "out/v/report.html").exists()
    assert "trained" in (tmp_path / "out/v/train.log").read_text() and "trained" in done.stdout


def test_tpu_vm_returns_the_exit_code_of_the_training(stubs, tmp_path):
    stubs.write("lives", "3")
    done = stubs.run("tpu_vm.sh", "train", *VM, f"--out={tmp_path}/out")
    assert done.returncode == 3 and "exit code 3" in done.stderr
    assert (tmp_path / "out/v/train.log").exists() and not stubs.exists("vm")
    stubs.write("lives", "75")
    stubs.write("vm", "READY")
    done = stubs.run("tpu_vm.sh", "run", *VM)
    assert done.returncode == 75 and "run it again" in done.stderr
    assert stubs.exists("vm")


def test_tpu_vm_run_attaches_to_a_running_training(stubs):
    stubs.write("vm", "READY")
    stubs.run("tpu_vm.sh", "setup", *VM)
    code, _ = stubs.interrupt("tail -n +1", "tpu_vm.sh", "run", *VM, GATE="1")
    assert code == 130
    wait_for(lambda: stubs.called("train", "boneage_jax.main"))
    done = stubs.run("tpu_vm.sh", "run", *VM, OPEN="tail -n +1")
    assert done.returncode == 0 and "already running" in done.stdout
    assert len(stubs.called("train", "boneage_jax.main")) == 1 and stubs.exists("vm")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"FAIL": "tpu-vm create"}, "creating TPU VM v failed"),
        ({"FAIL": "tpu-vm create", "LEAVES": "CREATING"}, "creating TPU VM v failed"),
        ({"FAIL": "tpu-vm scp"}, "copying the code to v failed"),
        ({"FAIL": "uv venv"}, "setting up the workers of v failed"),
    ],
)
def test_tpu_vm_failed_set_up_leaves_nothing(stubs, env, says):
    done = stubs.run("tpu_vm.sh", "train", *VM, **env)
    assert done.returncode == 2 and says in done.stderr
    assert not stubs.exists("vm") and not stubs.called("train")


def test_tpu_vm_keep(stubs):
    done = stubs.run("tpu_vm.sh", "train", *VM, "--keep", FAIL="tpu-vm scp")
    assert done.returncode == 2 and stubs.exists("vm")


def test_tpu_vm_leaves_a_vm_that_it_did_not_create(stubs):
    stubs.write("vm", "READY")
    done = stubs.run("tpu_vm.sh", "train", *VM)
    assert done.returncode == 2 and "exists already (READY)" in done.stderr
    assert stubs.exists("vm") and not stubs.called("create")


def test_tpu_vm_interrupt_deletes(stubs):
    code, errors = stubs.interrupt(" ssh ", "tpu_vm.sh", "train", *VM, HANG=" ssh ")
    assert code == 130 and "deleting TPU VM v" in errors
    assert not stubs.exists("vm")


def test_tpu_vm_delete(stubs):
    done = stubs.run("tpu_vm.sh", "delete", *VM)
    assert done.returncode == 0 and "there is no TPU VM v" in done.stderr
    assert stubs.run("tpu_vm.sh", "delete", *VM, FAIL="list").returncode == 2
    stubs.write("vm", "READY")
    assert stubs.run("tpu_vm.sh", "delete", *VM, FAIL="delete").returncode == 2
    assert stubs.run("tpu_vm.sh", "delete", *VM, FAIL="delete", TAKES="1").returncode == 0
    stubs.write("vm", "READY")
    assert stubs.run("tpu_vm.sh", "delete", *VM).returncode == 0 and not stubs.exists("vm")
