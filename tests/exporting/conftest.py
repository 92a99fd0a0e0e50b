"""Networks with random weights to export, and workdirs of finished trainings."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.exporting.program import Program, age_program, mask_program
from boneage_jax.inference.atlas_ages import AtlasAges
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import Trained
from boneage_jax.inference.network import build_network
from boneage_jax.inference.predictor import Predictor
from boneage_jax.inference.segmenter import Segmenter
from boneage_jax.inference.view import View
from boneage_jax.storage.layout import CALIBRATION
from boneage_jax.storage.shipped import best_network, open_network
from configs import cls, seg
from tests.support.tiny_run import with_settings
from tfds_rsna.hand_phantom.render import make_phantom

_SIDE = 64
_INFO = DataInfo(_SIDE, 100, 107.0, 60.0)
_AGE = {"mae": 7.891, "mae_low": 7.5, "mae_high": 8.2}
_REPORT = {"dataset": {"split": "validation", "splits": {"validation": 32}}, "age": _AGE}


def hand(number: int) -> np.ndarray:
    return make_phantom(number, _SIDE, "test").image.reshape(_SIDE, _SIDE)


def _trained(config: ConfigDict, changed: dict, seed: int, folder: Path) -> Trained:
    config.update_from_flattened_dict(with_settings(**changed))
    network = build_network(check_config(config), _INFO, jax.devices()[:1])
    make = jax.jit(network.task.init, static_argnums=1)
    variables = make(jax.random.key(seed), (_SIDE, _SIDE, 1))
    return Trained(network, variables, 0, 0, folder)


def shipped_view() -> View:
    """The view network of the package's best network."""
    view = Calibration.load(open_network(best_network()) / CALIBRATION).view
    assert view
    return view


def age_network(
    folder: Path,
    members: int = 1,
    view: View | None = None,
    atlas: AtlasAges | None = None,
    **changed,
) -> Program:
    """A network of random weights that takes the sex, calibrated on drawn hands."""
    changed = {"model__sex_input": True, "eval_batch_size": 16} | changed
    trained = [_trained(cls.get_config(), changed, seed, folder) for seed in range(members)]
    ages = np.linspace(20.0, 210.0, 40)
    calibration = Calibration.fit(
        ages * 0.8 + 5 + np.sin(ages),
        ages,
        map(hand, range(40)),
        "line",
        training_ages=ages,
        view=view,
        atlas=atlas,
        p_male=np.arange(40) % 2,
    )
    calibration.save(folder / CALIBRATION)
    return age_program(Predictor(trained, folder), _REPORT)


@pytest.fixture(scope="session")
def ages(tmp_path_factory):
    """Two members and flips."""
    folder = tmp_path_factory.mktemp("ages")
    return age_network(folder, members=2, model__name="tiny", test_flips=True)


@pytest.fixture(scope="session")
def masks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    changed = {"model__name": "unet", "eval_batch_size": 16}
    return mask_program(Segmenter(_trained(seg.get_config(), changed, 0, folder)), {})


@pytest.fixture(scope="session")
def squares():
    """Twelve drawn hands and a picture without one, uint8 [64, 64]."""
    return [*map(hand, range(12)), np.full((_SIDE, _SIDE), 128, np.uint8)]


@pytest.fixture(scope="session")
def workdirs(tmp_path_factory):
    """Finished trainings: bone_age, ensemble and unet."""
    old = Path(__file__).parents[1] / "inference" / "old_workdirs"
    return Path(shutil.copytree(old, tmp_path_factory.mktemp("export") / "runs"))
