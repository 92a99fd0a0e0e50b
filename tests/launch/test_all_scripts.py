"""What all launch scripts have in common: help, bad arguments, missing tools, shellcheck."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.clouds import LAUNCH, QUEUED, ROOT, SCRIPTS, VM, XPK, dry


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


@pytest.mark.parametrize("extra", ["tpu", "cuda", "none"])
def test_what_is_installed_can_write_to_a_bucket(stubs, tmp_path, extra):
    """The extra `bucket` comes along everywhere, on the CPU too."""
    extras = {extra, "bucket"} - {"none"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    assert extras <= set(known) and any("gcsfs" in package for package in known["bucket"])
    if extra == "tpu":
        printed = " ".join(" ".join(c) for c in dry(stubs, "tpu_vm.sh", "setup", *VM))
    else:
        printed = " ".join(
            " ".join(c) for c in dry(stubs, "gpu_node.sh", "--workdir=w", f"--extra={extra}")
        )
    assert extras == set(printed.split(".[")[1].split("]")[0].split(","))

    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    step = "\n".join(lines).partition("\nRUN ")[2].partition("\n\n")[0]
    work = tmp_path / "app"
    work.mkdir()
    shutil.copy(ROOT / "pyproject.toml", work)
    subprocess.run(["sh", "-ec", step], cwd=work, env=stubs.env | {"EXTRA": extra}, check=True)
    installed = (work / "requirements.txt").read_text().splitlines()
    wanted = [*project["dependencies"], *(line for name in extras for line in known[name])]
    assert sorted(installed) == sorted(wanted)
    assert stubs.called("pip", "-r", "requirements.txt")
