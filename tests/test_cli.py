"""What the commands share: recipes by name and by file, flags, versions, usage as typed."""

import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import logging as absl_logging

import boneage_jax
from boneage_jax import (
    benchmark,
    calibrate,
    compare,
    evaluate,
    main,
    plan,
    predict,
    publish,
    segment,
    sweep,
)
from boneage_jax.cli import exit_status, load_recipe, parse_config
from boneage_jax.config import base_config
from boneage_jax.errors import InputError
from boneage_jax.report.config_text import config_lines
from configs import cls
from tests.support.late_errors import wait_for_late_errors
from tfds_rsna import prepare

ROOT = Path(__file__).parent.parent
DOORS = [benchmark, compare, evaluate, main, plan, predict, publish, segment, sweep, prepare]
DOORS += [calibrate]


@pytest.mark.parametrize(
    "recipe", ["cls:subset", "configs/cls.py:subset", f"{ROOT}/configs/cls.py:subset"]
)
def test_a_recipe_by_name_and_by_file(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_recipe(recipe).to_dict() == cls.get_config("subset").to_dict()


def test_a_recipe_of_the_users_own_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import boneage_jax\n"
        "def get_config(preset=''):\n"
        "    config = boneage_jax.load_recipe('cls')\n"
        "    config.batch_size = {'': 4, 'large': 64}[preset]\n"
        "    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    config, workdir, changed = parse_config(
        ["--config", "mine.py:large", "--config.epochs", "3", "--config.test_flips=True"]
    )
    assert (config.batch_size, config.epochs, config.test_flips) == (64, 3.0, True)
    assert workdir == Path("runs/mine-large") and changed == ["epochs", "test_flips"]
    # Each call gets a config of its own.
    assert parse_config(["--config=mine.py"])[0].epochs != 3.0
    with pytest.raises(InputError, match="KeyError: 'huge'"):
        parse_config(["--config=mine.py:huge"])


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("clss", "did you mean cls? shipped are bench, cls, seg"),
        ("none.py", "there is no such file"),
        ("cls:mnist", "choose one of"),
        ("seg:mnist", "choose subset or all"),
    ],
)
def test_a_recipe_that_there_is_not(recipe, says):
    with pytest.raises(InputError) as error:
        load_recipe(recipe)
    assert says in str(error.value)


@pytest.mark.parametrize("file", [None, 3, b"a.py", "", "x" * 300 + ".py", "~nobody_here/a.py"])
def test_what_is_no_file_is_refused_in_words(file):
    for load in (load_recipe, boneage_jax.load_extensions):
        with pytest.raises(InputError, match=r"must be|there is no such|not shipped|too long|home"):
            load(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("def get_config(:\n", ", line 1: SyntaxError: invalid syntax"),
        ("\n\nimport nothing_of_this_name\n", ", line 3: ModuleNotFoundError: No module named"),
        ("def get_config():\n    x = 0\n    return 1 / x\n", ", line 3: ZeroDivisionError"),
        ("def get_config():\n    return None\n", ", line 1: TypeError: .*ConfigDict, not NoneType"),
        ("\ndef get_config():\n    return {}\n", ", line 2: TypeError: .*ConfigDict, not dict"),
        ("def get_config(a, b):\n    return a\n", ", line 1: TypeError: get_config"),
        ("def get_config():\n    raise SystemExit(3)\n", ", line 2: SystemExit: 3"),
        ("import sys\nsys.exit(4)\n", ", line 2: SystemExit: 4"),
        ("def get_config():\n    return get_config()\n", ", line 2: RecursionError"),
        ("def get_config():\n    raise GeneratorExit\n", ", line 2: GeneratorExit"),
        (
            "class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E\n",
            ", line 4: E: $",
        ),
        ("raise ValueError('a\\nb' * 999)\n", r", line 1: ValueError: a ba.{296}$"),
        ("get_config = 3\n", "has no function get_config"),
        ("x = '\xff'\n".encode("latin-1"), "SyntaxError"),
        (b"x = 1\0\n", "null bytes"),
    ],
)
def test_a_recipe_file_that_fails_is_one_line_with_file_and_line(content, says, tmp_path):
    path = tmp_path / "a [recipe]: mine.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=says) as error:
        load_recipe(str(path))
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_a_file_may_have_a_colon_in_its_name(tmp_path):
    (tmp_path / "a:b.py").write_text(
        "import boneage_jax\n"
        "def get_config(preset=''):\n"
        "    config = boneage_jax.load_recipe('cls')\n"
        "    config.seed = len(preset)\n"
        "    return config\n"
    )
    assert load_recipe(f"{tmp_path}/a:b.py").seed == 0
    assert load_recipe(f"{tmp_path}/a:b.py:four").seed == 4


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--workdir"], "--workdir needs a value"),
        (["--workdir", "--config.seed=1"], "--workdir needs a value"),
        (["--workdir="], "must name a folder"),
        (["--config.seed", "--config.steps=3"], "--config.seed needs a value"),
        (["--seed=1"], "'seed'"),
        (["--conf.seed=1"], "'conf.seed'"),
        (["--workd=x"], "'workd'"),
        (["--flagfile=/etc/hostname"], "--flagfile"),
        (["--undefok=seed", "--seed=1"], "--undefok"),
        (["more"], "unexpected argument 'more'"),
        (["--config.steps=2e9"], "invalid literal for int"),
        (["--config.test_flips=maybe"], "Non-boolean"),
    ],
)
def test_arguments_that_are_wrong_are_one_line(argv, says):
    with pytest.raises(InputError) as error:
        parse_config(["--config=cls", *argv])
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("door", "argv"),
    [
        (evaluate, ["--workdir=x", "--unlock"]),
        (sweep, ["--config=cls", "--arms=levers", "--output=x", "--seed=1"]),
        (benchmark, ["--config=bench", "--comp=x"]),
        (plan, ["--config=cls", "--topology=gpu:8", "--price=3"]),
    ],
)
def test_abbreviated_flags_are_refused(door, argv, capsys):
    assert exit_status(door.main, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert argv[-1].lstrip("-").split("=")[0] in line


def test_options_without_fixed_keys():
    config, *_ = parse_config(
        [
            *("--config=cls", "--config.data.options.age_column=Age (y)"),
            *("--config.model.options.width=12", "--config.model.options.act='relu'"),
        ]
    )
    assert config.data.options.to_dict() == {"age_column": "Age (y)"}
    assert config.model.options.to_dict() == {"width": 12, "act": "relu"}


def test_show_config_prints_every_key_with_its_meaning(capsys):
    argv = ["--config=cls:subset", "--config.batch_size=48", "--show_config"]
    assert exit_status(main.main, argv) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line[2:].split(" = ")[0] for line in lines[1:]]
    assert "data.masks" in keys and len(keys) == len(set(keys)) > 90
    (changed,) = [line for line in lines if line.startswith("> ")]
    assert changed.split()[1:4] == ["batch_size", "=", "48"] and "(default 32)" in changed
    assert any(line.startswith("* data.name = 'rsna_bone_age'") for line in lines)
    bare = [key for key, line in zip(keys, lines[1:], strict=True) if "  # " not in line]
    assert bare == [], "keys without a word of meaning"


def test_nothing_is_marked_in_the_default_config():
    assert all(line.startswith("  ") for line in config_lines(base_config())[1:])


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_version_and_help_of_each_command(door, capsys):
    for flag, says in (("--version", boneage_jax.__version__), ("--help", "usage: python -m ")):
        with pytest.raises(SystemExit) as stop:
            door.main([flag])
        assert stop.value.code == 0 and says in capsys.readouterr().out
    lines = Path(door.__file__).read_text().splitlines()
    assert len(lines) <= 80


def test_usage_shows_the_command_as_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/boneage-predict"])
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: boneage-predict [--workdir=DIR|NAME]")
    assert exit_status(predict.main, ["--workdir=x"]) == 2
    line = capsys.readouterr().err.strip()
    assert line == (
        "error: command line: the following arguments are required: PATH; see boneage-predict "
        "--help"
    )
    monkeypatch.setattr(sys, "argv", ["/usr/bin/boneage"])
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: boneage [--workdir=DIR|NAME]")


def test_a_reader_that_stops_reading_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m boneage_jax.main --config=cls --show_config | head -n 1",
        shell=True, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("# >") and done.stderr == ""


def test_light_modules_do_not_load_jax():
    """Preparing data and setting up a process come before JAX, or without it."""
    names = [
        *("cli", "runtime.cpu_memory", "runtime.xla_flags", "storage.layout", "data.files"),
        *("data.masks", "data.headers", "data.dicom", "data.source", "data.splits"),
        *("data.pictures", "data.tiff", "data.mask_file"),
        *("data.uncompressed", "data.file_lock", "data.info", "data.mask_cost"),
        *("inference.background_removal", "main", "evaluate", "predict", "segment", "benchmark"),
        *("storage.shipped", "storage.published", "report.model_card"),
    ]
    code = "; ".join(f"import boneage_jax.{name}" for name in names)
    code += "; import sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_prediction_does_not_load_what_reports_and_preparing_need():
    code = "import sys; import boneage_jax.predict, boneage_jax.inference.predict_files"
    code += "; import boneage_jax.inference.predictor; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    heavy = {"scipy.stats", "tensorboardX", "jinja2", "pycocotools", "matplotlib"}
    heavy |= {"orbax.checkpoint", "huggingface_hub"}
    assert not heavy & set(done.stdout.split())


def test_the_wheel_holds_every_package():
    """The list in pyproject.toml, which also maps configs/ to boneage_jax/recipes."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("boneage_jax", "tfds_rsna")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(table["packages"]) == found | {"boneage_jax.recipes", "boneage_jax.recipes.sweeps"}
    assert table["package-dir"]["boneage_jax.recipes"] == "configs"
    shipped = {
        path
        for pattern in table["package-data"]["boneage_jax"]
        for path in (ROOT / "boneage_jax").glob(pattern)
    }
    assert shipped >= set((ROOT / "boneage_jax" / "report" / "templates").iterdir())


def test_no_package_re_exports(tmp_path):
    for path in (ROOT / "boneage_jax").rglob("*/__init__.py"):
        assert path.read_text() == "", path


def test_a_training_leaves_the_process_as_it_was(tiny_train):
    wait_for_late_errors()
    hook, verbosity = sys.unraisablehook, absl_logging.get_verbosity()
    filters = list(logging.getLogger("absl").filters)
    config = cls.get_config()
    before = config.to_dict()
    tiny_train(steps=2)
    assert sys.unraisablehook is hook and absl_logging.get_verbosity() == verbosity
    assert logging.getLogger("absl").filters == filters
    assert config.to_dict() == before
