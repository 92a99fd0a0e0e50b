"""The page in a headless Chromium: files are dropped on it, and it reads what Python reads."""

import base64
import io
import json

import cv2
import imagecodecs
import jax
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.inference.saliency import make_grad_cam
from tests.exporting.conftest import age_network, shipped_view
from tests.support.chromium import Page, needs_browser
from tests.support.dicom_files import dicom_file, table
from tfds_rsna.hand_phantom.render import make_phantom

pytest.importorskip("jax2onnx")
if not jax.__version__.startswith("0.10."):
    pytest.skip("jax2onnx needs jax 0.10", allow_module_level=True)

from boneage_jax.exporting.onnx_graph import to_onnx, with_float16_weights
from boneage_jax.exporting.web_page import build_page
from boneage_jax.inference.view import turn

pytestmark = needs_browser
DEEP = (make_phantom(3, 150, "test").image.reshape(150, 150)[:, :117].astype(np.uint16) * 13) + 40
GREY = make_phantom(4, 163, "test").image.reshape(163, 163)[:, 5:131].copy()


def _png(image, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", **options)
    return file.getvalue()


def _compressed(image, syntax, encode, **tags) -> bytes:
    return dicom_file(image, syntax, PixelData=encapsulate([encode(image)]), **tags)


def _rle(image) -> bytes:
    data = pydicom.dcmread(io.BytesIO(dicom_file(image)))
    data.compress(uid.RLELossless)
    file = io.BytesIO()
    data.save_as(file)
    return file.getvalue()


def _bare(image, implicit: bool) -> bytes:
    """Without preamble and meta header."""
    data = pydicom.dcmread(io.BytesIO(dicom_file(image)))
    del data.file_meta
    file = io.BytesIO()
    data.save_as(file, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    content = file.getvalue()
    return content[132:] if content[128:132] == b"DICM" else content


_WINDOW = {"WindowCenter": 1500, "WindowWidth": 2600}
FILES = {
    "grey.png": _png(GREY),
    "half.png": _png(np.kron(GREY, np.ones((2, 2), np.uint8))[:128, :96]),
    "deep.png": _png(DEEP),
    "small.png": _png(GREY[30:70, 20:60]),
    "colour.png": _png(np.stack([GREY, GREY // 2, 255 - GREY], -1)),
    "clear.png": _png(np.stack([GREY, GREY, GREY, GREY[::-1]], -1)),
    "palette.png": _png(GREY // 16 * 16, bits=4),
    "turned.png": _png(np.rot90(GREY).copy()),
    "upside_down.png": _png(GREY[::-1, ::-1].copy()),
    "diagonal.png": _png(turn(np.pad(GREY, 20), 3)),
    "swapped.png": _png(255 - GREY),
    "framed.png": _png(np.pad(GREY, 9, constant_values=255)),
    "far.png": _png(np.pad(GREY, 130, constant_values=int(GREY.min()))),
    "grey.jpg": cv2.imencode(".jpg", GREY)[1].tobytes(),
    "plain.dcm": dicom_file(GREY, PatientSex="M"),
    "deep.dcm": dicom_file(DEEP, BitsStored=12),
    "window.dcm": dicom_file(DEEP, BitsStored=12, **_WINDOW),
    "exact.dcm": dicom_file(DEEP, VOILUTFunction="LINEAR_EXACT", **_WINDOW),
    "sigmoid.dcm": dicom_file(DEEP, VOILUTFunction="SIGMOID", **_WINDOW),
    "inverted.dcm": dicom_file(DEEP, PhotometricInterpretation="MONOCHROME1", **_WINDOW),
    "padded.dcm": dicom_file(np.where(DEEP > 2800, 60000, DEEP), PixelPaddingValue=60000),
    "table.dcm": dicom_file(DEEP, VOILUTSequence=[table(np.arange(4096) ** 2 // 256)]),
    "signed.dcm": dicom_file(
        DEEP.astype(np.int16) - 900, RescaleSlope=2, RescaleIntercept=-7, RescaleType="US"
    ),
    "big_endian.dcm": dicom_file(DEEP, uid.ExplicitVRBigEndian),
    "rle.dcm": _rle(DEEP),
    "jpeg.dcm": _compressed(GREY, uid.JPEGBaseline8Bit, lambda x: imagecodecs.jpeg8_encode(x, 95)),
    "lossless.dcm": _compressed(DEEP, uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode),
    "lossless8.dcm": _compressed(GREY, uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode),
    "jpeg_ls.dcm": _compressed(DEEP, uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    "jpeg_2000.dcm": _compressed(
        DEEP, uid.JPEG2000Lossless, lambda x: imagecodecs.jpeg2k_encode(x, codecformat="J2K")
    ),
    "no_meta.dcm": _bare(DEEP, implicit=True),
    "no_meta_explicit.dcm": _bare(DEEP, implicit=False),
    "colour.dcm": dicom_file(np.stack([GREY, GREY // 2, 255 - GREY], -1)),
}
REFUSED = {
    "text.png": (b"no picture", "it is not a PNG, JPEG or DICOM file"),
    "cut.png": (_png(GREY)[:900], "the PNG file is damaged"),
    "cut.dcm": (dicom_file(DEEP)[:5000], "DICOM"),
    "frames.dcm": (dicom_file(GREY, NumberOfFrames=3), "holds 3 frames"),
    "deflated.dcm": (dicom_file(GREY, uid.DeflatedExplicitVRLittleEndian), "DICOM"),
    "float.dcm": (dicom_file(GREY, BitsAllocated=32, BitsStored=32), "32 bits is not supported"),
}


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    """A network beside the view network of the package's own."""
    folder = tmp_path_factory.mktemp("ages")
    changed = {"model__name": "tiny_lite0", "test_flips": True}
    network = age_network(folder, view=shipped_view(), **changed)
    return network.prepared(judges=False)  # the page's scripts do both


@pytest.fixture(scope="module")
def page(ages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    content = build_page(ages, with_float16_weights(to_onnx(ages, explained=True)))
    assert len(content) < 40e6
    (folder / "page.html").write_bytes(content)
    opened = Page(folder / "page.html", folder / "profile")
    opened.wait("document.body && document.body.dataset.state != 'loading'")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def clear(page):
    page.wait("!document.querySelector('article[aria-busy=true]')")
    page.evaluate("byId('clear').click()")


def _drop(page, folder, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    page.drop([folder / name for name in files])
    page.wait(f"document.querySelectorAll('article[aria-busy=false]').length == {len(files)}")


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_python(name, page):
    """At the file's size, and fitted into the square of the network."""
    data = base64.b64encode(FILES[name]).decode()
    found = page.evaluate(f"""(async () => {{
      const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
      const image = await readRadiograph(bytes);
      const square = fitSquare(image, 64, "pad");
      return [image.width, image.height, [...image.data], [...square.data]];
    }})()""")
    wanted = read_grey(FILES[name], name)
    assert found[:2] == list(wanted.shape[::-1])
    away = np.abs(np.reshape(found[2], wanted.shape) - wanted.astype(int))
    assert away.max() <= 1 and away.mean() < 0.01
    away = np.abs(np.reshape(found[3], (64, 64)) - fit_square(wanted, 64).astype(int))
    # Enlarging, which few radiographs need, is rounded at other places by OpenCV.
    assert away.max() <= 1 and away.mean() < (0.2 if name == "small.png" else 0.02)


@pytest.mark.parametrize(
    "shape",
    [(64, 64), (128, 96), (128, 128), (192, 150), (256, 256), (333, 200), (201, 640), (640, 9)],
)
def test_shrinks_as_opencv_does(shape, page):
    """Every pixel: by whole numbers, where OpenCV adds integers, and by others."""
    image = np.random.default_rng(shape[0]).integers(0, 256, shape).astype(np.uint8)
    data = base64.b64encode(image.tobytes()).decode()
    found = page.evaluate(f"""["pad", "stretch"].map((how) => {{
      const data = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
      return [...fitSquare({{ data, height: {shape[0]}, width: {shape[1]} }}, 64, how).data];
    }})""")
    np.testing.assert_array_equal(np.reshape(found[0], (64, 64)), fit_square(image, 64))
    if min(shape) >= 64:
        stretched = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(np.reshape(found[1], (64, 64)), stretched)


def test_ages_are_those_of_python(page, ages, tmp_path):
    _drop(page, tmp_path, FILES)
    found = page.evaluate("""[...document.querySelectorAll("article")].map((article) =>
      [article.querySelector("h3").textContent, article.querySelector(".age")?.dataset.months,
       article.querySelector(".age")?.dataset.accepted, article.dataset.heat])""")
    by_name = {name: rest for name, *rest in found}
    assert set(by_name) == set(FILES)
    view = ages.calibration.view
    done = {note for name in FILES for note in view.put_right(read_grey(FILES[name], name))[1]}
    assert len(done) >= 4, done  # or nothing below would tell whether the page does it
    for name, content in FILES.items():
        months, accepted, heat = by_name[name]
        square = ages.fit(read_grey(content, name), "")
        wanted = ages.read([square], [1 if name == "plain.dcm" else -1])
        assert float(months) == pytest.approx(float(wanted["bone_age_months"][0]), abs=0.1), name
        assert accepted == str(int(wanted["accepted"][0])) and heat == "done", name


def test_the_heat_map_is_that_of_python(page, ages, tmp_path):
    """The same numbers; the strongest place is named, and drawn in the colour of its direction."""
    _drop(page, tmp_path, {"grey.png": FILES["grey.png"]})
    drawn = page.evaluate("""(() => {
      const map = document.querySelector("canvas.heat");
      const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
      return [map.height, map.width, [...pixels]];
    })()""")
    data = base64.b64encode(FILES["grey.png"]).decode()
    found = page.evaluate(f"""(async () => {{
      const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
      const model = await loading, {{ image }} = model.view.putRight(
        await readRadiograph(bytes), model.size);
      const [read] = await model.read([fitSquare(image, model.size, facts.fit).data], -1);
      return read.contributions.months;
    }})()""")
    square = ages.fit(read_grey(FILES["grey.png"], "grey.png"), "")
    wanted = make_grad_cam(ages.network)(ages.members, square, -1)
    away = np.reshape(found, wanted.shape) - wanted
    assert np.abs(away).max() < 0.02 * np.abs(wanted).max()
    assert tuple(drawn[:2]) == wanted.shape
    colours = np.reshape(drawn[2], (*wanted.shape, 4))
    place = np.unravel_index(np.abs(wanted).argmax(), wanted.shape)
    assert colours[place][3] == colours[..., 3].max() == 200
    assert (colours[place][2] > colours[place][0]) == (wanted[place] > 0)  # blue: older
    caption = page.evaluate("document.querySelector('figcaption').textContent")
    assert (
        f"{abs(wanted[place]):.1f} months {'older' if wanted[place] > 0 else 'younger'}" in caption
    )
    third = [3 * (2 * at + 1) // (2 * count) for at, count in zip(place, wanted.shape, strict=True)]
    words = ["upper", "middle", "lower"][third[0]], ["left", "centre", "right"][third[1]]
    assert f"Strongest in the {' '.join(words)}" in caption


def test_unreadable_files_get_a_line_and_the_next_is_read(page, tmp_path):
    files = {name: content for name, (content, _) in REFUSED.items()}
    _drop(page, tmp_path, files | {"grey.png": FILES["grey.png"]})
    for name, (_, words) in REFUSED.items():
        text = page.evaluate(f"""[...document.querySelectorAll("article")]
          .find((article) => article.innerText.startsWith("{name}"))
          .querySelector(".refused")?.textContent ?? ''""")
        assert text.startswith("Not read: ") and words in text and "page failed" not in text, name
    assert page.evaluate("document.querySelector('.age') !== null")


def test_a_picture_of_no_hand_is_refused_in_words(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90)).astype(np.uint8)
    _drop(page, tmp_path, {"noise.png": _png(noise)})
    assert "Do not use the age" in page.evaluate("document.querySelector('article').innerText")
    assert "unlike" in page.evaluate("byId('status').textContent")


def test_masks_and_thumbnails_are_refused_as_predict_does(page, ages, tmp_path):
    hand = read_grey(FILES["grey.png"], "grey.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 8:30] = mask[30:56, 8:56] = 230
    tiny = cv2.resize(hand, (39, 52), interpolation=cv2.INTER_AREA)
    assert ages.calibration.view.judge([mask])[1] == ["two tones only: a mask or a drawing"]
    for picture, words in (
        (mask, "two tones only: a mask or a drawing"),
        (tiny, "under 40 px on its short side: too small"),
    ):
        page.evaluate("byId('clear').click()")
        _drop(page, tmp_path, {"refused.png": _png(picture)})
        text = page.evaluate("document.querySelector('article').innerText")
        assert words in text and "Do not use the age" in text


def test_chosen_sex_changes_the_age(page, tmp_path):
    months = []
    for sex in ("0", "1"):
        page.evaluate(f"document.querySelector('input[name=sex][value=\"{sex}\"]').click()")
        _drop(page, tmp_path, {"grey.png": FILES["grey.png"]})
        months.append(page.evaluate("Number(document.querySelector('.age').dataset.months)"))
        page.evaluate("byId('clear').click()")
    page.evaluate("document.querySelector('input[name=sex][value=file]').click()")
    assert abs(months[0] - months[1]) > 1e-3


def test_keyboard_and_screen_reader(page):
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(6):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert reached[0] == "files" and "sex" in reached and "clear" in reached
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {
        (n["role"]["value"], n.get("name", {}).get("value", "").strip())
        for n in nodes
        if "role" in n
    }
    assert ("heading", "Bone age from a hand radiograph") in named
    assert any(role == "button" and "drop them" in name for role, name in named)  # of the files
    assert any(role == "radio" and name == "female" for role, name in named)
    assert any(role == "status" for role, _ in named)


def test_nothing_leaves_the_page(page):
    text = page.evaluate("document.body.innerText")
    assert "Nothing leaves this computer" in text and "Not a medical device" in text
    refused = "fetch('https://example.org').then(() => 'sent', () => 'refused')"
    assert page.evaluate(refused) == "refused"
    asked = [
        message["params"]["request"]["url"]
        for message in page.messages
        if message.get("method") == "Network.requestWillBeSent"
    ]
    assert all(url.startswith(("file:", "blob:", "data:")) for url in asked), asked
    assert not [m for m in page.messages if m.get("method") == "Runtime.exceptionThrown"]


def test_terms_and_licences_are_inside(page, ages):
    facts = json.loads(page.evaluate("document.getElementById('facts').textContent"))
    assert facts["terms"] == ages.metadata["terms"]
    text = page.evaluate("document.querySelector('pre').textContent")
    for name in ("onnxruntime-web 1.", "dicom-parser 1.", "fast-png 8.", "OpenJPEG", "CharLS"):
        assert f"==== {name}" in text
