"""What SLURM, Open MPI, MPICH, Kubernetes and TPU VMs leave in the environment of a process."""

import pytest

from boneage_jax.errors import InputError
from boneage_jax.runtime.launcher import announcement, task_of_launcher

# Of one task of `srun --ntasks=4`; SLURM 22.05.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-4]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
# Of the shell that `salloc --ntasks=4` starts where slurm.conf has use_interactive_step.
INTERACTIVE = TASK | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}
BATCH_SCRIPT = {key: TASK[key] for key in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}
ARRAY = BATCH_SCRIPT | {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_COUNT": "8"}
# Of one process of `mpirun -n 2`; Open MPI 4.
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environ", "launcher", "said_by", "processes"),
    [
        ({}, "", "", 0),
        (TASK, "SLURM", "SLURM_STEP_NUM_TASKS=4", 4),
        ({k: v for k, v in TASK.items() if k != "SLURM_STEP_NUM_TASKS"}, *("SLURM", ""), 4),
        (TASK | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, "", "", 0),
        (INTERACTIVE, "", "", 0),
        # srun --preserve-env --ntasks=2 in an allocation of 4
        (TASK | {"SLURM_STEP_NUM_TASKS": "2"}, "SLURM", "SLURM_STEP_NUM_TASKS=2", 2),
        (BATCH_SCRIPT, "", "", 0),
        (ARRAY, "", "", 0),
        (TASK | {"SLURM_STEP_NUM_TASKS": "4(x2)"}, "", "", 0),
        (OPEN_MPI, "Open MPI", "OMPI_COMM_WORLD_SIZE=2", 2),
        # mpirun in an allocation: the daemon of each node is a task of SLURM
        (TASK | OPEN_MPI, "Open MPI", "OMPI_COMM_WORLD_SIZE=2", 2),
        (INTERACTIVE | OPEN_MPI, "Open MPI", "OMPI_COMM_WORLD_SIZE=2", 2),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, "", "", 0),
        (TASK | {"PMI_SIZE": "4"}, "SLURM", "SLURM_STEP_NUM_TASKS=4", 4),  # srun --mpi=pmi2
        ({"PMI_SIZE": "1"}, "", "", 0),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "the coordinator's address", "", 0),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "", "", 0),
        (POD, "", "", 0),
    ],
)
def test_what_launchers_announce(environ, launcher, said_by, processes, tmp_path):
    found = announcement(environ, tmp_path)
    if not launcher:
        assert found is None
        return
    assert (found.launcher, found.processes) == (launcher, processes)
    assert said_by in str(found)


@pytest.mark.parametrize(
    "environ",
    [
        {"PMI_SIZE": "4", "PMI_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},  # Open MPI 5
        INTERACTIVE | {"PMI_SIZE": "4", "PMI_RANK": "1"},
    ],
)
def test_processes_that_cannot_find_each_other_do_not_train_side_by_side(environ, tmp_path):
    with pytest.raises(InputError, match=r"_SIZE=4 .* --processes=\$\w+_SIZE .* --alone"):
        announcement(environ, tmp_path)


def test_a_tpu_is_asked_only_where_its_software_and_its_chips_are(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    assert announcement({}, tmp_path) is None
    (tmp_path / "accel0").touch()
    assert announcement({}, tmp_path).launcher == "Cloud TPU"
    assert announcement({"JAX_PLATFORMS": "cpu"}, tmp_path) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert announcement({}, tmp_path) is None


def test_jax_reads_the_same_of_a_task(monkeypatch):
    """JAX alone would take SLURM_NTASKS, here that of the allocation."""
    from jax._src.clusters import SlurmCluster  # no public name

    task = TASK | {"SLURM_STEP_NUM_TASKS": "2"}
    for key, value in task.items():
        monkeypatch.setenv(key, value)
    found = task_of_launcher(task)
    assert SlurmCluster.is_env_present() and SlurmCluster.name == found.method
    assert (SlurmCluster.get_process_count(), found.processes) == (4, 2)
    for key in task:
        with monkeypatch.context() as patch:
            patch.delenv(key)
            less = {k: v for k, v in task.items() if k != key}
            if not SlurmCluster.is_env_present():
                assert task_of_launcher(less) is None
