"""Damaged inputs for fuzz.py: how each kind is made, called and judged."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks.robustness.damaged_dicom import dicom_elements, dicom_files
from boneage_jax.config import base_config, check_config
from boneage_jax.data.files import read_grey
from boneage_jax.data.info import DataInfo
from boneage_jax.inference.load_trained import Trained, load_trained
from boneage_jax.training.run import build_run
from tfds_rsna.hand_mask.pairs import find_pairs
from tfds_rsna.radiograph_folder.columns import Columns
from tfds_rsna.radiograph_folder.table import read_table as read_folder_table
from tfds_rsna.rsna_bone_age.labels import MAX_AGE, read_table

ROOT = Path(__file__).parents[2]
Make = Callable[[random.Random], tuple[str, Callable[[], str]]]


def damage(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Bytes with some of them changed, and what was done."""
    at = draw.randrange(len(data))
    end = min(at + draw.randrange(1, 65), len(data))
    other = bytes(draw.randrange(256) for _ in range(end - at))
    flipped = bytes([data[at] ^ (1 << draw.randrange(8))])
    return draw.choice(
        [
            (f"a bit of byte {at}", data[:at] + flipped + data[at + 1 :]),
            (f"bytes {at}-{end} random", data[:at] + other + data[end:]),
            (f"bytes {at}-{end} zero", data[:at] + bytes(end - at) + data[end:]),
            (f"cut at byte {at}", data[:at]),
            (f"bytes {at}-{end} removed", data[:at] + data[end:]),
            (f"bytes {at}-{end} twice", data[:end] + data[at:]),
            ("empty", b""),
            ("nothing", data),  # the control: what is sound must be taken
        ]
    )


def images(folder: Path) -> Make:
    """Images of all formats. Accepted: a grey image; damage inside compressed pixels may pass."""
    picture = np.random.default_rng(0).integers(0, 256, (60, 40), np.uint8)
    sound = {form: cv2.imencode(form, picture)[1].tobytes() for form in (".png", ".jpg", ".bmp")}
    for form, values in ((".tif", picture), (".16.tif", picture.astype(np.uint16) * 9)):
        sound[form] = cv2.imencode(".tif", values)[1].tobytes()  # LZW
    sound |= {f".{kind}.dcm": data for kind, data in dicom_files().items()}
    folder.mkdir(parents=True)

    def make(draw: random.Random) -> tuple[str, Callable[[], str]]:
        form = draw.choice(sorted(sound))
        what, data = damage(sound[form], draw)
        path = folder / f"image{draw.choice([form, form, form, '.png', '.dcm'])}"

        def call() -> str:
            path.write_bytes(data)
            grey = read_grey(path)
            ok = grey.dtype == np.uint8 and grey.ndim == 2 and 0 < grey.size <= 10**8
            return "" if ok else f"{grey.dtype} {grey.shape}"

        return f"{path.name}: {what}", call

    return make


def rsna_tables(folder: Path) -> Make:
    """Label tables of the RSNA data. Accepted: every label that is left is possible and unmoved."""
    rows = {1377 + i: (12 * i % 228 + 1, i % 2 == 0) for i in range(12)}
    header = "id,boneage,male"
    lines = [f"{key},{age},{male}" for key, (age, male) in rows.items()]
    sound = "\n".join([header, *lines]) + "\n"
    wrong = {
        1: ["", "nan", "inf", "-3", "241", "1e9", "twelve", "0x10", "1 2", "True"],
        2: ["", "x", "2", "-1", "nan", "maybe"],
        0: ["", "x", "1377.5", "-", "1e400"],
    }

    def refusable(draw: random.Random) -> tuple[str, bytes]:
        """A cell that no reader may take; it must be refused."""
        number, column = draw.randrange(len(lines)), draw.choice(sorted(wrong))
        cells = lines[number].split(",")
        cells[column] = draw.choice(wrong[column])
        changed = [*lines[:number], ",".join(cells), *lines[number + 1 :]]
        return f"cell {cells[column]!r}", "\n".join([header, *changed]).encode()

    def make(draw: random.Random) -> tuple[str, Callable[[], str]]:
        must_refuse = draw.random() < 0.5
        what, data = refusable(draw) if must_refuse else damage(sound.encode(), draw)

        def call() -> str:
            table = read_table(data, "boneage-training-dataset.csv")
            if must_refuse:
                return "a wrong cell was taken"
            if table is None:
                return "a table of a known name was passed over"
            ages = [label.bone_age for label in table.labels.values()]
            known = all(math.isfinite(age) and 0 <= age <= MAX_AGE for age in ages)
            return "" if known and ages else f"impossible ages {ages}"

        return what, call

    return make


def folder_tables(folder: Path) -> Make:
    """The CSV of a radiograph folder, its images beside it."""
    folder.mkdir(parents=True)
    names = [f"{number:03}.png" for number in range(8)]
    picture = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    for name in names:
        (folder / name).write_bytes(picture)
    lines = [f"{name},{10 + 7 * i},{'MF'[i % 2]}" for i, name in enumerate(names)]
    sound = "\n".join(["file,age,sex", *lines]).encode()
    path = folder / "labels.csv"

    def make(draw: random.Random) -> tuple[str, Callable[[], str]]:
        what, data = damage(sound, draw)

        def call() -> str:
            path.write_bytes(data)
            rows, *_ = read_folder_table(path, folder, Columns(age_unit="months"))
            bad = [row for row in rows if not 0 <= row.age <= 1440 or row.male not in (-1, 0, 1)]
            lost = [row.key for row in rows if not row.path.is_file()]
            return f"{bad or lost or 'no rows'}" if bad or lost or not rows else ""

        return what, call

    return make


def coco(folder: Path) -> Make:
    """Hand masks as COCO JSON. Accepted: masks of the size of their images."""
    (folder / "images").mkdir(parents=True)
    size = (40, 30)
    for number in range(2):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), np.zeros(size, np.uint8))
    sound = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": size[0], "width": size[1]} for n in (0, 1)
        ],
        "categories": [{"id": 1, "name": "hand"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 1, "segmentation": [[2, 2, 20, 2, 20, 30]]},
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"size": list(size), "counts": [100, 500, 600]},
            },
        ],
    }
    strange = [
        None,
        [],
        {},
        -1,
        1e308,
        float("nan"),
        "x",
        True,
        [[1]],
        [[0, 0, 1]],
        10**30,
        {"a": 1},
    ]

    def swapped(draw: random.Random) -> tuple[str, bytes]:
        """A value anywhere in the file replaced by one of another kind."""
        content = json.loads(json.dumps(sound))
        places = []

        def walk(node: object, where: str) -> None:
            items = enumerate(node) if isinstance(node, list) else node.items()  # type: ignore
            for key, value in items:
                places.append((node, key, f"{where}/{key}"))
                if isinstance(value, list | dict):
                    walk(value, f"{where}/{key}")

        walk(content, "")
        node, key, where = draw.choice(places)
        value = draw.choice(strange)
        node[key] = value  # type: ignore[index]
        return f"{where} = {value!r}", json.dumps(content).encode()

    def make(draw: random.Random) -> tuple[str, Callable[[], str]]:
        random_bytes = draw.random() < 0.4
        what, data = damage(json.dumps(sound).encode(), draw) if random_bytes else swapped(draw)

        def call() -> str:
            (folder / "hands.json").write_bytes(data)
            pairs, _ = find_pairs(folder, images="images", coco="hands.json")
            masks = [pair.read_mask() for pair in pairs]
            ok = all(mask.shape == size and mask.dtype == bool for mask in masks)
            return "" if ok else f"{[(m.shape, m.dtype) for m in masks]}"

        return what, call

    return make


def overrides(folder: Path) -> Make:
    """Config keys and values on the command line, up to the objects of a run."""
    from boneage_jax.cli import parse_config

    known = list(flatten_dict(base_config().to_dict(), sep="."))
    values = ["", "nan", "inf", "-inf", "-1", "0", "1e400", "x", "None", "True", "[]", "{}", "1,2"]
    values += ["../../x", "é", "'", '"', "0.5", "3", "1e-300", "999999999999999999999"]
    info = DataInfo(64, 100, 120.0, 40.0)

    def make(draw: random.Random) -> tuple[str, Callable[[], str]]:
        given = []
        for _ in range(draw.randrange(1, 4)):
            key = draw.choice(known)
            if draw.random() < 0.1:
                key = draw.choice([key[:-1], f"{key}.x", "", "__class__", key.upper()])
            given.append(f"--config.{key}={draw.choice(values)}")

        def call() -> str:
            argv = ["--config=configs/cls.py", *given]
            config, _, _ = parse_config(argv)
            config = check_config(config)
            if config.budget_flops:
                return ""  # would trace the network
            run = build_run(config, info, jax.devices()[:1])
            return "" if run.total_steps >= 1 else f"{run.total_steps} steps"

        return " ".join(given), call

    return make


def checkpoints(folder: Path) -> Make:
    """A file of a run damaged. Accepted: the very parameters that were saved."""
    sound, copy = folder / "sound", folder / "copy"
    train(sound)
    whole = load_trained(sound, devices=jax.devices()[:1])
    files = sorted(p.relative_to(sound) for p in (sound / "checkpoints").rglob("*") if p.is_file())
    files += [Path("config.json"), Path("facts.json")] * 3

    def make(draw: random.Random) -> tuple[str, Callable[[], str]]:
        name = draw.choice([file for file in files if (sound / file).exists()])
        what, data = damage((sound / name).read_bytes() or b"\0", draw)
        gone = draw.random() < 0.1

        def call() -> str:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(sound, copy)
            if gone:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(data)
            return _difference(whole, load_trained(copy, devices=jax.devices()[:1]))

        return f"{name}: {'removed' if gone else what}", call

    return make


def _difference(whole: Trained, other: Trained) -> str:
    if whole.step != other.step:
        return f"step {other.step}"
    trees = [jax.tree.structure(one.variables) for one in (whole, other)]
    if trees[0] != trees[1]:
        return "other parameters"
    same = jax.tree.map(np.array_equal, whole.variables, other.variables)
    return "" if all(jax.tree.leaves(same)) else "other values of the parameters"


def train(workdir: Path) -> None:
    """A run of two steps, in a process of its own."""
    with tempfile.TemporaryDirectory() as data:
        environment = {"TFDS_DATA_DIR": data} | dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
        keys = {"data.config": "64-small", "model.name": "efficientnet_lite0", "batch_size": 8}
        keys |= {"steps": 2, "ema_decay": 0.9}  # type: ignore[dict-item]
        given = [f"--config.{key}={value}" for key, value in keys.items()]
        command = [sys.executable, "-m", "boneage_jax.main", "--config=configs/cls.py", *given]
        subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, check=True)


KINDS: dict[str, Callable[[Path], Make]] = {
    "image": images,
    "dicom": dicom_elements,
    "rsna_csv": rsna_tables,
    "folder_csv": folder_tables,
    "coco": coco,
    "override": overrides,
    "checkpoint": checkpoints,
}
