"""Steps whose loss or gradients are not finite, in the step itself and in whole runs."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from boneage_jax import register_model
from boneage_jax.config import check_config
from boneage_jax.errors import InputError
from boneage_jax.inference.load_trained import load_trained
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.runtime.parallel import Parallel
from boneage_jax.storage.state import flops_of
from boneage_jax.training import adam
from boneage_jax.training.nonfinite import Guard, Watched, all_finite, is_finite
from boneage_jax.training.run import load_run
from boneage_jax.training.step import make_train_step
from configs import cls
from tests.support.tiny_backbone import TinyBackbone
from tests.support.tiny_task import plain_inputs, random_batch, tiny_task
from tests.training.test_step import new_state

OURS = optax.chain(
    adam.clip_by_global_norm(1.0),
    adam.scale_by_adam(0.9, 0.999),
    optax.scale_by_learning_rate(1e-2),
)
OPTAX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def steps(batches, mode="jit", devices=1, accumulate=1, task=None, optimizer=OURS):
    """Final state and what was watched, over batches."""
    parallel = Parallel(mode, jax.devices()[:devices])
    task = task or tiny_task(parallel.axis_name)
    step = make_train_step(
        task,
        optimizer,
        plain_inputs,
        axis_name=parallel.axis_name,
        accumulate=accumulate,
        ema_decay=0.9,
    )
    state = parallel.put_state(new_state(task, optimizer, ema=True))
    watched = parallel.put_state(Watched.begin(task.metrics_type.empty()))
    train_step = parallel.train_step(functools.partial(step, flops=7))
    for batch in batches:
        state, watched = train_step(state, watched, parallel.put_batch(batch))
        jax.block_until_ready(state)
    assert parallel.compilations == {"train": 1}
    return jax.device_get(state), jax.device_get(watched)


def spoilt(seed):
    """A batch with one age that is no number, in the share of the last device."""
    batch = random_batch(16, seed=seed)
    batch["bone_age"][-1] = np.nan
    return batch


@pytest.mark.parametrize("where", ["vector", "matrix"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_among_many_is_seen(where, value):
    tree = {"vector": np.ones(7, np.float32), "matrix": np.ones((3, 4), np.float32), "count": 3}
    tree["other"] = np.zeros((), np.float32)
    tree["half"] = jnp.ones(3, jnp.bfloat16)
    assert jax.jit(all_finite)(tree) and is_finite(jax.tree.map(jnp.asarray, tree))
    tree[where].flat[5] = value
    assert not jax.jit(all_finite)(tree) and not is_finite(jax.tree.map(jnp.asarray, tree))


@pytest.mark.parametrize(
    ("mode", "devices", "accumulate", "optimizer"),
    [
        ("jit", 1, 1, OURS),
        ("jit", 4, 2, OURS),
        ("pmap", 4, 1, OURS),
        ("pmap", 2, 2, OPTAX),
        ("jit", 1, 1, OPTAX),
    ],
)
def test_a_bad_step_changes_nothing_but_the_counters(mode, devices, accumulate, optimizer):
    good = random_batch(16, seed=1)
    steps_of = functools.partial(
        steps, mode=mode, devices=devices, accumulate=accumulate, optimizer=optimizer
    )
    before, _ = steps_of([good])
    after, watched = steps_of([good, spoilt(2), spoilt(3)])
    for part in ("params", "batch_stats", "ema_params", "opt_state", "rng"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(after, part))
    assert after.step == 3 and flops_of(after.flops_spent) == 21
    assert (watched.total, watched.streak, watched.first) == (2, 2, 2)
    # The metrics are those of the one good step.
    _, alone = steps_of([good])
    assert watched.metrics.compute() == alone.metrics.compute()
    _, watched = steps_of([good, spoilt(2), good])
    assert (watched.total, watched.streak, watched.longest, watched.first) == (1, 0, 1, 2)


def test_a_gradient_alone_can_be_bad():
    """sqrt(0 x) is 0, its gradient is not a number: a loss that looks well."""
    task = tiny_task()
    loss = type(task).loss

    class Steep(type(task)):
        def loss(self, outputs, batch):
            per_image, parts = loss(self, outputs, batch)
            return per_image + jnp.sqrt(0.0 * outputs["age"]), parts

    steep = Steep(task.model, task.age_mean, task.age_std)
    state, watched = steps([random_batch(16)], task=steep)
    assert watched.total == 1 and state.step == 1
    fresh = new_state(steep, optax.adam(1e-2))
    jax.tree.map(np.testing.assert_array_equal, state.params, fresh.params)


def test_metrics_without_a_count_are_taken_as_before():
    task, optimizer = tiny_task(), optax.sgd(0.1)
    step = jax.jit(make_train_step(task, optimizer, plain_inputs))
    state, metrics = step(new_state(task, optimizer), task.metrics_type.empty(), spoilt(0))
    assert metrics.loss.count == 0 and state.step == 1


@pytest.mark.parametrize(
    ("policy", "counts", "back", "says"),
    [
        ("skip", [(5, 2, 2, 4), (6, 2, 0, 0)], [False, False], None),
        ("skip", [(5, 3, 3, 3)], [], "in 3 steps in a row, up to step 5"),
        ("stop", [(5, 0, 0, 0), (6, 1, 1, 6)], [False], "at step 6; lower"),
        ("rollback", [(5, 1, 1, 5), (6, 2, 1, 6)], [True, True], None),
        ("rollback", [(n, n, 1, n) for n in (1, 2, 3, 4)], [True] * 3, "after 3 roll-backs"),
    ],
)
def test_what_each_policy_does(policy, counts, back, says):
    config = cls.get_config()
    config.nonfinite, config.nonfinite_limit = policy, 3
    guard, did = Guard(check_config(config)), []
    try:
        for step, total, longest, first in counts:
            did.append(guard.judge(step, total, longest, first))
    except InputError as error:
        assert says and says in str(error) and "learning_rate" in str(error)
    else:
        assert says is None
    assert did == back


# ----- whole runs


def test_skipping_goes_on_and_says_how_often(tiny_train):
    report, workdir = tiny_train(spoil={2, 3})
    rows = [row for row in read_metrics(workdir) if "learning_rate" in row]
    assert [row.get("nonfinite_steps", 0) for row in rows] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert ["train/loss" in row for row in rows] == [n not in (3, 4) for n in range(1, 9)]
    whole, _ = tiny_train("whole")
    assert report["compute"]["train_flops"] == whole["compute"]["train_flops"]
    _, state, step = load_run(workdir)
    assert step == 8
    counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
    assert counts and all(int(count) == 6 for count in counts)


def test_too_many_bad_steps_end_the_run_with_its_last_checkpoint_whole(tiny_train, tmp_path):
    with pytest.raises(InputError, match="3 steps in a row, up to step 6"):
        tiny_train(spoil=range(3, 8), nonfinite_limit=3)
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"4"}
    with pytest.raises(InputError, match="3 steps in a row, up to step 8"):
        # A good step ends the row before the log line: it counts all the same.
        seldom = {"log_every": 8, "checkpoint_every": 0, "evaluate_every": 9.0}
        tiny_train("seldom", spoil=range(3, 6), nonfinite_limit=3, **seldom)
    report, workdir = tiny_train()  # the data mended, say
    assert report["age"]["mae"] > 0 and load_trained(workdir).step == 8


def test_stop_ends_at_the_first_and_goes_on_with_another_policy(tiny_train, tmp_path):
    with pytest.raises(InputError, match=r"not finite at step 4; .*--config.nonfinite=skip"):
        tiny_train(spoil={3}, nonfinite="stop")
    assert not (tmp_path / "run" / "checkpoints" / "4").exists()
    _, workdir = tiny_train(spoil={3}, nonfinite="skip")
    assert [row["step"] for row in read_metrics(workdir) if "learning_rate" in row] == [
        *range(1, 9)
    ]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_roll_back_goes_on_behind_the_bad_batch(tiny_train, mode):
    report, workdir = tiny_train(
        spoil={4}, nonfinite="rollback", parallel=mode, devices=jax.devices()[:2], log_every=2
    )
    rows = read_metrics(workdir)
    assert rows[-1]["nonfinite_steps"] == 1 and rows[-1]["rollbacks"] == 1
    assert [row["step"] for row in rows if "learning_rate" in row] == [2, 4, 6, 8]
    # Back from 6 to 4: two steps were made for nothing, and are paid for.
    each = report["compute"]["train_flops"] // 10
    assert report["compute"]["train_flops"] == 10 * each == rows[-1]["flops"]
    trained = load_trained(workdir)
    assert trained.flops_spent == 10 * each and trained.step == 8
    saved = next((workdir / "checkpoints" / "8" / "data").glob("*.json"))
    assert json.loads(saved.read_text())["next_index"] >= 10


def test_roll_backs_come_to_an_end(tiny_train, tmp_path):
    with pytest.raises(InputError, match="after 2 roll-backs"):
        tiny_train(spoil=range(0, 99), nonfinite="rollback", nonfinite_limit=2)
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"0"}


@register_model("overflowing")
class Overflowing(TinyBackbone):
    """Has a parameter that no loss and no gradient sees; weight decay alone changes it."""

    @nn.compact
    def __call__(self, images, *, train=False, image_keys=None):
        self.param("kernel", nn.initializers.constant(6e35), (1, 1))
        return TinyBackbone(self.bn_axis_name)(images, train=train, image_keys=image_keys)


def test_a_state_that_is_not_finite_is_never_saved(tiny_train, tmp_path):
    # Each step makes 1 - 0.04 x 100 = -3 times of a kernel; 100 x 6e35 x 9 overflows in the third.
    settings = {"name": "adamw", "learning_rate": 0.04, "weight_decay": 100.0}
    settings |= {"schedule": "constant", "warmup": 0.0}
    with pytest.raises(InputError, match="network of step 4 holds numbers that are not finite"):
        tiny_train(
            model__name="overflowing", **{f"optimizer__{key}": v for key, v in settings.items()}
        )
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"2"}
    assert "nonfinite_steps" not in read_metrics(tmp_path / "run")[-1]
