"""What a graph puts right and rejects is what `View` does to the same squares."""

import jax
import numpy as np
import pytest

from boneage_jax.data.files import fit_square
from boneage_jax.evaluation.stresses import STRESSES
from boneage_jax.exporting.put_right import is_single_hand, put_right
from boneage_jax.exporting.stablehlo import reader, to_stablehlo
from boneage_jax.inference.view import turn
from tests.exporting.conftest import age_network
from tests.inference.test_view import silhouette, view  # noqa: F401  (a fixture)
from tfds_rsna.hand_phantom.render import make_phantom

_SIDE = 96  # of the phantoms that the view network was fitted to
_CHANGES = (
    *("untouched", "inverted", "turned by 90, inverted", "white frame", "half size in a corner"),
    *("turned by 45", "turned by 90", "turned by 180", "turned by 225", "doubled"),
)


def _hand(number):
    """A drawn hand that is taller than it is wide."""
    return make_phantom(number, _SIDE, "test").image.reshape(_SIDE, _SIDE)[:, 6:-8]


@pytest.fixture(scope="module")
def squares():
    rng = np.random.default_rng(0)
    return {
        fit: np.stack(
            [
                fit_square(STRESSES[change].draw(_hand(n), rng), _SIDE, fit)
                for change in _CHANGES
                for n in range(3)
            ]
            + [np.full((_SIDE, _SIDE), 90, np.uint8), np.eye(_SIDE, dtype=np.uint8) * 200]
            + [fit_square(silhouette(_hand(n)), _SIDE, fit) for n in range(3)]
        )
        for fit in ("pad", "stretch")
    }


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_puts_right_what_the_view_network_does(view, squares, fit):  # noqa: F811
    wanted, notes = [], []
    for square in squares[fit]:
        right, said = view.put_right(square)
        wanted.append(fit_square(right, _SIDE, fit))
        notes += said
    assert len(set(notes)) >= 6 and notes.count("small hand: cut out") >= 3
    found = jax.jit(lambda x: put_right(view, x, fit))(squares[fit][..., None])
    away = np.abs(np.asarray(found)[..., 0].astype(int) - np.stack(wanted))
    assert away.max() <= 1 and away.mean() < 0.05  # OpenCV's weights have 11 bits, or 5


def test_judges_as_the_view_network_does(view, squares):  # noqa: F811
    wanted = view.judge(list(squares["pad"]))[0]
    found = jax.jit(lambda x: is_single_hand(view, x))(squares["pad"][..., None])
    assert found.tolist() == wanted.tolist() and 0 < wanted.sum() < len(wanted)


def test_what_is_right_is_not_touched(view, squares):  # noqa: F811
    hands = np.stack([turn(_hand(n), 0) for n in range(3)])
    hands = np.stack([fit_square(hand, _SIDE) for hand in hands if not view.put_right(hand)[1]])
    found = jax.jit(lambda x: put_right(view, x, "pad"))(hands[..., None])
    assert len(hands) and np.array_equal(np.asarray(found)[..., 0], hands)


def test_files_put_right_and_reject(view, tmp_path):  # noqa: F811
    """ONNX and StableHLO beside `predict`: the age of a turned hand is that of the hand."""
    pytest.importorskip("flatbuffers")
    program = age_network(tmp_path, view=view, model__name="tiny", model__sex_input=False)
    hands = [make_phantom(n, 64, "test").image.reshape(64, 64) for n in range(4)]
    given = [*hands, *(turn(hand, 2 * n) for n, hand in enumerate(hands)), 255 - hands[0]]
    given.append(np.full((64, 64), 90, np.uint8))
    wanted = program.read([program.prepare(square, "") for square in given])
    assert any((program.prepare(x, "") != x).any() for x in given) and program.puts_right
    images = np.stack(given)[..., None]
    found = {"stablehlo": reader(to_stablehlo(program))(images)}
    if jax.__version__.startswith("0.10."):
        found["onnx"] = _onnx(program, images)
    for rows in found.values():
        for name in program.outputs:
            np.testing.assert_allclose(rows[name][:-1], wanted[name][:-1], atol=0.05)
        assert rows["accepted"].tolist() == wanted["accepted"].tolist()
        assert not rows["accepted"][-1]
    np.testing.assert_allclose(
        *(rows["bone_age_months"][:-1] for rows in found.values()), atol=1e-3
    )


def _onnx(program, images):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from boneage_jax.exporting.onnx_graph import to_onnx

    content = to_onnx(program).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return dict(zip(program.outputs, session.run(None, {"image": images}), strict=True))
