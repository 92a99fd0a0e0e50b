"""Every example of docs/extending.md, run as the page shows it."""

import csv
import json
import re
import shlex
from pathlib import Path

import cv2
import flax.linen as nn
import numpy as np
import pytest
from tensorflow_datasets.core import registered

from boneage_jax import evaluate, extensions, main, predict
from boneage_jax.cli import exit_status
from boneage_jax.errors import InputError
from boneage_jax.extensions import load_extensions, register_config, register_model
from boneage_jax.inference.load_trained import load_trained
from tests.support.tiny_backbone import TinyBackbone
from tfds_rsna import prepare
from tfds_rsna.hand_phantom.render import make_phantom

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()
COMMANDS_OF = {
    "boneage_jax.main": main,
    "boneage_jax.evaluate": evaluate,
    "boneage_jax.predict": predict,
    "tfds_rsna.prepare": prepare,
}
SHORT = ["--config.steps=2", "--config.batch_size=8", "--config.eval_batch_size=12"]
TINY = [*SHORT, "--config.model.name=tiny"]


@pytest.fixture
def forgotten():
    """What this process has registered so far is forgotten, as in a process of its own."""
    registries = [v for v in vars(extensions).values() if isinstance(v, extensions.Registry)]
    kept = [dict(registry._values) for registry in registries]

    def forget():
        extensions._loaded.clear()
        registered._DATASET_REGISTRY.pop("clinic", None)
        for registry in registries:
            registry._values.clear()
        register_model("tiny")(TinyBackbone)  # in place of a network that takes long to compile

    forget()
    yield forget
    forget()
    for registry, values in zip(registries, kept, strict=True):
        registry._values.update(values)


@pytest.fixture
def here(tmp_path, monkeypatch, phantoms, forgotten):
    """A folder with the files of the page, images, and a table of stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", phantoms)
    for name, text in FILES.items():
        Path(name).write_text(text)
    folder = Path("FOLDER")
    folder.mkdir()
    rows = ["file,stage"]
    for index in range(24):
        cv2.imwrite(str(folder / f"{index}.png"), make_phantom(index, 80, "test").image)
        rows.append(f"{index}.png,{index % 5 + 1}")
    (folder / "stages.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(command: str, *more: str) -> int:
    """Runs a line of the page in this process; the last words stand for images and folders."""
    _, _, module, *words = shlex.split(command.replace("IMAGES...", "FOLDER/0.png FOLDER/1.png"))
    return exit_status(COMMANDS_OF[module].main, [*words, *more])


def commands(file: str) -> list[str]:
    found = [line for line in COMMANDS if file in line]
    assert found
    return found


def test_a_backbone_of_the_users_own(here, forgotten, capsys):
    train, read = commands("backbone.py")
    small = [*SHORT, "--config.data.config=64-small"]
    assert run(train, *small) == 0
    assert run(read) == 0
    params = load_trained("runs/own").variables["params"]["backbone"]
    assert params["Conv_0"]["kernel"].shape == (3, 3, 1, 12)  # the width of the command line
    with open("ages.csv") as file:
        assert [Path(row["file"]).name for row in csv.DictReader(file)] == ["0.png", "1.png"]
    # Nothing of a workdir is executed: without the file its names mean nothing.
    forgotten()
    capsys.readouterr()
    assert run(read.replace("--extensions=backbone.py ", "")) == 2
    line = capsys.readouterr().err.strip()
    assert "unknown model 'plain_cnn'" in line and "--extensions=FILE.py" in line
    assert "\n" not in line
    # An option that the module does not have, and one of the package's that it did not ask for.
    other = [*small, "--workdir=runs/other", "--config.model.options.depth=3"]
    assert run(train, *other) == 2
    assert "unknown option 'depth' of plain_cnn; known are" in capsys.readouterr().err


def test_an_augmentation_and_config_keys_of_the_users_own(here, forgotten, capsys):
    (train,) = commands("noise.py")
    small = [*TINY, "--config.data.config=64-small"]
    assert run(train, *small, "--config.noise.sigma=0.9") == 2
    assert "config.noise.sigma=0.9 must lie in 0..0.5" in capsys.readouterr().err
    assert run(train, *small, "--config.noise.tau=1") == 2
    assert "unknown config key" in capsys.readouterr().err
    assert run(train, *small) == 0
    config = json.loads(Path("runs/noise/config.json").read_text())
    assert config["noise"] == {"sigma": 0.05} and config["augment"]["extra"] == "gaussian_noise"


def test_registered_noise_is_added_in_training_only(here):
    import jax

    from boneage_jax.config import check_config
    from boneage_jax.data.inputs import make_inputs

    config = load_extensions("noise.py").get_config()
    config.normalize, config.augment.flip = "none", 0.0
    inputs = make_inputs(check_config(config))
    batch = {"image": np.full((64, 16, 16, 1), 128, np.uint8)}
    keys = jax.random.split(jax.random.key(0), 64)
    np.testing.assert_array_equal(inputs(batch, None)["image"], np.float32(128 / 255))
    noise = np.asarray(inputs(batch, keys)["image"]) - 128 / 255
    assert noise.std() == pytest.approx(0.02, rel=0.03) and abs(noise.mean()) < 1e-3
    # Each image by its own key, whatever its place.
    turned = np.asarray(inputs(batch, keys[::-1])["image"]) - 128 / 255
    np.testing.assert_allclose(turned[::-1], noise, atol=1e-6)


def test_a_task_and_a_data_set_of_the_users_own(here, forgotten, capsys):
    make, train, look, read = commands("stages.py")
    assert run(make) == 0
    assert "clinic/64/1.0.0 train: 24 images" in capsys.readouterr().out
    assert run(train, *TINY) == 0
    assert "stage: accuracy" in capsys.readouterr().out
    forgotten()
    assert run(look) == 0
    report = json.loads(Path("runs/stages/evaluation/validation/report.json").read_text())
    assert report["dataset"]["splits"] == {"train": 18, "validation": 6}
    assert report["stage"]["images"] == 6 and 0 <= report["stage"]["accuracy"] <= 1
    assert "Stage" in Path("runs/stages/evaluation/validation/report.html").read_text()
    with open("runs/stages/evaluation/validation/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    right = [float(row["predicted_stage"]) == int(row["stage"]) + 1 for row in rows]
    assert report["stage"]["accuracy"] == pytest.approx(np.mean(right))
    assert run(read) == 0
    with open("stages.csv") as file:
        stages = [row["predicted_stage"] for row in csv.DictReader(file)]
    assert len(stages) == 2 and set(stages) <= {"1", "2", "3", "4", "5"}
    forgotten()
    capsys.readouterr()
    assert run(look.replace("--extensions=stages.py ", "")) == 2
    assert "unknown task 'stage'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("def (", "SyntaxError"),
        ("import boneage_jax\nboneage_jax.register_model('unet')(int)", "choose another name"),
        ("import boneage_jax\nboneage_jax.register_task('a b')(int)", "letters, digits and _"),
        ("import boneage_jax\nboneage_jax.register_model('m')(3)", "must be a class or function"),
        ("import boneage_jax\nboneage_jax.register_config('x', {'a': []})", "must be a bool, int"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, forgotten, capsys, text, says):
    file = tmp_path / "own.py"
    file.write_text(text)
    argv = [f"--extensions={file}", "--workdir=none", "--output=x.csv", "x.png"]
    assert exit_status(predict.main, argv) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and says in line and "\n" not in line


def emptied(batch, keys, config):
    return {}


def halved(batch, keys, config):
    return batch | {"image": batch["image"][:, ::2]}


class Flat(nn.Module):
    """A network that forgets to pool: the losses would broadcast."""

    @nn.compact
    def __call__(self, images, *, train=False, image_keys=None):
        return nn.Dense(3)(images)


def fails(**options):
    raise OSError("no disk")


@pytest.mark.parametrize(
    ("register", "value", "key", "says"),
    [
        ("augmentation", emptied, "augment.extra", "must return its batch, with images of shape"),
        ("augmentation", halved, "augment.extra", r"shape \[8, 64, 64, 1\]"),
        ("model", Flat, "model.name", r"return features \[B, F\].*, not \[1, 64, 64, 3\]"),
        ("model", fails, "model.name", "model 'own' fails: .*OSError: no disk"),
        ("dataset", fails, "data.name", "must be registered as a class of a TFDS builder"),
    ],
)
@pytest.mark.parametrize("phantoms", ["/dev/null/data"])  # where no data can be prepared
def test_what_cannot_work_is_refused_before_data_are_prepared(
    register, value, key, says, forgotten, tiny_train
):
    getattr(extensions, f"register_{register}")("own")(value)
    with pytest.raises(InputError, match=says):
        tiny_train(**{key.replace(".", "__"): "own"})


def test_the_same_name_again_takes_the_place_of_the_first(forgotten):
    assert register_model("own")(int) is int and register_model("own")(float) is float
    assert extensions.MODELS["own"] is float
    register_config("own_section", {"a": 1})
    with pytest.raises(extensions.InputError, match="no such Python file"):
        load_extensions("missing.py")
