import math

import pytest
from ml_collections import ConfigDict

from boneage_jax.benchmarking.settings import bench_config, check_bench
from boneage_jax.cli import parse_config
from boneage_jax.config import base_config, check_config, load_config, save_config
from boneage_jax.errors import InputError
from boneage_jax.ranges import CHOICES, RANGES, check_value
from boneage_jax.storage.config_changes import differences
from configs import cls, seg


@pytest.mark.parametrize(
    ("recipe", "preset"),
    [
        *(
            (cls, preset)
            for preset in (
                *("", "rsna", "rsna10t", "rsna30t", "rsna100t", "rsna300t", "rsna1p"),
                *("subset", "transfer", "finetune", "robust", "scratch", "earlier"),
            )
        ),
        *((seg, preset) for preset in ("", "subset", "all")),
    ],
)
def test_every_recipe_passes_its_own_checks(recipe, preset):
    assert check_config(recipe.get_config(preset)).is_locked


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(InputError, match="rsna"):
        cls.get_config("mnist")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("batch_size", 0, "batch_size"),
        ("epochs", -1.0, "epochs"),
        ("ema_decay", 1.0, "ema_decay"),
        ("parallel", "tpu", "parallel"),
        ("select", "newest", "select"),
        ("loss.age", "l3", "loss.age"),
        ("loss.sigma", 0.0, "loss.sigma"),
        ("loss.bins", 1, "loss.bins"),
        ("members", 0, "members"),
        ("nonfinite", "ignore", "skip, rollback, stop"),
        ("nonfinite_limit", 0, "nonfinite_limit"),
        ("stall_seconds", -1.0, "stall_seconds"),
        ("model.padding", "valid", "same, symmetric"),
        ("model.depthwise", "fft", "auto, lax, shift, fused"),
        ("test_views", -1, "test_views"),
        ("bias_correction", "curve", "bias_correction"),
        ("data.eval_split", "test", "the test split is locked"),
        ("data.eval_split", "train", "is data.train_split too"),
        ("data.train_split", "test", "the test split is locked"),
        ("optimizer.reference_batch", -8, "reference_batch"),
        ("optimizer.learning_rate", "fast", "learning_rate"),
        ("optimizer.clip_norm", -1.0, "clip_norm"),  # would turn the gradient round
        ("optimizer.beta2", 1.0, "beta2"),
        ("finetune.backbone_weight_decay", -3.0, "or -1"),
        ("model.bn_momentum", 2.0, "bn_momentum"),
        ("batch_size", 99_999_999_999, "batch_size"),
        ("seed", True, "seed"),
        ("seed", 10**500, "seed"),
        pytest.param("seed", 10**5000, "a number of thousands of digits must be in", id="digits"),
        pytest.param("parallel", "x" * 10**6, r"^.{,300}$", id="long"),
        ("data.raw_dir", "a\0b", "NUL"),
        ("data.train_split", "", "data.train_split"),
        ("model.name", str, "register_model gives it a name"),
    ],
)
def test_a_value_out_of_range_is_named(key, value, word):
    with pytest.raises(InputError, match=word):
        check_config(_with(base_config(), key, value))


def _with(config, key, value):
    section, _, name = key.rpartition(".")
    target = config[section] if section else config
    with target.ignore_type():
        target[name] = value
    return config


def _flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


DEFAULTS = dict(_flat(bench_config().to_dict()))
NUMBERS = [key for key, value in DEFAULTS.items() if type(value) in (int, float)]
# Names that are looked up, lists, folders: checked where they are used.
FREE_TEXT = {
    *(
        "task",
        "init_from",
        "test_zooms",
        "pretrain.data",
        "progressive.sizes",
        "progressive.fractions",
    ),
    *("data.name", "data.config", "data.raw_dir", "data.data_dir", "data.masks"),
    *(
        "data.train_split",
        "data.eval_split",
        "augment.extra",
        "model.name",
        "model.pretrained",
        "model.grown_from",
    ),
    *("bench.batch_sizes", "bench.image_sizes"),
}


def test_every_number_has_a_range_and_every_name_its_choices():
    assert set(NUMBERS) == set(RANGES)
    texts = {key for key, value in DEFAULTS.items() if type(value) is str}
    assert texts == set(CHOICES) | FREE_TEXT
    for key, value in DEFAULTS.items():
        check_value(key, value)
    assert all(math.isfinite(end) for found in RANGES.values() for end in found[:2])


@pytest.mark.parametrize("key", NUMBERS)
def test_beyond_both_ends_of_a_range(key):
    low, high, ends, _ = RANGES[key]
    of = type(DEFAULTS[key])
    wrong = [of(low - 2), of(high + max(abs(high), 1))]
    wrong += [of(low)] if ends[0] == "(" else []
    wrong += [of(high)] if ends[1] == ")" else []
    if of is float:
        wrong += [math.nan, math.inf, -math.inf]
    for value in wrong:
        config = _with(bench_config(), key, value)
        with pytest.raises(InputError) as error:
            check_bench(config)
        line = str(error.value)
        assert f"config.{key}={value!r}" in line and "\n" not in line


def test_a_dict_is_a_config_and_nothing_else_is():
    config = base_config()
    assert check_config(config.to_dict()).to_dict() == check_config(config).to_dict()
    for wrong in (None, "cls", 3, [], {}, {1: 2}, {"a.b": 3}):
        with pytest.raises(InputError, match=r"base_config|load_recipe|unknown config key"):
            check_config(wrong)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"members": 1000, "seed": 2**32 - 1}, "at most 4294966 for 1000 members"),
        ({"member_flops": 1.0, "budget_flops": 4e18}, r"networks, which must be in \[1, 1000\]"),
    ],
)
def test_ensembles_that_no_run_finishes(changes, says):
    config = base_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=says):
        check_config(config)


def test_a_config_that_holds_itself_is_refused():
    config = base_config()
    with config.unlocked(), config.ignore_type():
        config.loss = config
    with pytest.raises(InputError, match="config cannot be read: maximum recursion"):
        check_config(config)


def test_unknown_and_missing_keys_are_named():
    config = base_config()
    config.batchsize = 3
    with pytest.raises(InputError, match="batchsize"):
        check_config(config)
    config = base_config()
    del config.optimizer.name
    with pytest.raises(InputError, match=r"optimizer\.name"):
        check_config(config)


def test_per_device_statistics_need_pmap():
    config = base_config()
    config.model.bn_sync = False
    with pytest.raises(InputError, match="pmap"):
        check_config(config)


def test_json_round_trip_changes_nothing(tmp_path):
    config = base_config()
    save_config(tmp_path / "config.json", config)
    loaded = load_config(tmp_path / "config.json")
    assert differences(config, loaded) == []
    assert check_config(loaded).to_dict() == config.to_dict()


def test_differences_name_the_key_but_not_runtime_keys():
    old, new = base_config(), base_config()
    new.log_every, new.model.name = 99, "efficientnet_b0"
    assert differences(old, new) == ["model.name: 'efficientnet_b4' -> 'efficientnet_b0'"]


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_config_is_one_clear_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_config(path)


@pytest.mark.parametrize(
    ("recipe", "key", "where"),
    [("cls", "loss.agee", "boneage_jax/config.py"), ("bench", "bench.size", "settings.py")],
)
def test_an_unknown_key_names_the_file_that_lists_them(recipe, key, where):
    argv = [f"--config=configs/{recipe}.py", f"--config.{key}=1"]
    with pytest.raises(InputError, match=where):
        parse_config(argv)


def test_a_folder_without_run_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        load_config(tmp_path / "config.json")


def test_check_config_copies():
    config = base_config()
    checked = check_config(config)
    config.batch_size = 1
    assert checked.batch_size != 1 and isinstance(checked, ConfigDict)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("test_views", 2), ("test_zooms", "1,1.1"), ("test_atlas", 4.0)),
        *(("mix.mixup", 0.4), ("mix.cutmix", 1.0), ("members", 2)),
    ],
)
def test_hand_masks_refuse_what_is_for_ages(key, value):
    config = seg.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        check_config(config)
