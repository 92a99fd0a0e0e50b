"""What evaluation restores of a checkpoint: the network, with averages where they were kept."""

import contextlib
import errno
import logging
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.errors import JaxRuntimeError

from boneage_jax.data.loader import train_batches
from boneage_jax.errors import InputError
from boneage_jax.runtime.parallel import Parallel
from boneage_jax.storage.bucket import push
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.storage.quiet_orbax import without_late_errors
from boneage_jax.storage.state import TrainState, flops_of, split_flops
from tests.support.late_errors import wait_for_late_errors
from tests.support.tiny_task import memory_split


def tree(scale):
    return {
        "backbone": {"stem": {"kernel": jnp.full((3, 2), scale)}, "top": {"bias": jnp.ones(2)}},
        "age": {"kernel": jnp.full((2, 1), scale)},
    }


def saved(folder, averages):
    state = TrainState(
        step=jnp.asarray(3, jnp.int32),
        params=tree(1.0),
        batch_stats={"backbone": {"stem": {"mean": jnp.full(2, 5.0)}}},
        ema_params=averages,
        opt_state={"mu": tree(7.0)},
        rng=jnp.zeros(2, jnp.uint32),
        flops_spent=split_flops(12_345_678_901),
    )
    batches = train_batches(memory_split(8), ("bone_age",), 4, seed=0, put=lambda batch: batch)
    with contextlib.closing(batches), Checkpoints(folder, "mae") as checkpoints:
        checkpoints.save(3, state, batches, None)
    return state


def test_a_folder_that_cannot_be_created_is_found_before_orbax_waits_for_it(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(InputError, match=r"checkpoints cannot be written .*free some space"):
        saved(tmp_path, {})


def test_what_another_process_saves_is_seen(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with Checkpoints(tmp_path, "mae", read_only=True) as checkpoints:
        assert checkpoints.newest_step() is None
        saved(tmp_path, {})
        assert checkpoints.latest_step() is None  # it does not look by itself
        assert checkpoints.newest_step() == 3


def test_a_log_that_cannot_be_sent_costs_no_checkpoint(tmp_path, capsys):
    mirror, bucket = tmp_path / "mirror", tmp_path / "bucket"
    mirror.mkdir()
    (mirror / ".bucket").write_text(str(bucket))
    (mirror / "metrics.jsonl").write_text("1\n")
    (bucket / "metrics.jsonl").mkdir(parents=True)  # in the way of the log
    saved(mirror, {})
    assert "trying again at the next checkpoint" in capsys.readouterr().err
    assert (bucket / "checkpoints" / "3").is_dir()
    (bucket / "metrics.jsonl").rmdir()
    push(mirror)
    assert (bucket / "metrics.jsonl").read_text() == "1\n"


@pytest.mark.parametrize(
    ("text", "raised", "says"),
    [
        ("DEADLINE_EXCEEDED: Barrier timed out. Id: restore.1", JaxRuntimeError, "^DEADLINE"),
        ("INVALID_ARGUMENT: shapes", InputError, "cannot be restored: it is damaged"),
    ],
)
def test_a_process_lost_while_restoring_is_no_damaged_checkpoint(
    text, raised, says, tmp_path, monkeypatch
):
    state = saved(tmp_path, {})

    def restore(*_, **__):
        raise JaxRuntimeError(text)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    checkpoints = Checkpoints(tmp_path, "mae", read_only=True)
    with pytest.raises(raised, match=says):
        checkpoints.restore(3, state)
    checkpoints.close()


def like(one_device, shapes):
    return Parallel("jit", one_device).state_shapes(lambda: shapes)


@pytest.mark.parametrize(
    "averages",
    [{}, {"age": {"kernel": jnp.full((2, 1), 9.0)}}, tree(9.0)],
    ids=["none", "of the trained part", "of all"],
)
def test_averages_stand_for_the_parameters_they_are_of(tmp_path, one_device, averages):
    state = saved(tmp_path, averages)
    checkpoints = Checkpoints(tmp_path, "mae", read_only=True)
    shapes = like(one_device, {"params": state.params, "batch_stats": state.batch_stats})
    variables, spent = checkpoints.restore_network(3, shapes)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, variables, state.eval_variables)
    assert jax.tree.structure(variables) == jax.tree.structure(state.eval_variables)
    assert flops_of(spent) == 12_345_678_901


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_another_network_is_refused_by_name(tmp_path, one_device, change):
    state = saved(tmp_path, {})
    params = tree(0.0)
    if change == "shape":
        params["age"]["kernel"] = jnp.zeros((2, 5))
    elif change == "missing":
        params["age"]["bias"] = jnp.zeros(1)
    else:
        del params["backbone"]["top"]
    checkpoints = Checkpoints(tmp_path, "mae", read_only=True)
    with pytest.raises(InputError, match=r"3 cannot be restored: .*another model") as error:
        checkpoints.restore_network(
            3, like(one_device, {"params": params, "batch_stats": state.batch_stats})
        )
    assert "\n" not in str(error.value)
    checkpoints.close()


def test_absl_logging_of_others_is_left_alone(tmp_path, caplog):
    wait_for_late_errors()
    logger = logging.getLogger("absl")
    checkpoints = Checkpoints(tmp_path, "mae")
    logger.warning("of another library")
    checkpoints.close()
    assert [record.getMessage() for record in caplog.records] == ["of another library"]
    assert logger.filters == []


def test_restores_side_by_side_leave_the_hook_as_it_was():
    wait_for_late_errors()
    hook = sys.unraisablehook
    with without_late_errors:
        with without_late_errors:
            assert sys.unraisablehook is not hook
        assert sys.unraisablehook is not hook
    assert sys.unraisablehook is hook


def test_reads_that_fail_beside_a_failed_one_say_nothing(caplog):
    """What asyncio logs of them, cut after the first words; what it logs of others stays."""
    wait_for_late_errors()
    said = "_GatheringFuture exception was never retrieved\nfuture: <_GatheringFuture finished "
    reading = "exception=Exception('Encountered error while reading array. See full TensorStore')"
    logger = logging.getLogger("asyncio")
    with without_late_errors:
        logger.error(said + reading)
        logger.error(said + "exception=Exception('in orbax/checkpoint.py')")
        logger.error(said + "exception=KeyError('mine')")
    assert [record.getMessage().endswith("KeyError('mine')") for record in caplog.records] == [True]
