"""launch/gpu_node.sh: all GPUs of one machine, here or over ssh."""

import pytest

from tests.support.clouds import HOSTILE, ROOT, dry, training


def test_gpu_node_dry_run(stubs):
    commands = dry(stubs, "gpu_node.sh", "--workdir=runs/x", "--data=/raw", "--", HOSTILE)
    assert [c[:3] for c in commands[:2]] == [["cd", str(ROOT)], ["python3", "-m", "venv"]]
    assert commands[2][1:] == ["-m", "pip", "install", "--quiet", "-e", ".[cuda,bucket]"]
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
    assert pip[-1] == ".[cuda,bucket]"
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
