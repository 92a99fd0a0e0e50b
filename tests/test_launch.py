"""The launch scripts: what they would run, and what they do with stub clouds that fail and preempt.

The stub `gcloud` and `ssh` run remote commands in a folder of this machine, so the scripts for the
workers are run too. No cloud is touched: real tools of these names are hidden by the stubs.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = ["tpu_vm.sh", "tpu_queued.sh", "slurm.sbatch", "xpk.sh", "gpu_node.sh"]
HOSTILE = '--config.note=it\'s $HOME & `b`; \\ * "q"'  # must arrive as it is
VM = ["--name=v", "--zone=z"]
QUEUED = [*VM, "--workdir=gs://b/w", "--poll=0.01"]
XPK = ["--cluster=c", "--workload=w"]

STUBS = {
    "gcloud": r"""
if [[ ${FAIL:-} && "$*" == *$FAIL* ]]; then
  [[ ${LEAVES:-} ]] && echo "$LEAVES" > "$STUB/vm"
  [[ ${TAKES:-} ]] && rm -f "$STUB/vm"
  echo "ERROR: stub" >&2; exit 1
fi
if [[ ${HANG:-} && "$*" == *$HANG* ]]; then sleep 60; fi
if [[ ${OPEN:-} && "$*" == *$OPEN* ]]; then touch "$STUB/open"; fi
for last in "$@"; do [[ $last == --command=* ]] && command=${last#*=}; done
case "$*" in
  *"tpu-vm list"*) cat "$STUB/vm" 2> /dev/null || true ;;
  *"tpu-vm create"*) echo READY > "$STUB/vm" ;;
  *"tpu-vm delete"*) rm "$STUB/vm" ;;
  *"queued-resources list"*)
    [[ -s $STUB/states ]] || exit 0
    head -n 1 "$STUB/states"
    [[ $(wc -l < "$STUB/states") == 1 ]] || sed -i 1d "$STUB/states" ;;
  *"queued-resources create"*)
    printf '%s\n' ${STATES:-WAITING_FOR_RESOURCES PROVISIONING ACTIVE} > "$STUB/states"
    echo READY > "$STUB/vm" ;;
  *"queued-resources delete"*) rm -f "$STUB/states" "$STUB/vm" ;;
  *"storage rsync"*) ;;
  *" ssh "*) cd "$HOME" && HOME=$HOME bash -c "$command" ;;
  *" scp --recurse "*) cp -r "$HOME/${6#*:}" "$7" ;;
  *" scp v:"*) cp "$HOME/${5#*:}" "$6" ;;
  *" scp "*) cp "$5" "$HOME/${6#*:}" ;;
esac
""",
    # One line of $STUB/lives for each training: its exit code, and what becomes of the resource.
    "train": r"""
[[ " $* " == *" pip "* ]] && exit 0
for word in "$@"; do
  [[ $word == --workdir=[!g]* ]] && mkdir -p "${word#*=}" && touch "${word#*=}/report.html"
done
echo "trained, SLURM_JOB_ID=${SLURM_JOB_ID:-unset}"
while [[ ${GATE:-} && ! -e $STUB/open ]]; do sleep 0.1; done
read -r code state < "$STUB/lives" || exit 0
sed -i 1d "$STUB/lives"
[[ $state ]] && echo "$state" > "$STUB/states"
exit "$code"
""",
    "uv": r"""[[ $1 != venv ]] || { mkdir -p venv/bin && cp "$STUB/bin/train" venv/bin/python; }""",
    "python3": r"""
[[ $2 != venv ]] || { mkdir -p "$3/bin" && cp "$STUB/bin/train" "$3/bin/python"; }
""",
    "ssh": r"""[[ $1 != -tt ]] || shift; cd "$HOME" && bash -c "$2" """,
    "scp": r"""cp -r "$HOME/${3#*:}" "$4" """,
    "srun": r"""exit "${SRUN_EXIT:-0}" """,
    "scontrol": r"""[[ ! ${FAIL:-} ]] """,
    "xpk": r"""echo "${SAYS:-}"; [[ ! ${FAIL:-} ]] """,
    "nvidia-smi": "",
    "sbatch": "",
    "docker": "",
}


class Stubs:
    """A folder of stub tools that record their arguments, and the scripts run with them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.home = folder / "home"
        (self.home / ".local/bin").mkdir(parents=True)
        self.bin.mkdir()
        for name, body in STUBS.items():
            path = self.bin / name
            record = f'{{ printf "%q " {name} "$@"; echo; }} >> "$STUB/calls"\n'
            path.write_text(f"#!/usr/bin/env bash\n{record}{body}\n")
            path.chmod(0o755)
        shutil.copy(self.bin / "uv", self.home / ".local/bin/uv")
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM_")},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(folder),
            "STUB": str(folder),
        }

    def command(self, script: str, *args: str) -> list[str]:
        return ["bash", str(LAUNCH / script), *args]

    def run(
        self, script: str, *args: str, cwd: Path = ROOT, **env: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(script, *args),
            env=self.env | env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(line + "\n" for line in lines))

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return (
            [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []
        )

    def called(self, *words: str) -> list[list[str]]:
        return [call for call in self.calls if all(word in call for word in words)]

    def interrupt(self, at: str, script: str, *args: str, **env: str) -> tuple[int, str]:
        """Ctrl-C in the terminal of a running script, once a call that contains `at` was made."""
        # A test runner in the background hands down an ignored SIGINT, which bash cannot trap.
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *self.command(script, *args)],
            env=self.env | env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: any(at in " ".join(call) for call in self.calls))
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, errors


def wait_for(condition, seconds: float = 60.0) -> None:
    for _ in range(int(seconds * 20)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def dry(stubs: Stubs, script: str, *args: str) -> list[list[str]]:
    """The commands of a dry run; not one of them may have been run."""
    done = stubs.run(script, "--dry-run", *args)
    assert done.returncode == 0, done.stderr
    assert stubs.calls == []
    return [shlex.split(line) for line in done.stdout.splitlines()]


def training(command: list[str]) -> list[str]:
    """The words of a training command after `-m boneage_jax.main`."""
    return command[command.index("boneage_jax.main") + 1 :]


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path)


# ---------------------------------------------------------------- every script


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_prints_the_header(stubs, script):
    done = stubs.run(script, "--help")
    assert done.returncode == 0
    assert f"usage: launch/{script}" in done.stdout
    assert "--dry-run" in done.stdout and "#" not in done.stdout
    assert os.access(LAUNCH / script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script):
    beside = Path(sys.executable).parent / "shellcheck"
    tool = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if tool is None:
        pytest.skip("shellcheck is not installed; it comes with the extra 'test'")
    done = subprocess.run([tool, str(LAUNCH / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert subprocess.run(["bash", "-n", str(LAUNCH / script)]).returncode == 0


@pytest.mark.parametrize(
    ("script", "args", "says"),
    [
        ("tpu_vm.sh", [], "an action is needed"),
        ("tpu_vm.sh", ["train", "--zone=z"], "--name=NAME is needed"),
        ("tpu_vm.sh", ["train", "--name=v"], "--zone=ZONE is needed"),
        ("tpu_vm.sh", ["fly", *VM], "got fly"),
        ("tpu_vm.sh", ["train", *VM, "--acc", "v6e-8"], "unknown option --acc"),
        ("tpu_vm.sh", ["train", *VM, "--accelerator=v9-8"], "add --runtime"),
        ("tpu_vm.sh", ["train", *VM, "--config=configs/no.py:rsna"], "there is no configs/no.py"),
        ("tpu_queued.sh", ["train", *VM], "--workdir=gs://BUCKET/PATH is needed"),
        ("tpu_queued.sh", ["train", *QUEUED, "--max-restarts=x"], "--max-restarts=x is no number"),
        ("tpu_queued.sh", ["delete", "--name=v"], "--zone=ZONE is needed"),
        ("slurm.sbatch", [], "--workdir=DIR is needed"),
        ("slurm.sbatch", ["--workdir=w", "--nodes=two"], "'two' is no number"),
        ("slurm.sbatch", ["--workdir=w", "--config=x.py"], "no x.py in"),
        ("xpk.sh", ["run", "--workload=w"], "--cluster=CLUSTER is needed"),
        ("xpk.sh", ["delete", "--cluster=c"], "--workload=NAME is needed"),
        ("xpk.sh", ["build", *XPK], "--image=IMAGE is needed"),
        ("xpk.sh", ["run", *XPK, "--workdir=w"], "--tpu-type=TYPE or --device-type=TYPE"),
        ("xpk.sh", ["run", *XPK, "--workdir=w", "--tpu-type=t"], "--image=IMAGE or --base-image"),
        ("gpu_node.sh", [], "--workdir=DIR is needed"),
        ("gpu_node.sh", ["--workdir=w", "--extra=rocm"], "--extra=rocm is unknown"),
        ("gpu_node.sh", ["--workdir=w", "--host=-oProxyCommand=x"], "is no host"),
    ],
)
def test_bad_arguments_are_one_clear_line(stubs, script, args, says):
    done = stubs.run(script, *args)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.startswith(f"{script}: ")
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert stubs.calls == []


@pytest.mark.parametrize(
    ("script", "args", "tool"),
    [
        ("tpu_vm.sh", ["train", *VM], "gcloud"),
        ("tpu_queued.sh", ["train", *QUEUED], "gcloud"),
        ("slurm.sbatch", ["--workdir=w"], "sbatch"),
        ("xpk.sh", ["list", *XPK], "xpk"),
        ("xpk.sh", ["build", *XPK, "--image=i"], "docker"),
        ("gpu_node.sh", ["--workdir=w"], "nvidia-smi"),
        ("gpu_node.sh", ["--workdir=w", "--host=h"], "ssh"),
    ],
)
def test_a_missing_tool_is_named(stubs, tmp_path, script, args, tool):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("bash", "dirname", "sed"):
        (plain / name).symlink_to(shutil.which(name))
    done = stubs.run(script, *args, PATH=str(plain))
    assert done.returncode == 2
    assert f"{tool} is not on PATH" in done.stderr and len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- tpu_vm.sh


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


# ---------------------------------------------------------------- tpu_queued.sh


def test_tpu_queued_dry_run(stubs):
    commands = dry(stubs, "tpu_queued.sh", "train", *QUEUED, "--", "--config.epochs=1")
    verbs = [c[4] if c[0] == "gcloud" else c[0] for c in commands]
    assert " ".join(verbs) == "list create list tar scp rm ssh ssh ssh list delete"
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


# ---------------------------------------------------------------- slurm.sbatch

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}


def test_slurm_submits_a_job_that_trains(stubs):
    options = ["--workdir=/s/w", "--nodes=2", "--gpus-per-node=8", "--sbatch-flag=--partition=g"]
    printed = dry(stubs, "slurm.sbatch", *options, "--", HOSTILE)
    assert stubs.run("slurm.sbatch", *options, "--", HOSTILE).returncode == 0
    [submitted] = stubs.calls
    assert submitted == printed[0]
    flags = {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=g"}
    cut = submitted.index(str(LAUNCH / "slurm.sbatch"))
    assert flags <= set(submitted[:cut])
    done = stubs.run("slurm.sbatch", *submitted[cut + 1 :], **JOB)  # as SLURM starts it
    assert done.returncode == 0, done.stderr
    [srun] = stubs.called("srun")
    assert srun == printed[1]
    assert training(srun) == ["--config=configs/cls.py:rsna", "--workdir=/s/w", HOSTILE]
    # jax.distributed gives task i the i-th GPU it sees, so no task may see one GPU alone.
    assert not any(word.startswith(("--gpus-per-task", "--gpu-bind")) for word in [*flags, *srun])


@pytest.mark.parametrize(
    ("code", "env", "requeued"),
    [
        ("75", {}, True),
        ("75", {"FAIL": "1"}, True),  # preempted by SLURM, which is requeueing already
        ("75", {"SLURM_RESTART_COUNT": "100"}, False),
        ("3", {}, False),
        ("0", {}, False),
    ],
)
def test_slurm_requeues_after_exit_code_75(stubs, code, env, requeued):
    done = stubs.run("slurm.sbatch", "--workdir=w", **JOB, SRUN_EXIT=code, **env)
    assert done.returncode == int(code)
    assert stubs.called("scontrol") == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_slurm_wants_one_task_per_gpu(stubs):
    done = stubs.run("slurm.sbatch", "--workdir=w", **JOB | {"SLURM_NTASKS_PER_NODE": "1"})
    assert done.returncode == 2 and "one task per GPU is needed: 8 GPUs" in done.stderr
    assert stubs.calls == []


@pytest.fixture
def slurm(tmp_path):
    """A SLURM of two nodes with two fake GPUs each, on the loopback interface of this machine."""
    daemons = ["munged", "slurmctld", "slurmd", "sbatch", "scontrol"]
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in daemons if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"no SLURM on this machine: {', '.join(missing)} not on PATH")
    if os.geteuid():
        pytest.skip("the daemons of SLURM need root")
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True).stdout.strip()
    ports = range(23000 + os.getpid() % 5000 * 4, 50000)
    (tmp_path / "key").write_bytes(os.urandom(1024))
    (tmp_path / "key").chmod(0o600)
    files = {"key-file": "key", "socket": "socket", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "seed"}
    munge = [f"--{option}={tmp_path}/{file}" for option, file in files.items()]
    (tmp_path / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/tty[1-2]\n")
    (tmp_path / "slurm.conf").write_text(
        f"""
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={tmp_path}/socket
StateSaveLocation={tmp_path}/state
SlurmdSpoolDir={tmp_path}/spool-%n
SlurmctldPidFile={tmp_path}/slurmctld.pid
SlurmdPidFile={tmp_path}/slurmd-%n.pid
SlurmctldLogFile={tmp_path}/slurmctld.log
SlurmdLogFile={tmp_path}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=sched_min_interval=100000,bf_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""
    )
    env = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf"), "PATH": path}

    def call(*command: str) -> str:
        return subprocess.run(
            command, env=env, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    pids = [tmp_path / f"{name}.pid" for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged")]
    try:
        try:
            call("munged", "--force", *munge)
            call("slurmctld")
            call("slurmd", "-N", "n1")
            call("slurmd", "-N", "n2")
            wait_for(lambda: call("sinfo", "-h", "-o", "%D %T").split() == ["2", "idle"], 15)
        except (subprocess.CalledProcessError, AssertionError) as error:
            pytest.skip(f"SLURM is installed but does not come up here: {error}")
        yield call
    finally:
        for file in pids:
            if file.exists():
                os.kill(int(file.read_text()), signal.SIGTERM)


def test_slurm_for_real(slurm, tmp_path):
    """Two nodes with two GPUs: four tasks, exit code 75 in the first start, 0 in the second."""
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        'echo "task $SLURM_PROCID of $SLURM_NTASKS, $SLURM_LOCALID on $SLURMD_NODENAME, GPUs'
        ' $CUDA_VISIBLE_DEVICES, restart ${SLURM_RESTART_COUNT:-0}: ${*: -1}"\n'
        "exit $((${SLURM_RESTART_COUNT:-0} ? 0 : 75))\n"
    )
    python.chmod(0o755)
    log = tmp_path / "log"
    slurm(
        *("bash", "launch/slurm.sbatch", "--workdir=w", "--nodes=2", "--gpus-per-node=2"),
        *(
            "--cpus-per-task=1",
            f"--python={python}",
            f"--sbatch-flag=--output={log}",
            "--",
            HOSTILE,
        ),
    )

    def job() -> str:
        return slurm("scontrol", "show", "job", "1")

    wait_for(lambda: "Restarts=1" in job() and "JobState=PENDING" in job())
    slurm("scontrol", "update", "JobId=1", "StartTime=now")  # SLURM waits two minutes by itself
    wait_for(lambda: "JobState=COMPLETED" in job())
    tasks = sorted(line for line in log.read_text().splitlines() if line.startswith("task "))
    assert tasks == [
        f"task {i} of 4, {i % 2} on n{i // 2 + 1}, GPUs 0,1, restart {restart}: {HOSTILE}"
        for i in range(4)
        for restart in range(2)
    ]


# ---------------------------------------------------------------- xpk.sh and the Dockerfile


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


# ---------------------------------------------------------------- gpu_node.sh


def test_gpu_node_dry_run(stubs):
    commands = dry(stubs, "gpu_node.sh", "--workdir=runs/x", "--data=/raw", "--", HOSTILE)
    assert [c[:3] for c in commands[:2]] == [["cd", str(ROOT)], ["python3", "-m", "venv"]]
    assert commands[2][1:] == ["-m", "pip", "install", "--quiet", "-e", ".[cuda]"]
    assert commands[3][0] == "env" and training(commands[3])[1:] == [
        "--workdir=runs/x",
        "--config.data.raw_dir=/raw",
        HOSTILE,
    ]


@pytest.mark.parametrize("code", [0, 75])
def test_gpu_node(stubs, tmp_path, code):
    stubs.write("lives", str(code))
    options = [f"--workdir={tmp_path}/w", f"--venv={tmp_path}/venv"]
    done = stubs.run("gpu_node.sh", *options, "--", HOSTILE, SLURM_JOB_ID="7")
    assert done.returncode == code
    # One process with all GPUs, also in a shell of SLURM.
    assert "SLURM_JOB_ID=unset" in done.stdout
    pip, train = stubs.called("train")
    assert pip[-1] == ".[cuda]"
    assert training(train) == ["--config=configs/cls.py:rsna", f"--workdir={tmp_path}/w", HOSTILE]


def test_gpu_node_over_ssh(stubs, tmp_path):
    options = ["--workdir=runs/x", "--host=me@box"]
    done = stubs.run("gpu_node.sh", *options, "--dry-run")
    assert done.returncode == 0 and "| ssh me@box" in done.stdout and stubs.calls == []
    stubs.write("lives", "3")
    done = stubs.run("gpu_node.sh", *options, "--", HOSTILE, cwd=tmp_path)
    assert done.returncode == 3  # that of the training, on the other machine
    there = stubs.home / "boneage_jax"
    assert (there / "boneage_jax/main.py").exists() and (there / ".venv/bin/python").exists()
    [train] = stubs.called("train", "boneage_jax.main")
    assert training(train)[-1] == HOSTILE
    assert (tmp_path / "runs/x/report.html").exists()
