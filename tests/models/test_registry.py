"""Models by name: what is known, and what is said about the unknown."""

import jax.numpy as jnp
import numpy as np
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


WRONG = [
    *(("efficientnet_b0", {"dropout": value}) for value in (5, -0.1, float("nan"), "a", True)),
    *(("efficientnet_b0", {"bn_momentum": value}) for value in ("a", 2, None)),
    *(("efficientnet_b0", {"frozen": value}) for value in (("foo",), frozenset({"foo"}), "stem")),
    *(("efficientnet_b0", {"dtype": value}) for value in ("int8", "x", None, 3)),
    *(("efficientnet_b0", {"num_classes": value}) for value in (-1, 1.5, True, 10**9)),
    *(("efficientnet_b0", {"padding": value}) for value in ("valid", None, ["same"])),
    ("efficientnet_b0", {"depthwise": "fft"}),
    ("efficientnet_b0", {"remat": 1}),
    ("efficientnet_b0", {"bn_epsilon": 0}),
    ("efficientnet_b0", {"bn_axis_name": 3}),
    ("efficientnet_b0", {"images_per_device": -1}),
    ("efficientnet_b0", {"images_per_device": 1.5}),
    ("efficientnet_b0", {"drop_path_rate": 1.0}),
    ("unet", {"bn_momentum": -1}),
    ("unet", {"dtype": "int32"}),
]


@pytest.mark.parametrize(("name", "options"), WRONG)
def test_a_value_that_no_network_accepts_is_refused_at_once(name, options):
    with pytest.raises(InputError, match=f"of {name} must be") as error:
        create_model(name, **options)
    (option,) = options
    assert str(error.value).startswith(f"{option}=")


def test_values_that_networks_accept():
    create_model("efficientnet_b0", num_classes=np.int64(3), dropout=None, dtype="bfloat16")
    create_model("efficientnet_b0", frozen=frozenset({"stem", "block1a_project"}), dropout=0)
    create_model("unet", dtype=jnp.float16, bn_axis_name="batch")


@pytest.mark.parametrize("name", [None, 3, b"unet", ["unet"], EfficientNet])
def test_a_name_is_a_text(name):
    with pytest.raises(InputError, match="must be a name"):
        create_model(name)
