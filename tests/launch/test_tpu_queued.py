"""launch/tpu_queued.sh: queued TPUs from a stub cloud that preempts and gives up."""

import pytest

from tests.support.clouds import HOSTILE, QUEUED, VM, dry


def test_tpu_queued_dry_run(stubs):
    commands = dry(stubs, "tpu_queued.sh", "train", *QUEUED, "--", "--config.epochs=1")
    verbs = [c[4] if c[0] == "gcloud" else c[0] for c in commands]
    assert " ".join(verbs) == "list create list tar scp rm ssh ssh ssh ssh list delete"
    assert " ".join(commands[1][:6]) == "gcloud compute tpus queued-resources create v"
    assert {"--node-id=v", "--spot"} <= set(commands[1]) and "--force" in commands[-1]
    assert "--workdir=gs://b/w --config.epochs=1;" in commands[7][-1]


def test_tpu_queued_creates_again_after_a_preemption(stubs):
    stubs.write("lives", "75 SUSPENDING", "137 SUSPENDED", "0")
    done = stubs.run("tpu_queued.sh", "train", *QUEUED, "--", HOSTILE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was preempted") == 2 and "WAITING_FOR_RESOURCES" in done.stderr
    assert len(stubs.called("queued-resources", "create")) == 3
    assert len(stubs.called("queued-resources", "delete")) == 3
    assert len(stubs.called("train", "boneage_jax.main", HOSTILE)) == 3
    assert not stubs.exists("states") and not stubs.exists("vm")


def test_tpu_queued_runs_again_where_the_vm_is_still_there(stubs):
    stubs.write("lives", "75", "255", "0")
    done = stubs.run("tpu_queued.sh", "train", *QUEUED)
    assert done.returncode == 0, done.stderr
    assert len(stubs.called("queued-resources", "create")) == 1
    assert len(stubs.called("train", "boneage_jax.main")) == 3


@pytest.mark.parametrize(
    ("lives", "options", "code"), [("3", [], 3), ("75", ["--max-restarts=0"], 75)]
)
def test_tpu_queued_gives_up(stubs, lives, options, code):
    stubs.write("lives", lives)
    assert stubs.run("tpu_queued.sh", "train", *QUEUED, *options).returncode == code
    assert len(stubs.called("train", "boneage_jax.main")) == 1
    assert not stubs.exists("states") and not stubs.exists("vm")


@pytest.mark.parametrize(
    "fails",
    [
        *("queued-resources list", "queued-resources create", "tpu-vm list"),
        *("tpu-vm scp", "uv venv", "nohup setsid", "tail -n +1", "seq 300"),
    ],
)
def test_tpu_queued_outlives_one_failure(stubs, fails):
    """The training was stopped once, so that the state of the VM is asked as well."""
    stubs.write("lives", "75", "0")
    env = {"FAIL": fails, "CODE": "255", "TIMES": "1"}
    done = stubs.run("tpu_queued.sh", "train", *QUEUED, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ERROR: stub") == 1
    assert len(stubs.called("queued-resources", "create")) == 1 + ("create" in fails)
    assert len(stubs.called("queued-resources", "delete")) == 1
    assert len(stubs.called("train", "boneage_jax.main")) == 2


def test_tpu_queued_keeps_a_vm_that_is_there_through_a_longer_failure(stubs):
    env = {"FAIL": "uv venv", "CODE": "255", "TIMES": "4"}
    done = stubs.run("tpu_queued.sh", "train", *QUEUED, **env)
    assert done.returncode == 0, done.stderr
    assert len(stubs.called("queued-resources", "create")) == 1
    assert len(stubs.called("queued-resources", "delete")) == 1
    stubs.write("failed", "0")
    done = stubs.run("tpu_queued.sh", "train", *QUEUED, **env | {"CODE": "9"})
    assert done.returncode == 9 and "setting up the workers of v failed" in done.stderr


def test_tpu_queued_restarts_a_training_that_is_killed_as_often_as_allowed(stubs):
    stubs.write("lives", "137", "137", "137")
    done = stubs.run("tpu_queued.sh", "train", *QUEUED, "--max-restarts=1")
    assert done.returncode == 75 and "that of the workers: 137" in done.stderr
    assert len(stubs.called("train", "boneage_jax.main")) == 2
    assert len(stubs.called("queued-resources", "create")) == 1 and not stubs.exists("vm")


def test_tpu_queued_request_that_fails(stubs):
    done = stubs.run("tpu_queued.sh", "train", *QUEUED, STATES="ACCEPTED FAILED")
    assert done.returncode == 2 and "FAILED" in done.stderr
    assert not stubs.exists("states") and not stubs.called("ssh")
    done = stubs.run("tpu_queued.sh", "train", *QUEUED, FAIL="queued-resources create")
    assert done.returncode == 2 and "creating queued resource v failed" in done.stderr


def test_tpu_queued_goes_on_with_an_existing_one(stubs):
    stubs.write("states", "ACTIVE")
    stubs.write("vm", "READY")
    assert stubs.run("tpu_queued.sh", "train", *QUEUED, "--keep").returncode == 0
    assert not stubs.called("create") and stubs.exists("states")


def test_tpu_queued_interrupt_deletes(stubs):
    code, errors = stubs.interrupt(
        " ssh ", "tpu_queued.sh", "train", *QUEUED, STATES="ACTIVE", HANG=" ssh "
    )
    assert code == 130 and "deleting queued resource v" in errors
    assert not stubs.exists("states")


def test_tpu_queued_delete(stubs):
    done = stubs.run("tpu_queued.sh", "delete", *VM)
    assert done.returncode == 0 and "no queued resource v" in done.stderr
    stubs.write("states", "SUSPENDED")
    assert stubs.run("tpu_queued.sh", "delete", *VM).returncode == 0
    assert stubs.called("delete", "--force") and not stubs.exists("states")
