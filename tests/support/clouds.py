"""Stub clouds: `gcloud`, `ssh`, `srun` and the like, which record arguments, fail and preempt.

The stub `gcloud` and `ssh` run remote commands in a folder of this machine, so the scripts for the
workers are run too. No cloud is touched: real tools of these names are hidden by the stubs.
"""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ["tpu_vm.sh", "tpu_queued.sh", "slurm.sbatch", "xpk.sh", "gpu_node.sh"]
HOSTILE = '--config.note=it\'s $HOME & `b`; \\ * "q"'  # must arrive as it is
VM = ["--name=v", "--zone=z"]
QUICK = [*VM, "--poll=0.01"]
QUEUED = [*QUICK, "--workdir=gs://b/w"]
XPK = ["--cluster=c", "--workload=w"]

STUBS = {
    # Calls that contain $FAIL fail with $CODE, where $TIMES is given only the first so many.
    # $WORKERS have a home each, w0, w1, ...; `lives` of the training is then lives.0, lives.1, ...
    "gcloud": r"""
failed=$(cat "$STUB/failed" 2> /dev/null) || failed=0
if [[ ${FAIL:-} && "$*" == *$FAIL* ]] && ((failed < ${TIMES:-99})); then
  echo "$((failed + 1))" > "$STUB/failed"
  [[ ${LEAVES:-} ]] && echo "$LEAVES" > "$STUB/vm"
  [[ ${TAKES:-} ]] && rm -f "$STUB/vm"
  echo "ERROR: stub" >&2; exit "${CODE:-1}"
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
  *" ssh "*"--worker=all"*)
    [[ ${WORKERS:-} ]] || { cd "$HOME" && bash -c "$command"; exit; }
    for ((i = 0; i < WORKERS; i++)); do
      (cd "$HOME/w$i" && HOME=$PWD LIVES=$STUB/lives.$i bash -c "$command") || exit
    done ;;
  *" ssh "*) cd "$HOME/${WORKERS:+w0}" && HOME=$PWD bash -c "$command" ;;
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
lives=${LIVES:-$STUB/lives}
read -r code state < "$lives" || exit 0
sed -i 1d "$lives"
[[ $state ]] && echo "$state" > "$STUB/states"
[[ $code != KILL ]] || kill -KILL 0 # the process group: the shell that notes the exit code too
exit "$code"
""",
    "uv": r"""[[ $1 != venv ]] || { mkdir -p venv/bin && cp "$STUB/bin/train" venv/bin/python; }""",
    "python3": r"""
[[ $2 != venv ]] || { mkdir -p "$3/bin" && cp "$STUB/bin/train" "$3/bin/python"; }
""",
    "ssh": r"""[[ $1 != -tt ]] || shift; cd "$HOME" && bash -c "$2" """,
    "scp": r"""cp -r "$HOME/${3#*:}" "$4" """,
    # With TASKS=N it runs N tasks one after the other and ends with the highest code, as srun does.
    "srun": r"""
[[ ${TASKS:-} ]] || exit "${SRUN_EXIT:-0}"
while [[ $1 == --* ]]; do shift; done
highest=0
for ((task = 0; task < TASKS; task++)); do
  code=0
  SLURM_PROCID=$task "$@" || code=$?
  highest=$((code > highest ? code : highest))
done
exit "$highest"
""",
    "scontrol": r"""[[ ! ${FAIL:-} ]] """,
    "xpk": r"""echo "${SAYS:-}"; [[ ! ${FAIL:-} ]] """,
    # Archives as they are: the weights of the package take a second to compress, a test sends ten.
    "gzip": "cat",
    "pip": "",
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
            # One write for a line: those of workers that run at once would mingle.
            record = f'printf -v call "%q " {name} "$@"; printf "%s\\n" "$call" >> "$STUB/calls"\n'
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
