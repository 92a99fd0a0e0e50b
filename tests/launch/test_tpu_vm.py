"""launch/tpu_vm.sh: what it would run, and what it does with a stub cloud that fails."""

import shlex
import shutil
import signal
import subprocess

import pytest

from tests.support.clouds import HOSTILE, QUEUED, QUICK, ROOT, VM, dry, training, wait_for


def test_tpu_vm_dry_run(stubs):
    options = ["--spot", "--data=gs://b/raw", "--project=p", "--create-flag=--network=n n"]
    commands = dry(stubs, "tpu_vm.sh", "train", *VM, *options, "--", HOSTILE)
    verbs = [c[4] if c[0] == "gcloud" else c[0] for c in commands]
    assert " ".join(verbs) == "list create tar scp rm ssh ssh ssh ssh mkdir scp scp list delete"
    create = commands[1]
    assert " ".join(create[:6]) == "gcloud compute tpus tpu-vm create v"
    assert {"--zone=z", "--project=p", "--spot", "--quiet", "--network=n n"} <= set(create)
    assert {"--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite"} <= set(create)
    setup, start, follow, ends = (c for c in commands if c[4:5] == ["ssh"])
    assert "--worker=all" in setup and "gcloud storage rsync --recursive gs://b/raw" in setup[-1]
    assert "--worker=all" in start and "--worker=0" in follow and "--worker=all" in ends
    inner = shlex.split(start[-1].removeprefix("--command="))
    job = shlex.split(inner[inner.index("-c") + 1].replace("; printf", " ; printf"))
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
    done = stubs.run("tpu_vm.sh", "train", *QUICK, **env, CODE="9")
    assert done.returncode == (2 if "create" in env["FAIL"] else 9) and says in done.stderr
    assert not stubs.exists("vm") and not stubs.called("train")


def test_tpu_vm_keep(stubs):
    done = stubs.run("tpu_vm.sh", "train", *QUICK, "--keep", FAIL="tpu-vm scp")
    assert done.returncode == 1 and stubs.exists("vm")


@pytest.mark.parametrize(
    "fails", ["tpu-vm scp /", "uv venv", "nohup setsid", "tail -n +1", "seq 300", "scp --recurse"]
)
@pytest.mark.parametrize("times", ["1", "2"])
def test_tpu_vm_tries_again_where_the_connection_is_lost(stubs, tmp_path, fails, times):
    options = [*QUICK, f"--out={tmp_path}/out"]
    done = stubs.run("tpu_vm.sh", "train", *options, FAIL=fails, CODE="255", TIMES=times)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("exit code 255 (try ") == int(times)
    assert len(stubs.called("train", "boneage_jax.main")) == 1
    assert (tmp_path / "out/v/report.html").exists()


def test_tpu_vm_does_not_try_again_on_a_vm_that_is_gone(stubs):
    stubs.write("vm", "PREEMPTED")
    done = stubs.run("tpu_vm.sh", "setup", *QUICK, FAIL="uv venv", CODE="255")
    assert done.returncode == 255 and done.stderr.count("(try ") == 1


def test_tpu_vm_that_does_not_answer_may_still_train(stubs):
    stubs.write("vm", "READY")
    stubs.run("tpu_vm.sh", "setup", *QUICK)
    done = stubs.run("tpu_vm.sh", "run", *QUICK, FAIL="tail -n +1")
    assert done.returncode == 255 and "run it again to attach" in done.stderr


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([75, 75, 75, 2], 2),  # a full disk: somebody must mend it
        ([75, 137, 1, 75], 1),
        ([137, 75, 75, 75], 75),  # out of memory: the others can go on
        ([137, 134, 134, 134], 75),  # the coordinator
        ([143, 143, 143, 143], 75),  # told to end before they could save
        (["KILL", 75, 75, 75], 75),  # killed with the shell that notes its code
        ([75, "KILL", 2, 75], 2),
        ([0, 0, 4, 3], 4),
        ([0, 0, 0, 0], 0),
    ],
)
def test_tpu_vm_weighs_the_exit_codes_of_all_workers(stubs, codes, code):
    for i, life in enumerate(codes):
        stubs.write(f"lives.{i}", str(life))
        folder = stubs.home / f"w{i}/boneage/venv/bin"
        folder.mkdir(parents=True)
        shutil.copy(stubs.bin / "train", folder / "python")
    stubs.write("vm", "READY")
    options = [*QUICK, "--accelerator=v5litepod-32", "--workdir=gs://b/w"]
    done = stubs.run("tpu_vm.sh", "run", *options, WORKERS="4")
    assert done.returncode == code, done.stderr
    assert len(stubs.called("train", "boneage_jax.main")) == 4
    told = " ".join(str(c).replace("KILL", "137") for c in codes)
    assert (f"that of the workers: {told};" in done.stderr) == (code != 0)
    assert ("run it again" in done.stderr) == (code == 75)


def test_tpu_vm_ends_a_worker_that_hangs(stubs):
    """Its process would keep the next start from meeting all workers."""
    stubs.write("vm", "READY")
    stubs.run("tpu_vm.sh", "setup", *QUICK)
    ends = dry_ends(stubs)
    hangs = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (stubs.home / "boneage/.launch").mkdir()
    (stubs.home / "boneage/.launch/pid").write_text(f"{hangs.pid}\n")
    quick = ends.replace("seq 300", "seq 1")
    assert quick != ends
    done = subprocess.run(["bash", "-c", quick], env=stubs.env, capture_output=True, text=True)
    assert done.stdout == "worker ended with 137\n"
    assert hangs.wait(timeout=10) == -signal.SIGKILL


def dry_ends(stubs) -> str:
    """The command that asks the workers for their exit codes."""
    done = stubs.run("tpu_vm.sh", "--dry-run", "run", *QUICK)
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    return commands[-1][-1].removeprefix("--command=")


@pytest.mark.parametrize("action", ["train", "run"])
@pytest.mark.parametrize(
    ("accelerator", "hosts"),
    [
        *(("v5litepod-8", 1), ("v5litepod-16", 2), ("v6e-8", 1), ("v6e-16", 2)),
        *(("v4-8", 1), ("v4-16", 2), ("v5p-8", 1), ("v5p-16", 2), ("v3-32", 4)),
    ],
)
def test_tpu_vm_wants_a_shared_workdir_for_several_hosts(stubs, action, accelerator, hosts):
    options = [action, *VM, f"--accelerator={accelerator}"]
    for local in ([], ["--workdir=w"]):
        done = stubs.run("tpu_vm.sh", "--dry-run", *options, *local)
        assert done.returncode == (0 if hosts == 1 else 2)
        if hosts > 1:
            assert len(done.stderr.splitlines()) == 1 and "gs://BUCKET/PATH" in done.stderr
    for shared in ("gs://b/w", "/mnt/w"):
        assert stubs.run("tpu_vm.sh", "--dry-run", *options, f"--workdir={shared}").returncode == 0
    assert stubs.calls == []


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
    assert stubs.run("tpu_vm.sh", "delete", *QUICK, FAIL="list").returncode == 2
    stubs.write("vm", "READY")
    (stubs.folder / "failed").unlink()
    assert stubs.run("tpu_vm.sh", "delete", *QUICK, FAIL="list", TIMES="1").returncode == 0
    assert not stubs.exists("vm")
    stubs.write("vm", "READY")
    assert stubs.run("tpu_vm.sh", "delete", *VM, FAIL="delete").returncode == 2
    assert stubs.run("tpu_vm.sh", "delete", *VM, FAIL="delete", TAKES="1").returncode == 0
    stubs.write("vm", "READY")
    assert stubs.run("tpu_vm.sh", "delete", *VM).returncode == 0 and not stubs.exists("vm")
