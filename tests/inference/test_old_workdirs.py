"""Workdirs written before the code had packages: read as the code that wrote them read them."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.config import check_config, load_config
from boneage_jax.inference.load_trained import load_members, load_trained
from boneage_jax.training.run import load_run
from tfds_rsna.hand_phantom.render import make_phantom

FOLDER = Path(__file__).parent / "old_workdirs"
TRUTH = json.loads((FOLDER / "read_by_the_code_that_wrote_them.json").read_text())
IMAGES = [make_phantom(index, 96, "test").image for index in range(3)]


@pytest.fixture
def old(tmp_path):
    """A copy: nothing here may be written."""
    return Path(shutil.copytree(FOLDER, tmp_path / "old"))


@pytest.mark.parametrize("name", ["bone_age", "ensemble"])
def test_ages_are_those_of_the_code_that_wrote_the_run(old, name):
    found = boneage_jax.load_predictor(old / name)(IMAGES, male=[1, 0, -1])
    for key, values in TRUTH[name].items():
        np.testing.assert_allclose(np.asarray(found[key], float), values, rtol=1e-5, err_msg=key)


def test_masks_are_those_of_the_code_that_wrote_the_run(old):
    found = boneage_jax.load_segmenter(old / "unet")(IMAGES)
    assert [int(one.mask.sum()) for one in found] == TRUTH["unet"]


def test_a_network_is_read_without_its_optimizer(old, monkeypatch):
    """The files of the optimizer state may even be gone: they are never opened."""
    for folder in (old / "bone_age", *(old / "ensemble" / "members").iterdir(), old / "unet"):
        config = json.loads((folder / "config.json").read_text())
        config["finetune"]["last_blocks"] = 99  # no training has it
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(boneage_jax.InputError, match=r"config\.finetune"):
            load_run(folder)
    restored = []
    restore = ocp.CheckpointManager.restore

    def noted(self, step, args):
        restored.append(args.state)
        return restore(self, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", noted)
    members = load_members(old / "ensemble")
    assert len(members) == 2 and all(member.step == 4 for member in members)
    trained = load_trained(old / "bone_age")
    # Averages take the place of the parameters they are of, which are not read then.
    assert all(set(one.item) == {"ema_params", "batch_stats", "flops_spent"} for one in restored)
    report = json.loads((old / "bone_age" / "report.json").read_text())
    assert trained.flops_spent == report["compute"]["train_flops"]
    config = json.loads((old / "unet" / "config.json").read_text())
    load_trained(old / "unet")
    kept = "ema_params" if config["ema_decay"] else "params"
    assert set(restored[-1].item) == {kept, "batch_stats", "flops_spent"}


def test_averages_are_the_parameters_that_are_read(old):
    _, state, step = load_run(old / "bone_age", jax.devices()[:1])
    trained = load_trained(old / "bone_age", devices=jax.devices()[:1])
    assert step == trained.step == 4 and int(state.step) == 4
    jax.tree.map(np.testing.assert_array_equal, state.eval_variables, trained.variables)
    leaves = zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema_params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)


def test_a_checkpoint_without_checksums_is_read_too(old):
    path = old / "bone_age" / "checkpoints" / "4" / "_CHECKPOINT_METADATA"
    known = json.loads(path.read_text())
    del known["custom_metadata"]["checksums"]
    path.write_text(json.dumps(known))
    found = boneage_jax.load_predictor(old / "bone_age")(IMAGES, male=[1, 0, -1])
    np.testing.assert_allclose(
        found["bone_age_months"], TRUTH["bone_age"]["bone_age_months"], rtol=1e-5
    )


def test_a_flipped_bit_of_a_parameter_is_noticed(old):
    path = old / "bone_age" / "checkpoints" / "4" / "_CHECKPOINT_METADATA"
    known = json.loads(path.read_text())
    name = next(key for key in known["custom_metadata"]["checksums"] if key.startswith(".ema"))
    known["custom_metadata"]["checksums"][name] ^= 1
    path.write_text(json.dumps(known))
    with pytest.raises(boneage_jax.InputError, match=r"is damaged: state\.ema_params"):
        load_trained(old / "bone_age")


def test_an_old_run_is_finished_for_the_code_of_today(old):
    """Its config has all keys of today, and no value that today refuses."""
    config = check_config(load_config(old / "bone_age" / "config.json"))
    assert config.model.options.to_dict() == {} and config.augment.extra == ""


_READ = """
import sys
from pathlib import Path
import jax
import tests.support.tiny_backbone
from boneage_jax.runtime.distributed import join
join(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from boneage_jax.inference.load_trained import load_trained
trained = load_trained(sys.argv[3], eval_batch_size=8)
leaves = [np.asarray(x.addressable_data(0)).sum() for x in jax.tree.leaves(trained.variables)]
print(jax.process_count(), f"{sum(leaves):.6f}")
"""


def test_two_processes_read_an_old_workdir(old):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", _READ, f"localhost:{port}", str(index)),
                *(str(old / "bone_age"),),
            ],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    variables = load_trained(old / "bone_age", devices=jax.devices()[:1]).variables
    total = sum(float(np.asarray(leaf).sum()) for leaf in jax.tree.leaves(variables))
    for output, _ in outputs:
        count, found = output.splitlines()[-1].split()  # Gloo prints, too
        assert count == "2" and float(found) == pytest.approx(total, rel=1e-5)
