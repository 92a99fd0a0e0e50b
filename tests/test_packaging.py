"""What pyproject.toml, MANIFEST.in and the Dockerfile name exists, and nothing is left out."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _packages_on_disk() -> set[str]:
    files = [p for top in ("boneage_jax", "tfds_rsna") for p in (ROOT / top).rglob("*.py")]
    return {".".join(path.parent.relative_to(ROOT).parts) for path in files}


def test_every_package_is_in_the_wheel(settings):
    packages = settings["tool"]["setuptools"]["packages"]
    recipes = settings["tool"]["setuptools"]["package-dir"]
    assert set(packages) == _packages_on_disk() | set(recipes)
    for folder in recipes.values():
        assert any((ROOT / folder).glob("*.py"))


def test_package_data_names_files_that_exist(settings):
    patterns = settings["tool"]["setuptools"]["package-data"]
    kept = {p for top, names in patterns.items() for n in names for p in (ROOT / top).glob(n)}
    for top, names in patterns.items():
        for name in names:
            assert any((ROOT / top).glob(name)), f"{top}/{name}"
    tops = [ROOT / top for top in patterns]
    others = [p for top in tops for p in top.rglob("*") if p.is_file()]
    left_out = {p for p in others if p.suffix not in (".py", ".pyc") and p not in kept}
    assert not left_out


def test_the_source_archive_has_what_the_tests_need():
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    named = {word for line in lines if not line.startswith("#") for word in line.split()[1:]}
    assert {"tests", "benchmarks", "launch"} <= named  # what tests import or run
    for name in named - {"*.py[cod]", "benchmarks/results/survival/mutants"}:
        assert (ROOT / name).exists(), name


def test_the_dockerfile_installs_the_package_from_all_that_it_needs(settings):
    """Its metadata can be made only of files that are copied before it is installed."""
    text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
    before = text[: text.index("pip install --no-cache-dir --no-deps -e .")]
    copied = {
        name
        for line in re.findall(r"^COPY (.*) \S+$", before, re.MULTILINE)
        for name in line.split()
    }
    packages = settings["tool"]["setuptools"]["packages"]
    moved = settings["tool"]["setuptools"]["package-dir"]
    folders = {moved.get(name, name.replace(".", "/")).split("/")[0] for name in packages}
    readme = settings["project"]["readme"]
    assert copied == folders | {"pyproject.toml", readme, "LICENSE"}


def test_the_image_of_the_service_runs_without_rights_and_hears_signals():
    text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
    stages = dict(
        re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", text, re.DOTALL | re.MULTILINE)
    )
    assert list(stages) == ["package", "serve", "training"]  # the last one is the default
    user = re.search(r"^USER (\d+)", stages["serve"], re.MULTILINE)
    assert user and int(user[1]) > 0
    command = re.search(r"^ENTRYPOINT (\[.*\])$", stages["serve"], re.MULTILINE)
    assert json.loads(command[1])[:3] == ["python", "-m", "boneage_jax.serve"]  # no shell between
    assert "CMD" not in re.sub(r"HEALTHCHECK.*", "", stages["serve"])  # the package's own network


def test_trained_networks_are_in_the_wheel_once_they_are_there(settings, tmp_path):
    """As setuptools itself finds the files of a package."""
    setuptools = pytest.importorskip("setuptools")
    patterns = settings["tool"]["setuptools"]["package-data"]["boneage_jax"]
    weights = tmp_path / "boneage_jax" / "weights"
    inside = ("one/network.safetensors", "one/SHA256SUMS", "one/LICENSE", "one/README.md")
    inside += ("two/background/unet/network.safetensors",)
    for name in inside:
        (weights / name).parent.mkdir(parents=True, exist_ok=True)
        (weights / name).touch()
    build = setuptools.Distribution({"package_data": {"boneage_jax": patterns}})
    command = build.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}  # files of MANIFEST.in, which are in the source archive alone
    found = command.find_data_files("boneage_jax", str(tmp_path / "boneage_jax"))
    assert {Path(path).relative_to(weights).as_posix() for path in found} == set(inside)
