"""The words of a plan: numbers in units that a reader expects."""

import pytest

from boneage_jax.planning.plan_text import _collectives, _cost, _duration, _flops, _gigabytes


@pytest.mark.parametrize(("networks", "said"), [(1, "steps, 3 PFLOP"), (2, "steps x 2 networks")])
def test_the_run_of_one_network_or_several(networks, said):
    run = {"epochs": 60.0, "steps": 5911, "networks": networks, "train_flops": 3e15}
    data = {"train_images": 12_611, "source": "the prepared data"}
    (line,) = _cost({"run": run, "data": data})
    assert "60 epochs of 12,611 images (the prepared data): 5,911 " + said in line
    (_, more) = _cost({"run": run | {"evaluation_flops": 3e14}, "data": data})
    assert "its evaluations add 10.0% FLOPs" in more


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_duration(2.5), "2.5 hours"),
        (_duration(1.0), "1 hours"),
        (_duration(0.5), "30 minutes"),
        (_duration(1 / 3600), "1 seconds"),
        (_flops(1e15), "1 PFLOP"),
        (_flops(2.345e12), "2.345 TFLOP"),
        (_flops(5e8), "0.5 GFLOP"),
        (_gigabytes(16e9), "16 GB"),
        (_gigabytes(1e8), "0.1 GB"),
        (_gigabytes(99e6), "99 MB"),
    ],
)
def test_units(text, expected):
    assert text == expected


def test_what_is_reduced_is_said_of_several_chips_alone():
    found = {"count": 2, "kind": "all-reduce", "payload_bytes": 3e6, "wire_bytes_per_chip": 5e6}
    plan = {"machine": {"chips": 8}, "collectives": [found], "all_reduce_on_paper": 4e6}
    of_them, paper = _collectives(plan)
    assert "2 x all-reduce, 3 MB per step; a ring sends 5 MB per chip" in of_them
    assert "gradients and BatchNorm statistics are 4 MB" in paper
    assert not paper.startswith("collectives")
    (alone,) = _collectives(plan | {"collectives": []})
    assert alone.startswith("collectives")
    assert _collectives({"machine": {"chips": 1}, "all_reduce_on_paper": 4e6}) == []
