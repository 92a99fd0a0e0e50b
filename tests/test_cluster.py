"""How the processes of a job find each other."""

import pytest

from boneage_jax.cluster import announced_by, join_as_told
from boneage_jax.errors import InputError

SLURM = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}


@pytest.mark.parametrize(
    ("environ", "cluster"),
    [
        ({}, ""),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_NTASKS": "4"}, ""),  # the batch script itself, not a task of srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "the coordinator's address"),
    ],
)
def test_which_cluster_announces_itself(environ, cluster, tmp_path):
    assert announced_by(environ, tmp_path) == cluster


def test_a_tpu_is_asked_only_where_its_software_and_its_chips_are(tmp_path, monkeypatch):
    monkeypatch.setattr("boneage_jax.cluster.find_spec", lambda name: name == "libtpu")
    assert announced_by({}, tmp_path) == ""
    (tmp_path / "accel0").touch()
    assert announced_by({}, tmp_path) == "Cloud TPU"
    assert announced_by({"JAX_PLATFORMS": "cpu"}, tmp_path) == ""
    monkeypatch.setattr("boneage_jax.cluster.find_spec", lambda name: None)
    assert announced_by({}, tmp_path) == ""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--coordinator=h:1"], "go together"),
        (["--processes=2", "--process=0"], "go together"),
        (["--coordinator=h:1", "--processes=2", "--process=2"], "must be below"),
        (["--coordinator=h:1", "--processes=two", "--process=0"], "invalid int value: 'two'"),
    ],
)
def test_flags_that_do_not_go_together(flags, says):
    with pytest.raises(InputError, match=says):
        join_as_told([*flags, "--config=configs/cls.py"])


def test_without_a_cluster_a_process_is_alone(monkeypatch):
    for name in (*SLURM, "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert join_as_told(["--config=a.py", "--process_id=3"]) == ["--config=a.py", "--process_id=3"]
