"""The card of a published network says what its report does."""

import yaml

from boneage_jax.json_file import read_json
from boneage_jax.report.model_card import model_card
from tests.support.published_runs import OLD


def test_a_card_states_what_the_report_does(published):
    text = (published / "tiny_bone_age" / "README.md").read_text()
    report = read_json(OLD / "bone_age" / "report.json")
    _, header, body = text.split("---\n", 2)
    (model,) = yaml.safe_load(header)["model-index"]
    (result,) = model["results"]
    assert result["metrics"][0]["value"] == round(report["age"]["mae"], 4)
    assert result["dataset"]["type"] == "hand_phantom"
    for sex, row in report["age"]["by_sex"].items():
        assert f"| {sex} | {row['n']} | {row['mae']:.2f} |" in body
    for row in report["age"]["by_age"]:
        assert f"| {row['low']}–{row['high']} | {row['n']} | {row['mae']:.2f} |" in body
    assert "not for the care of patients" in body and "None" not in body and "{{" not in body
    mask = (published / "tiny_unet" / "README.md").read_text()
    assert "intersection over union" in mask and "segment --output=MASKS" in mask
    splits = read_json(OLD / "unet" / "report.json")["dataset"]["splits"]
    assert f"Trained on {splits['train']} images" in mask.partition("## Limits")[2]
    assert "Under stress" not in text


def test_a_card_shows_what_the_report_and_the_publisher_add():
    report = read_json(OLD / "bone_age" / "report.json")
    row = {"what": "gamma 2", "mae": 9.876, "change": 1.234, "accepted": 0.925}
    report["stress"] = {"images": 200, "rows": [row]}
    report["dataset"]["name"] = "my_hospital"
    card = model_card("one", report, pixels=64, data="Radiographs of one hospital.")
    assert "| gamma 2 | 9.88 | +1.23 | 92.5% |" in card and "200 images of the split" in card
    assert "Radiographs of one hospital." in card and "my_hospital" in card
