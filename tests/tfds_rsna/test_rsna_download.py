"""The RSNA data from a server that breaks off, changes files, or is not there."""

import hashlib
import http.server
import threading

import pytest
import tensorflow_datasets as tfds

import tfds_rsna  # noqa: F401  # registers the builders
from boneage_jax.errors import InputError
from tests.support.rsna_layouts import RSNA_ZIPS
from tfds_rsna.download import download


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `RSNA_ZIPS` with ranges; breaks off after `limit` bytes while that is set."""

    limit: int | None = None
    requests: list[str | None]

    def do_GET(self) -> None:
        data = RSNA_ZIPS.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(404)
            return
        span = self.headers["Range"]
        type(self).requests.append(span)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield handler, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


CHECKSUMS = {name: hashlib.sha256(data).hexdigest() for name, data in RSNA_ZIPS.items()}


def test_download_and_prepare(server, tmp_path):
    handler, url = server
    options = {"data_dir": tmp_path, "base_url": url, "checksums": CHECKSUMS}
    for size in ("256", "384"):
        builder = tfds.builder(f"rsna_bone_age/{size}", **options)
        builder.download_and_prepare()
        assert {k: s.num_examples for k, s in builder.info.splits.items()} == {
            "train": 3, "validation": 2, "test": 2,
        }  # fmt: skip
    assert len(handler.requests) == 4  # the second config reuses the downloads


def test_download_of_a_changed_archive_is_refused(server, tmp_path):
    _, url = server
    checksums = CHECKSUMS | {"Bone+Age+Validation+Set.zip": "0" * 64}
    builder = tfds.builder(
        "rsna_bone_age/256", data_dir=tmp_path, base_url=url, checksums=checksums
    )
    with pytest.raises(InputError, match=r"sha256 .* is not the expected 0000.*--raw_dir"):
        builder.download_and_prepare()
    assert not list(tmp_path.rglob("*Validation*"))


def test_download_goes_on_where_it_was_cut_off(server, tmp_path):
    handler, url = server
    name = "Bone+Age+Test+Set.zip"
    handler.limit = 100
    with pytest.raises(InputError, match="cut off after 100 of"):
        download(url + name, tmp_path / "set.zip", CHECKSUMS[name])
    assert not (tmp_path / "set.zip").exists()
    handler.limit = None
    download(url + name, tmp_path / "set.zip", CHECKSUMS[name])
    assert handler.requests == [None, "bytes=100-"]
    assert (tmp_path / "set.zip").read_bytes() == RSNA_ZIPS[name]


def test_no_network_names_the_manual_way(server, tmp_path):
    handler, url = server
    for base, reason in ((url + "moved/", "HTTP 404"), ("http://127.0.0.1:9/", "refused")):
        builder = tfds.builder("rsna_bone_age/256", data_dir=tmp_path, base_url=base)
        with pytest.raises(InputError, match=rf"{reason}.*--raw_dir=DIR"):
            builder.download_and_prepare()
    assert handler.requests == []
