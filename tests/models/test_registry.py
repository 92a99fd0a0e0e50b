"""Models by name: what is known, and what is said about the unknown."""

import jax.numpy as jnp
import pytest

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.models.registry import NAMES, create_model


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("efficientnet")])
def test_options_reach_the_model(name):
    model = create_model(name, num_classes=3, dtype=jnp.bfloat16, padding="symmetric")
    assert isinstance(model, EfficientNet)
    assert (model.variant, model.num_classes, model.padding) == (name, 3, "symmetric")
    assert model.dtype == jnp.bfloat16


def test_an_unknown_name_gets_the_near_one_and_the_whole_list():
    with pytest.raises(InputError, match=r"did you mean efficientnet_b4\?") as info:
        create_model("EfficientNetB4")
    assert all(name in str(info.value) for name in NAMES)
    assert "\n" not in str(info.value)
    with pytest.raises(InputError, match="known are"):
        create_model("zzz")


def test_an_unknown_option_is_named():
    with pytest.raises(InputError, match=r"'drop_path'.*drop_path_rate"):
        create_model("efficientnet_b0", drop_path=0.1)


def test_options_of_the_module_system_are_not_options():
    with pytest.raises(InputError, match="parent"):
        create_model("efficientnet_b0", parent=None)
