"""JAX_ENABLE_X64=1, which other code of a user's may need, leaves networks in float32."""

import jax
import pytest

from boneage_jax import load_recipe
from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.training.nonfinite import Watched
from boneage_jax.training.run import build_run


@pytest.mark.parametrize(
    ("recipe", "model"), [("cls", "efficientnet_lite0"), ("cls", "tiny"), ("seg", "unet_10")]
)
def test_parameters_and_state_keep_their_dtype(recipe, model, one_device):
    config = load_recipe(recipe)
    config.model.name, config.steps, config.ema_decay = model, 2, 0.9
    run = build_run(check_config(config), DataInfo(32, 64, 100.0, 40.0), one_device)

    def dtypes(tree):
        return jax.tree.map(lambda leaf: str(leaf.dtype), tree)

    narrow = dtypes(jax.eval_shape(run.fresh_state))
    with jax.enable_x64(True):
        wide = jax.eval_shape(run.fresh_state)
        step = run._pure_steps(run.phases[-1].stretch)
        empty = run.task.metrics_type.empty()
        watched = Watched.begin(empty)
        after, metrics = jax.eval_shape(step, wide, watched, run.batch_shapes())
    assert dtypes(metrics) == dtypes(watched), "the next step would be compiled again"
    assert dtypes(wide) == narrow and dtypes(after) == narrow
    assert {dtype for dtype in jax.tree.leaves(narrow.params)} == {"float32"}
