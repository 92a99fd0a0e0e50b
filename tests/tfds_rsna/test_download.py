"""Downloads that are cut off and go on, from servers of several manners, on loopback."""

import hashlib
import http.server
import threading

import pytest

from boneage_jax.errors import InputError
from tfds_rsna.download import download

OLD, NEW = bytes(range(200)) * 3, bytes(reversed(range(250))) * 3


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, whose first answer breaks off after 100 bytes.

    Class attributes: `data`, its `etag` and `modified`, whether the server looks at If-Range and
    Range, and the (Range, If-Range) of the requests that it got.
    """

    data, etag, modified = OLD, '"1"', "Wed, 21 Oct 2015 07:28:00 GMT"
    knows_if_range = knows_range = True
    requests: list[tuple[str | None, str | None]]

    def do_GET(self) -> None:
        span, condition = self.headers["Range"], self.headers["If-Range"]
        self.requests.append((span, condition))
        same = condition in (None, self.etag, self.modified) or not self.knows_if_range
        start = int(span[6:-1]) if span and self.knows_range and same else 0
        if start >= len(self.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.data) - start))
        if self.etag:
            self.send_header("ETag", self.etag)
        if self.modified:
            self.send_header("Last-Modified", self.modified)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/*")
        self.end_headers()
        self.wfile.write(self.data[start : 100 if len(self.requests) == 1 else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"requests": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield handler, f"http://127.0.0.1:{running.server_port}/set.zip"
        running.shutdown()
        thread.join()


REST, WHOLE = "bytes=100-", None
TIME = Server.modified


@pytest.mark.parametrize(
    ("manners", "later", "asked"),
    [
        ({}, {}, [(REST, '"1"')]),
        ({"etag": ""}, {}, [(REST, TIME)]),
        ({"etag": 'W/"1"'}, {}, [(REST, TIME)]),  # weak: If-Range may not name it
        ({"etag": "", "modified": ""}, {}, [(WHOLE, None)]),
        ({}, {"data": NEW, "etag": '"2"'}, [(REST, '"1"')]),
        ({}, {"data": NEW[:100], "etag": '"2"'}, [(REST, '"1"')]),
        ({"knows_if_range": False}, {"data": NEW, "etag": '"2"'}, [(REST, '"1"'), (WHOLE, None)]),
        ({"knows_if_range": False}, {"data": NEW[:99]}, [(REST, '"1"'), (WHOLE, None)]),
        ({"knows_range": False}, {"data": NEW}, [(REST, '"1"')]),
    ],
)
def test_a_part_is_continued_only_by_the_rest_of_the_same_file(
    manners, later, asked, server, tmp_path
):
    handler, url = server
    target = tmp_path / "set.zip"
    for key, value in manners.items():
        setattr(handler, key, value)
    with pytest.raises(InputError, match="cut off after 100 of 600 bytes; run again to go on"):
        download(url, target)
    assert not target.exists()
    for key, value in later.items():
        setattr(handler, key, value)
    download(url, target)
    assert target.read_bytes() == handler.data
    assert handler.requests[1:] == asked
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_part_of_an_older_version_of_the_package_is_continued_under_a_digest(server, tmp_path):
    handler, url = server
    handler.requests.append((None, None))
    for digest, asked in ((hashlib.sha256(OLD).hexdigest(), (REST, None)), ("", (WHOLE, None))):
        target = tmp_path / f"set{digest}.zip"
        target.with_name(f"{target.name}.part").write_bytes(OLD[:100])
        download(url, target, digest)
        assert target.read_bytes() == OLD
        assert handler.requests[-1] == asked


def test_a_part_that_is_whole_is_taken(server, tmp_path):
    handler, url = server
    (tmp_path / "set.zip.part").write_bytes(OLD)
    (tmp_path / "set.zip.part.version").write_text(handler.etag)
    download(url, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD
    assert handler.requests == [("bytes=600-", '"1"')]
