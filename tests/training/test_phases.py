"""The phases of a run: their plan, their price, and a run through two of them."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import boneage_jax
from boneage_jax.config import base_config, check_config
from boneage_jax.errors import InputError
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.storage.workdir import load_info
from boneage_jax.training.phases import Phase, Stretch, plan, steps_within
from boneage_jax.training.run import load_run


def config_of(sizes="", fractions="", head_first=0.0):
    config = base_config()
    config.progressive.sizes, config.progressive.fractions = sizes, fractions
    config.finetune.head_first = head_first
    return config


def test_a_plain_run_is_one_phase():
    assert plan(config_of(), (96, 96), 50) == [Phase(Stretch((96, 96), False), 0, 50)]


def test_heads_and_sizes_cut_a_run_where_they_change():
    phases = plan(config_of("32,64,96", "0.5,0.25,0.25", head_first=0.1), (96, 96), 40)
    assert phases == [
        Phase(Stretch((32, 32), True), 0, 4),
        Phase(Stretch((32, 32), False), 4, 20),
        Phase(Stretch((64, 64), False), 20, 30),
        Phase(Stretch((96, 96), False), 30, 40),
    ]


def test_a_phase_without_a_step_is_left_out_and_none_is_lost():
    for steps in range(1, 30):
        phases = plan(config_of("32,96", "0.02,0.98", head_first=0.03), (96, 96), steps)
        assert [p.start for p in phases] == [0, *(p.stop for p in phases[:-1])]
        assert phases[-1].stop == steps and all(p.stop > p.start for p in phases)


@pytest.mark.parametrize(
    ("sizes", "fractions", "words"),
    [
        ("64,96", "0.5", "a fraction above 0 for each"),
        ("64,96", "", "must be lists such as"),
        ("64,big", "0.5,0.5", "must be lists such as"),
        ("96,64", "0.5,0.5", "must rise"),
        ("64,128", "0.5,0.5", "the network reads, 96"),
        ("16,96", "0.5,0.5", "at least 32"),
        ("64,96", "0.5,0.4", "add up to 1"),
        ("64,96", "1.5,-0.5", "above 0"),
    ],
)
def test_wrong_lists_are_named(sizes, fractions, words):
    with pytest.raises(InputError, match=words):
        plan(config_of(sizes, fractions), (96, 96), 10)


def test_a_budget_is_spent_and_never_exceeded():
    config = config_of("32,64,96", "0.31,0.3,0.39", head_first=0.17)
    prices = {32: 11, 64: 40, 96: 101}

    def cost(stretch):
        return prices[stretch.shape[0]] // (3 if stretch.heads_only else 1)

    def price(steps):
        return sum((p.stop - p.start) * cost(p.stretch) for p in plan(config, (96, 96), steps))

    for budget in (0, 2, 500, 12_345, 999_999):
        steps = steps_within(budget, lambda n: plan(config, (96, 96), n), cost)
        affordable = max(n for n in range(21_000) if price(n) <= budget) if budget < 1e5 else steps
        assert price(steps) <= budget and steps in (affordable, affordable - 1, affordable - 2)
        if steps:
            assert budget - price(steps) < 3 * max(prices.values())


def test_widths_follow_the_proportion_of_the_network() -> None:
    phases = plan(config_of("64,96", "0.5,0.5"), (96, 78), 10)
    assert [phase.stretch.shape for phase in phases] == [(64, 52), (96, 78)]


STEPS = 6


def two_phases():
    """Two steps for the heads at 32 px, four for all at 64 px."""
    config = config_of("32,64", "0.34,0.66", head_first=0.34)
    config.data.config = "64-small"
    config.model.name = "tiny_lite0"
    config.batch_size, config.eval_batch_size = 8, 16
    config.steps, config.evaluate_every, config.checkpoint_every = STEPS, 1e3, 1
    config.log_every = 1
    config.ema_decay = 0.9
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run through both phases, and the compilations seen."""
    folder = tmp_path_factory.mktemp("phases")
    patch = pytest.MonkeyPatch()
    patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
    report = boneage_jax.train(two_phases(), folder / "whole", devices=jax.devices()[:1])
    yield folder / "whole", report
    patch.undo()


def test_each_phase_spends_its_own_flops(whole, one_device):
    workdir, report = whole
    run = load_run(workdir, one_device)[0]
    first, second = run.flops_until(1), run.train_flops
    # Forward pass alone at a quarter of the pixels: a twelfth, but for the heads.
    assert 10 < second / first < 14
    rows = [row["flops"] for row in read_metrics(workdir) if "train/loss" in row]
    expected = np.cumsum([first] * 2 + [second] * 4)
    np.testing.assert_array_equal(rows, expected)
    assert report["compute"]["train_flops"] == expected[-1] == report["curve"][-1]["flops"]


def test_a_run_stopped_in_either_phase_ends_as_if_never_stopped(
    whole, tmp_path, monkeypatch, one_device
):
    workdir, _ = whole
    save = ocp.CheckpointManager.save

    def stop_after(number):
        def stopping(self, step, *args, **options):
            save(self, step, *args, **options)
            if step == number:
                self.wait_until_finished()
                raise KeyboardInterrupt

        return stopping

    for number in (1, 4):
        monkeypatch.setattr(ocp.CheckpointManager, "save", stop_after(number))
        with pytest.raises(KeyboardInterrupt):
            boneage_jax.train(two_phases(), tmp_path / "stopped", devices=one_device)
    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    boneage_jax.train(two_phases(), tmp_path / "stopped", devices=one_device)
    states = [load_run(folder, one_device)[1] for folder in (workdir, tmp_path / "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *map(dataclasses.asdict, states))


def test_the_backbone_rests_in_the_first_phase(whole, tmp_path):
    """Its parameters after those steps are those it began with."""
    config = check_config(two_phases())
    from boneage_jax.training.run import build_run, fresh_state

    info = load_info(whole[0])
    run = build_run(config, info, jax.devices()[:1])
    state = fresh_state(config, info, run.task, run.optimizer)
    before = jax.device_get(state)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 64, 64, 1), dtype=np.uint8),
        "draw": np.arange(8, dtype=np.uint32),
        "weight": np.ones(8, np.float32),
        "bone_age": np.full(8, 50.0, np.float32),
        "male": np.ones(8, np.int32),
    }
    metrics = run.parallel.put_state(run.task.metrics_type.empty())
    after, _ = run.train_step_at(0)(
        run.parallel.put_state(state), metrics, run.parallel.put_batch(batch)
    )
    for name in ("params", "batch_stats"):
        old, new = getattr(before, name)["backbone"], getattr(after, name)["backbone"]
        jax.tree.map(np.testing.assert_array_equal, old, jax.device_get(new))
    assert np.abs(before.params["age"]["bias"] - after.params["age"]["bias"]).max() > 0
