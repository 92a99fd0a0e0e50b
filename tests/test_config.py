import pytest
from ml_collections import ConfigDict

from boneage_jax.cli import parse_config
from boneage_jax.config import base_config, check_config, differences, load_config, save_config
from boneage_jax.errors import InputError
from configs import cls, seg


@pytest.mark.parametrize(
    ("recipe", "preset"),
    [
        *((cls, preset) for preset in ("", "rsna", "subset", "transfer", "scratch", "earlier")),
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
        ("data.train_split", "test", "the test split is locked"),
        ("optimizer.reference_batch", -8, "reference_batch"),
        ("optimizer.learning_rate", "fast", "learning_rate"),
    ],
)
def test_a_value_out_of_range_is_named(key, value, word):
    config = base_config()
    section, _, name = key.rpartition(".")
    target = config[section] if section else config
    with target.ignore_type():
        target[name] = value
    with pytest.raises(InputError, match=word):
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
    ("key", "value"), [("test_views", 2), ("mix.mixup", 0.4), ("mix.cutmix", 1.0), ("members", 2)]
)
def test_hand_masks_refuse_what_is_for_ages(key, value):
    config = seg.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        check_config(config)
