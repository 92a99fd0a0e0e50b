"""launch/slurm.sbatch with a stub of SLURM, and with SLURM itself where it is installed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.support.clouds import HOSTILE, LAUNCH, ROOT, dry, training, wait_for

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


@pytest.fixture
def checkout(tmp_path):
    """A folder with a recipe, in which a job leaves nothing behind."""
    recipe = tmp_path / "checkout/configs/cls.py"
    recipe.parent.mkdir(parents=True)
    recipe.touch()
    yield recipe.parent.parent
    assert [path.name for path in recipe.parent.parent.iterdir()] == ["configs"]


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([75, 75, 2, 75], 2),  # a full disk: somebody must mend it
        ([75, 1, 75, 137], 1),
        ([127, 75, 75, 75], 127),  # no Python on that node
        ([0, 0, 137, 0], 75),
        ([75, 137, 75, 75], 75),  # out of memory: the others can go on
        ([137, 134, 134, 134], 75),  # the coordinator
        ([143, 143, 143, 143], 75),  # told to end before they could save
        ([75, 139, 3, 75], 75),
        ([0, 3, 4, 0], 4),
        (["KILL", 75, 75, 75], 75),  # killed with the shell that notes its code
        (["KILL", 75, 2, 75], 2),
        ([0, 0, 0, 0], 0),
    ],
)
def test_slurm_weighs_the_exit_codes_of_all_tasks(stubs, checkout, codes, code):
    python = stubs.folder / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f"codes=({' '.join(map(str, codes))}) && code=${{codes[SLURM_PROCID]}}\n"
        "[[ $code != KILL ]] || kill -KILL $PPID\n"
        'exit "$code"\n'
    )
    python.chmod(0o755)
    options = ["--workdir=w", f"--python={python}"]
    done = stubs.run("slurm.sbatch", *options, cwd=checkout, **JOB, TASKS="4")
    assert done.returncode == code, done.stderr
    assert len(stubs.called("scontrol", "requeue")) == (code == 75)
    assert all(f" {c}" in done.stderr for c in codes if c not in (0, "KILL"))


def test_slurm_restarts_a_task_that_is_killed_each_time_as_often_as_allowed(stubs, checkout):
    stubs.write("lives", "137", "137")
    options = ["--workdir=gs://b/w", f"--python={stubs.bin}/train", "--max-restarts=1"]
    for restart, requeues in enumerate([1, 1]):
        env = JOB | {"TASKS": "1", "SLURM_RESTART_COUNT": str(restart)}
        done = stubs.run("slurm.sbatch", *options, cwd=checkout, **env)
        assert done.returncode == 75 and "137 (1)" in done.stderr
        assert len(stubs.called("scontrol")) == requeues
    assert "restarted 1 times already" in done.stderr


def test_slurm_counts_the_code_of_srun_where_no_task_has_one(stubs, checkout):
    (checkout / "boneage-7-0.tasks").mkdir()  # from a start whose shell was killed
    (checkout / "boneage-7-0.tasks/0.75").touch()
    done = stubs.run("slurm.sbatch", "--workdir=w", cwd=checkout, **JOB, SRUN_EXIT="1")
    assert done.returncode == 1 and not stubs.called("scontrol")


@pytest.mark.parametrize("whole", [True, False], ids=["children too", "the first process alone"])
def test_slurm_task_gets_one_sigterm(stubs, tmp_path, whole):
    """A second one would end the training without a checkpoint."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, signal, sys, time\n"
        "got = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
        "pathlib.Path('up').touch()\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(3)\n"
        "sys.exit(75 if len(got) == 1 else 3)\n"
    )
    python.chmod(0o755)
    step = dry(stubs, "slurm.sbatch", "--workdir=w", f"--python={python}")[1]
    notes = tmp_path / "boneage-7-0.tasks"
    notes.mkdir()
    task = subprocess.Popen(
        step[step.index("bash") :],
        cwd=tmp_path,
        env=stubs.env | {"SLURM_JOB_ID": "7", "SLURM_PROCID": "5"},
        start_new_session=True,
    )
    try:
        wait_for((tmp_path / "up").exists)
        assert [note.name for note in notes.iterdir()] == ["5.137"]
        (os.killpg if whole else os.kill)(task.pid, signal.SIGTERM)
        assert task.wait(timeout=60) == 75
    finally:
        task.kill()
        task.wait()
    assert [note.name for note in notes.iterdir()] == ["5.75"]


def test_slurm_wants_one_task_per_gpu(stubs):
    done = stubs.run("slurm.sbatch", "--workdir=w", **JOB | {"SLURM_NTASKS_PER_NODE": "1"})
    assert done.returncode == 2 and "one task per GPU is needed: 8 GPUs" in done.stderr
    assert stubs.calls == []


def test_slurm_arrays_do_not_share_a_workdir(stubs):
    done = stubs.run("slurm.sbatch", "--workdir=w", **JOB, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 2 and "element of a job array would train in" in done.stderr
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
LaunchParameters=use_interactive_step
InteractiveStepOptions="--interactive --preserve-env bash {tmp_path}/shell"
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
    """Two nodes with two GPUs: four tasks, which in the first start get SIGTERM and end unequally.

    One SIGTERM makes 75, two make 3; the last task ends as a killed one does. The second start ends
    with 0.
    """
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        'echo "task $SLURM_PROCID of $SLURM_NTASKS, $SLURM_LOCALID on $SLURMD_NODENAME, GPUs'
        ' $CUDA_VISIBLE_DEVICES, restart ${SLURM_RESTART_COUNT:-0}: ${*: -1}"\n'
        "((${SLURM_RESTART_COUNT:-0} == 0)) || exit 0\n"
        "count=0; trap 'count=$((count + 1))' TERM\n"
        f"touch {tmp_path}/up.$SLURM_PROCID\n"
        "while ((count == 0)); do sleep 0.1; done 2> /dev/null\n"
        "for i in {1..30}; do sleep 0.1; done 2> /dev/null\n"
        "((SLURM_PROCID < 3)) || exit 137\n"
        "exit $((count == 1 ? 75 : 3))\n"
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

    wait_for(lambda: len(list(tmp_path.glob("up.*"))) == 4)
    slurm("scancel", "--signal=TERM", "1")
    wait_for(lambda: "Restarts=1" in job() and "JobState=PENDING" in job())
    assert "had them: 75 (3) 137 (1)\n" in log.read_text()
    time.sleep(2)  # SLURM refuses a start in the very second of the requeue
    slurm("scontrol", "update", "JobId=1", "StartTime=now")  # SLURM waits two minutes by itself
    wait_for(lambda: "JobState=COMPLETED" in job())
    tasks = sorted(line for line in log.read_text().splitlines() if line.startswith("task "))
    assert tasks == [
        f"task {i} of 4, {i % 2} on n{i // 2 + 1}, GPUs 0,1, restart {restart}: {HOSTILE}"
        for i in range(4)
        for restart in range(2)
    ]


SAYS = "import os; from boneage_jax.runtime.launcher import announcement as a; print(a(os.environ))"


def test_what_slurm_announces_for_real(slurm, tmp_path):
    """The shell of salloc, a batch script, an element of an array and steps of several sizes."""
    says = f"{sys.executable} -c '{SAYS}'"
    steps = ("--ntasks=1", "--ntasks=4", "--preserve-env --ntasks=2")
    (tmp_path / "shell").write_text(
        "\n".join(["#!/usr/bin/env bash", says, *(f"srun {step} {says}" for step in steps)])
    )
    shell = slurm("salloc", "--quiet", "--ntasks=4", "--gpus-per-node=2").splitlines()
    tasks = "SLURM (SLURM_STEP_NUM_TASKS={})"
    assert shell == [*["None"] * 2, *[tasks.format(4)] * 4, *[tasks.format(2)] * 2]
    (tmp_path / "job").write_text(f"#!/usr/bin/env bash\n{says}\nsrun --ntasks=1 {says}\n")
    for array, count in (("", 2), ("--array=0-1", 4)):
        log = tmp_path / f"log{array}"
        flags = ["--wait", "--open-mode=append", f"--output={log}", "--ntasks=2"]
        slurm("sbatch", *flags, *([array] if array else []), f"{tmp_path}/job")
        assert log.read_text().split() == ["None"] * count
