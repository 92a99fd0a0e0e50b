"""The peers compute what we compute: the same networks, the same FLOPs."""

import json
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.flops import count_flops
from boneage_jax.models.registry import create_model


def variables_of(model, shape):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))


def torch_flops(net, shape):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(shape))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["unet", "unet_10"])
def test_the_unets_of_torch_are_ours(name):
    pytest.importorskip("torch", reason="torch is not installed (pip install boneage_jax[peers])")
    pytest.importorskip("timm", reason="timm is not installed (pip install boneage_jax[peers])")
    from benchmarks.peers.torch_models import UNet

    model, net = create_model(name), UNet(name)
    variables = variables_of(model, (1, 64, 64, 1))
    ours = sorted(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert ours == sorted(p.numel() for p in net.parameters())
    images = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32)
    flops = count_flops(model.apply, variables, images)
    assert flops == pytest.approx(torch_flops(net, (1, 1, 64, 64)), rel=0.01)


def test_the_default_unet_of_torch_gives_our_logits():
    torch = pytest.importorskip("torch", reason="torch is not installed (boneage_jax[peers])")
    pytest.importorskip("timm", reason="timm is not installed (pip install boneage_jax[peers])")
    from benchmarks.peers.torch_models import UNet

    model, net = create_model("unet"), UNet("unet").eval()
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    params = dict(jax.jit(model.init)(jax.random.key(1), images)["params"])
    kernel = lambda name: torch.tensor(np.asarray(params[name]["kernel"]))  # noqa: E731
    state = net.state_dict()
    for part in ("down", "merge"):
        for level in range(5 if part == "down" else 4):
            weight = kernel(f"{part}{level}_0_conv").permute(3, 2, 0, 1)
            state[f"{part}.{level}.0.weight"] = weight
    for level in range(4):  # torch turns the kernel of a transposed convolution
        state[f"up.{level}.weight"] = kernel(f"up{level}").flip(0, 1).permute(2, 3, 0, 1)
        state[f"up.{level}.bias"].zero_()
    state["head.weight"] = kernel("head").permute(3, 2, 0, 1)
    state["head.bias"] = torch.tensor(np.asarray(params["head"]["bias"]))
    net.load_state_dict(state)
    stats = jax.eval_shape(model.init, jax.random.key(1), images)["batch_stats"]
    fresh = {
        layer: {"mean": np.zeros(x["mean"].shape, "f4"), "var": np.ones(x["var"].shape, "f4")}
        for layer, x in stats.items()
    }
    ours = jax.jit(model.apply)({"params": params, "batch_stats": fresh}, images)
    with torch.no_grad():
        theirs = net(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_timm_counts_the_flops_that_we_count():
    pytest.importorskip("torch", reason="torch is not installed (pip install boneage_jax[peers])")
    timm = pytest.importorskip("timm", reason="timm is not installed (boneage_jax[peers])")
    model = create_model("efficientnet_b4", num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    ours = count_flops(model.apply, variables_of(model, images.shape), images)
    theirs = torch_flops(timm.create_model("efficientnet_b4"), (1, 3, 256, 256))
    assert ours == pytest.approx(theirs, rel=0.005)


class Fake:
    """A contender whose steps take a given time."""

    def __init__(self, name, seconds, order):
        self.facts = {}
        self.name, self._seconds, self._order = name, seconds, order

    def time(self, steps):
        self._order.append(self.name)
        return steps * self._seconds


def test_contenders_take_turns_and_rounds_are_written(tmp_path):
    from benchmarks.peers.rounds import summary_rows, take_turns, write_rounds

    order: list[str] = []
    contenders = [Fake("ours", 0.5, order), Fake("peer", 1.0, order)]
    times = take_turns(contenders, rounds=3, steps=4, pause=0.0)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    rows = summary_rows(times, images=8)
    assert [row["images_per_second"] for row in rows] == [16.0, 8.0]
    assert [row["first_over_this"] for row in rows] == [1.0, 2.0]
    write_rounds(tmp_path / "out.csv", times, 8, {"size": 3}, rows)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 6
    assert json.loads((tmp_path / "out.json").read_text())["settings"] == {"size": 3}
    assert json.loads((tmp_path / "out.json").read_text())["summary"] == rows


def test_synthetic_radiographs_compress_like_radiographs():
    from boneage_jax.benchmarking.records import synthetic_radiograph

    image = synthetic_radiograph(np.random.default_rng(0), 1022, 757)
    assert image.shape == (1022, 757) and image.dtype == np.uint8
    size = len(cv2.imencode(".png", image)[1])
    assert 0.2 < size / image.size < 0.6  # 0.36 to 0.46 of 14 RSNA radiographs


def test_a_contender_answers_with_seconds(tmp_path, monkeypatch):
    from benchmarks.peers import contender

    (tmp_path / "elsewhere.py").touch()  # packages may lie in a folder that only this names
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "import time, elsewhere\n"
        "from benchmarks.peers.contender import Ready, serve\n"
        "print('noise on the standard output')\n"
        "serve(lambda settings: Ready(lambda: time.sleep(0.01), {'size': settings.size}))\n"
    )
    one = contender.Contender("sleeper", str(sleeper), contender.Settings("b4", 64, 2, "f", "t"))
    try:
        one.wait()
        assert one.facts["size"] == 64
        assert one.time(5) >= 0.05
    finally:
        one.close()
    broken = contender.Contender("broken", "none.py", contender.Settings("b4", 64, 2, "f", "t"))
    with pytest.raises(RuntimeError, match="broken ended with status"):
        broken.wait()
    broken.close()


def test_one_contender_that_fails_leaves_the_others(tmp_path, capsys):
    from benchmarks.peers import contender, train_step

    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "from benchmarks.peers.contender import Ready, serve\n"
        "serve(lambda settings: Ready(lambda: None, {}))\n"
    )
    settings = contender.Settings("b4", 64, 2, "f", "t")
    both = [contender.Contender(name, name, settings) for name in ("none.py", str(sleeper))]
    try:
        train_step.leave_out_failed(both)
        assert [one.name for one in both] == [str(sleeper)]
        assert "left out: none.py ended with status 2" in capsys.readouterr().out
    finally:
        for one in both:
            one.close()


def test_contenders_share_a_batch():
    from benchmarks.peers.contender import Settings, synthetic_batch

    batch = synthetic_batch(Settings("b4", 32, 3, "float32", "train"))
    assert batch["image"].shape == batch["mask"].shape == (3, 32, 32, 1)
    assert batch["image"].dtype == np.uint8 and batch["bone_age"].shape == (3,)
