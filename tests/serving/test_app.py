"""The service as its clients see it: answers, refusals, many at once, and what the log keeps."""

import csv
import io
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax.inference.predict_files import write_predictions
from boneage_jax.serving.answers import Health, Prediction, Problem, bad_row, good_row
from boneage_jax.serving.app import build_app
from boneage_jax.serving.batches import load_ladder
from boneage_jax.serving.limits import Limits
from tests.inference.test_predictor import WORKDIR
from tests.support.dicom_files import dicom_file
from tfds_rsna.hand_phantom.render import make_phantom

TOKEN = "0123456789abcdef-secret"
NAME = "Smith^John 1.2.840.png"


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


HANDS = [png(make_phantom(index, 120, "test").image) for index in range(8)]
FLAT = [png(np.full((9, 9), level, np.uint8)) for level in range(200)]


@pytest.fixture(scope="module")
def ladder():
    """A network that takes the sex; 1 and 8 images a step are 4 and 8 on the four test devices."""
    return load_ladder(str(WORKDIR), batch_size=8)


@pytest.fixture(scope="module")
def client(ladder):
    limits = Limits(upload_bytes=100_000, pixels=20_000)
    with TestClient(build_app(ladder, limits)) as client:
        yield client


def send(client, content, name="hand.png", **options):
    return client.post("/predict", files={"file": (name, content)}, **options)


def rows_of_predict(predictor, contents, sexes, folder):
    """What `predict` writes for files of these contents, by name."""
    files = [folder / name for name in contents]
    for file in files:
        file.write_bytes(contents[file.name])
    write_predictions(predictor, files, sexes, folder / "rows.csv")
    rows = csv.DictReader(io.StringIO((folder / "rows.csv").read_text()))
    return {row["file"].removeprefix(f"{folder}/"): row for row in rows}


def test_an_answer_is_the_row_of_predict(client, ladder, tmp_path):
    sexes = {"a": 1, "b": 0}
    contents = dict(zip(("a.png", "b.png", "c.png"), HANDS, strict=False))
    expected = rows_of_predict(ladder[-1], contents, sexes, tmp_path)
    for name, sex in (("a.png", "M"), ("b.png", "female"), ("c.png", None)):
        data = {"male": sex} if sex else {}
        found = send(client, contents[name], f"C:\\scans\\{name}", data=data)
        assert found.status_code == 200
        answer, row = found.json(), expected[name]
        Prediction.model_validate(answer, strict=True)
        assert list(answer) == list(row)  # in the order of the columns
        for key in ("bone_age_months", "low_months", "high_months", "p_male"):
            assert answer[key] == pytest.approx(float(row[key]), rel=2e-3), key
        assert answer["accepted"] is (row["accepted"] == "True")
        assert (answer["file"], answer["error"], answer["note"]) == (name, "", row["note"])
    assert answer["note"].endswith("sex unknown: the network's own estimate is used")


BAD = {
    "empty.png": b"",
    "text.png": b"no image",
    "cut.png": HANDS[0][:500],
    "changed.png": HANDS[0][:200] + b"x" + HANDS[0][201:],
    "cut.jpg": cv2.imencode(".jpg", np.zeros((50, 50), np.uint8))[1].tobytes()[:100],
    "cut.dcm": bytes(128) + b"DICM" + bytes(40),
    "no_dicom.dcm": b"nothing like it",
}


def test_a_bad_picture_gets_the_line_of_predict(client, ladder, tmp_path):
    expected = rows_of_predict(ladder[-1], BAD, {}, tmp_path)
    for name, content in BAD.items():
        found = send(client, content, name)
        assert found.status_code == 422
        answer = found.json()
        Prediction.model_validate(answer, strict=True)
        assert answer["error"] == expected[name]["error"].removeprefix(f"{tmp_path}/")
        assert answer["error"].startswith(f"{name}: ") and "\n" not in answer["error"]
        assert answer["bone_age_months"] is None and answer["accepted"] is False
    assert send(client, HANDS[0]).status_code == 200


def test_the_header_of_a_dicom_file_tells_the_sex(client):
    image = make_phantom(0, 120, "test").image
    said, told = (
        send(client, dicom_file(image, PatientSex=sex), "a.dcm", data=data).json()
        for sex, data in (("", {"male": "M"}), ("M", {}))
    )
    assert told["bone_age_months"] == said["bone_age_months"]
    assert "sex of the DICOM header is used" in told["note"]
    assert "sex" not in said["note"]
    tags = {"PatientAge": "120M", "ImageLaterality": "L", "PixelSpacing": [0.1, 0.2]}
    row = send(client, dicom_file(image, PatientSex="F", **tags), "a.dcm").json()
    Prediction.model_validate(row, strict=True)
    assert (row["sex"], row["chronological_age_months"], row["laterality"]) == ("F", 120, "L")
    assert row["pixel_spacing_mm"] == [0.1, 0.2]
    assert row["difference_months"] == pytest.approx(row["bone_age_months"] - 120, abs=0.1)
    assert said["chronological_age_months"] is None and "sex" not in send(client, HANDS[0]).json()


def test_a_picture_of_too_many_pixels_is_refused_unread(client):
    found = send(client, png(np.zeros((200, 101), np.uint8)))
    assert found.status_code == 422
    line = "hand.png: it claims 101 x 200 pixels; more than 0.02 million is no radiograph"
    assert found.json()["error"] == line


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        ({}, 415, "send the radiograph as field 'file' of a form, multipart/form-data"),
        ({"json": {"file": 1}}, 415, "multipart/form-data"),
        ({"files": {"image": ("a.png", b"x")}}, 422, "unknown field 'image'; fields are file and"),
        ({"files": {"male": ("a", b"M")}}, 422, "no field 'file' with a file"),
        ({"files": {"file": (None, b"x")}}, 422, r"e\.g\. curl -F file=@hand\.png"),
        ({"files": [("file", ("a", b"x"))] * 2}, 400, "Too many files"),
        ({"data": {"sex": "M"}}, 422, "unknown field 'sex'"),
        (
            {"data": {}, "params": {"male": "M"}},
            422,
            "'male' in the address is not read; send file",
        ),
        ({"data": {"male": "maybe"}}, 422, "male='maybe' must be M/F, True/False or 1/0"),
        ({"data": {"male": ["M", "F"]}}, 422, "field 'male' was sent 2 times"),
        ({"data": {"male": "M" * 300}}, 400, "Part exceeded maximum size"),
        ({"data": {"file": "x"}, "files": {}}, 415, "multipart"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            400,
            "Invalid multipart data",
        ),
        ({"files": {"file": ("a", b"x" * 100_001)}}, 413, r"larger than 0\.0954 MiB"),
        (
            {
                "content": iter([b"x" * 100_001]),  # without Content-Length
                "headers": {"content-type": "multipart/form-data; boundary=a"},
            },
            413,
            "larger than",
        ),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(client, request_, status, line):
    if "data" in request_ and "files" not in request_:
        request_ = request_ | {"files": {"file": ("a.png", HANDS[0])}}
    found = client.post("/predict", **request_)
    assert found.status_code == status
    Problem.model_validate(found.json(), strict=True)
    assert re.search(line, found.json()["error"]) and "\n" not in found.json()["error"]


def test_other_addresses_are_refused_as_json(client):
    found = client.get("/predict")
    assert found.status_code == 405 and "POST for /predict" in found.json()["error"]
    assert client.head("/healthz").status_code == 200
    found = client.get("/nowhere")
    assert found.status_code == 404 and "the paths are /predict, " in found.json()["error"]


def test_a_tiny_picture_is_not_accepted(client):
    hand = cv2.imdecode(np.frombuffer(HANDS[0], np.uint8), cv2.IMREAD_GRAYSCALE)
    tiny = cv2.imencode(".png", cv2.resize(hand, (39, 52)))[1].tobytes()
    row = send(client, tiny).json()
    assert row["accepted"] is False and "under 40 px on its short side" in row["note"]
    assert row["bone_age_months"] is not None


def test_eight_clients_at_once_get_each_their_own(client, held):
    ages = [send(client, hand).json()["bone_age_months"] for hand in HANDS]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda hand: send(client, hand).json(), HANDS * 3))
    assert [row["bone_age_months"] for row in together] == pytest.approx(ages * 3, rel=2e-3)
    held.gate.set()
    with TestClient(build_app([held])) as other, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda content: send(other, content).json(), FLAT))
        health = Health.model_validate(other.get("/healthz").json())
    assert [answer["mean"] for answer in answers] == list(range(200))
    assert (health.images, health.queue) == (200, 0)


def test_who_comes_while_the_network_is_busy_shares_the_next_step(held):
    with TestClient(build_app([held])) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(send, client, FLAT[0])
        assert held.began.wait(10)
        others = [pool.submit(send, client, content) for content in FLAT[1:7]]
        while client.get("/healthz").json()["queue"] < 7:
            pass
        held.gate.set()
        means = [answer.result().json()["mean"] for answer in (first, *others)]
    assert means == list(range(7))
    assert held.sizes[0] == 1 and max(held.sizes) == 4 and sum(held.sizes) == 7


def test_a_full_queue_says_when_to_come_again(held):
    app = build_app([held], Limits(queue=2))
    with TestClient(app) as client, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(send, client, content) for content in FLAT[:2]]
        while client.get("/healthz").json()["queue"] < 2:
            pass
        refused = send(client, FLAT[2])
        held.gate.set()
        assert [answer.result().json()["mean"] for answer in waiting] == [0, 1]
        assert send(client, FLAT[2]).json()["mean"] == 2
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert refused.json()["error"].startswith("2 requests are being answered")


def test_a_step_that_fails_costs_its_own_requests_alone(held, caplog):
    def fail(squares, male):
        raise RuntimeError("Smith^John did it")

    held.gate.set()
    read, held.read = held.read, fail
    with TestClient(build_app([held])) as client:
        found = send(client, FLAT[1])
        held.read = read
        assert send(client, FLAT[1]).json()["mean"] == 1
    assert found.status_code == 500
    assert found.json()["error"].startswith("internal error (RuntimeError)")
    assert "RuntimeError at " in caplog.text and "test_app.py" in caplog.text
    assert "Smith" not in caplog.text + found.text


def test_no_name_reaches_the_log(client, caplog, capfd):
    with caplog.at_level(logging.DEBUG, "boneage_jax"):
        send(client, HANDS[0], NAME)
        send(client, b"bad", NAME)
        client.get(f"/{NAME}")
        client.request("Smith", f"/predict?name={NAME}")
    said = caplog.text + "".join(capfd.readouterr())
    assert "POST /predict 200" in said and "POST /predict 422" in said and "GET - 404" in said
    assert "- /predict 405" in said
    assert "Smith" not in said


def test_only_who_has_the_token_is_let_in(held, caplog):
    held.gate.set()
    with TestClient(build_app([held], token=TOKEN)) as client:
        for header in (None, TOKEN, "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", "Bearer é"):
            headers = {} if header is None else {"Authorization": header.encode()}
            # Refused before anything is read: the body is no form.
            found = client.post("/predict", content=b"x", headers=headers)
            assert found.status_code == 401, header
            assert found.headers["www-authenticate"] == "Bearer"
            assert found.json()["error"].startswith("the token is missing or wrong")
        found = send(client, FLAT[3], headers={"Authorization": f"Bearer {TOKEN}"})
        assert found.json()["mean"] == 3
        assert client.get("/healthz").status_code == 200
        schema = client.get("/openapi.json").json()
    assert schema["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}]
    assert TOKEN not in caplog.text


def test_the_pages_need_no_other_server(client):
    page = client.get("/docs").text
    links = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", page)
    assert len(links) == 4 and not re.search(r"https?://", page)
    for link in links:
        assert client.get("".join(link)).status_code == 200, link
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/healthz"}
    form = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file"]


def test_numbers_that_are_none_are_null():
    row = {
        "bone_age_months": np.float32("nan"),
        "p_male": np.float32(0.123456),
        "accepted": np.float64("nan"),
        "vector": np.array([1.5, np.inf], np.float32),
    }
    columns = tuple(row)
    assert good_row("a", columns, row, "") == {
        "file": "a",
        "bone_age_months": None,
        "p_male": 0.1235,
        "accepted": None,
        "vector": [1.5, None],
        "error": "",
        "note": "",
    }
    assert good_row("a", columns, row | {"accepted": np.float64(1)}, "")["accepted"] is True
    assert bad_row("a", columns, False, "x")["accepted"] is None


def test_a_sex_of_no_use_is_said(held):
    held.gate.set()
    with TestClient(build_app([held])) as client:
        answer = send(client, FLAT[0], data={"male": "M"}).json()
    assert answer["note"].endswith("male is of no effect: the sex is no input of this network")


def test_threads_of_the_service_end_with_it(held):
    held.gate.set()
    before = set(threading.enumerate())
    with TestClient(build_app([held])) as client:
        send(client, FLAT[0])
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert not {t for t in set(threading.enumerate()) - before if t.is_alive()}
