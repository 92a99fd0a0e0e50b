"""From a config to a run: lengths by budget, and configs whose parts do not fit."""

import jax
import pytest

from boneage_jax import register_model
from boneage_jax.benchmarking.steps import Stepper, synthetic_batch
from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.tasks.registry import make_task
from boneage_jax.training.nonfinite import Watched
from boneage_jax.training.run import build_run
from configs import cls, seg
from tests.support.tiny_backbone import TinyUNet

INFO = DataInfo(image_size=64, train_images=96, age_mean=0.0, age_std=1.0)


def _config(**changes):
    config = seg.get_config()
    config.batch_size, config.eval_batch_size = 8, 8
    with config.unlocked():
        for key, value in changes.items():
            config.update_from_flattened_dict({key.replace("__", "."): value})
    return check_config(config)


def _run(info=INFO, **changes):
    return build_run(_config(**changes), info)


def test_a_budget_buys_the_steps_that_it_can_pay():
    # The steps of the main run and of pre-training cost the same, as their images have one size.
    each = _run(steps=1).train_flops
    assert _run(steps=0, budget_flops=10.5 * each).total_steps == 10
    masked = DataInfo(64, 96, 0.0, 1.0, mask_flops=int(3.2 * each))
    assert _run(masked, steps=0, budget_flops=10.5 * each).total_steps == 7
    pretrained = {"pretrain__data": "hand_phantom/64", "pretrain__steps": 4}
    assert _run(masked, steps=0, budget_flops=10.5 * each, **pretrained).total_steps == 3


def test_a_budget_too_small_for_one_step_says_where_it_goes():
    each = _run(steps=1).train_flops
    masked = DataInfo(64, 96, 0.0, 1.0, mask_flops=2 * each)
    with pytest.raises(InputError, match=r"leaves no step: one costs .* the masks") as caught:
        _run(masked, steps=0, budget_flops=2.9 * each)
    assert "\n" not in str(caught.value)


def test_counting_flops_and_compiling_share_one_trace():
    traced = []

    @register_model("traced_unet")
    class Traced(TinyUNet):
        def __call__(self, images, *, train=False):
            traced.extend(["train"] * train)
            return super().__call__(images, train=train)

    run = _run(steps=1, model__name="traced_unet")
    assert run.train_flops > 0 and traced == ["train"]
    stepper = Stepper(run)
    batch = run.parallel.put_batch(synthetic_batch(8, INFO, run.task))
    stepper.step.lower(stepper.state, stepper.empty, batch)
    assert traced == ["train"]


def test_the_step_compiled_ahead_is_the_one_that_runs():
    run = _run(steps=2)
    compilations = []

    def note(event, _, **__):
        compilations.extend([event] * (event == "/jax/core/compile/backend_compile_duration"))

    stepper, batch = Stepper(run), run.parallel.put_batch(synthetic_batch(8, INFO, run.task))
    metrics = run.parallel.put_state(Watched.begin(run.task.metrics_type.empty()))
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        run.compile_ahead(0)()
        ahead = len(compilations)
        jax.block_until_ready(run.train_step_at(0)(stepper.state, metrics, batch))
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert 0 < ahead == len(compilations)


def test_a_budget_needs_pretraining_at_the_same_size():
    changes = {"pretrain__data": "hand_phantom/128", "pretrain__steps": 4}
    with pytest.raises(InputError, match="of the size of the data, 64"):
        _run(steps=0, budget_flops=1e12, **changes)
    changes["pretrain__data"] = "hand_phantom/64-small"
    assert _run(steps=0, budget_flops=1e12, **changes).total_steps > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0, "budget_flops": 1e9, "init_from": "runs/a"}, "does not know what init_from"),
        ({"steps": 5, "budget_flops": 1e9}, "steps and config.budget_flops exclude"),
        ({"pretrain__steps": 5}, "pretrain.data and config.pretrain.steps go together"),
        (
            {"pretrain__data": "hand_phantom/64", "pretrain__steps": 1, "init_from": "runs/a"},
            "pretrain.data and config.init_from exclude",
        ),
        ({"model__pretrained": "lite0"}, "is for bone_age"),
        ({"model__grown_from": "efficientnet_lite0"}, "grown_from is for bone_age"),
        ({"task": "chest"}, "unknown task 'chest': known are bone_age, hand_mask"),
        ({"data__mask_mode": "cut"}, "mask_mode='cut' must be one of"),
        ({"loss__dice_weight": -1.0}, r"dice_weight=-1\.0 must be in \[0, 1000\]"),
    ],
)
def test_configs_that_contradict_themselves(changes, words):
    with pytest.raises(InputError, match=words):
        _config(**changes)


def test_a_task_refuses_the_network_of_the_other():
    with pytest.raises(InputError, match=r"'efficientnet_b4' does not fit config.task='hand_mask'"):
        make_task(_config(model__name="efficientnet_b4"), INFO, None)
    config = cls.get_config()
    config.model.name = "unet"
    with pytest.raises(InputError, match=r"'unet' does not fit config.task='bone_age'"):
        make_task(check_config(config), INFO, None)
