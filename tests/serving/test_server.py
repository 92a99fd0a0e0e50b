"""The command: its arguments, its address, its token, and a process that is asked to end."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from boneage_jax import serve
from boneage_jax.errors import InputError
from boneage_jax.serving.bearer import VARIABLE, read_token
from boneage_jax.serving.server import address, is_local, open_socket
from tests.inference.test_predictor import IMAGES, WORKDIR
from tests.support import tiny_backbone

TOKEN = "0123456789abcdef-secret"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queue=0"], "--queue=0 must be above 0"),
        (["--megabytes=-1"], r"--megabytes=-1\.0 must be above 0, and at most 1024"),
        (["--megapixels=1000"], "and at most 100"),
        (["--megapixels=nan"], "--megapixels=nan must be above 0"),
        (["--port=70000"], "--port=70000 must be 0 to 65535"),
        (["--port=x"], "argument --port: invalid int value"),
        (["--host=no.such.host.invalid"], "is no host or address of this machine"),
        (["--host=192.0.2.1"], r"--host=192\.0\.2\.1 --port=8000 cannot be used: .*; name others"),
        (["--token_file=nowhere"], "--token_file=nowhere cannot be read: No such file"),
        (["--batch_size=0", "--port=0"], "batch_size=0 must be a whole number above 0"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(InputError, match=message):
        serve.main([f"--workdir={WORKDIR}", *arguments])


def test_a_port_in_use_is_said_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port={port} cannot be used: Address already"):
            serve.main(["--workdir=nowhere", f"--port={port}"])


def test_an_address_refuses_until_the_service_is_ready():
    with open_socket("localhost", 0) as listener:
        assert is_local(listener) and address(listener).startswith("http://127.0.0.1:")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname(), timeout=5)
    with open_socket("0.0.0.0", 0) as listener:
        assert not is_local(listener)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6():
    try:
        listener = open_socket("::1", 0)
    except InputError:
        pytest.skip("no IPv6 here")
    with listener:
        assert is_local(listener) and address(listener).startswith("http://[::1]:")


def test_a_token_is_one_word_that_cannot_be_guessed(tmp_path, monkeypatch):
    file = tmp_path / "token"
    assert read_token(None) == ""
    file.write_text(f"  {TOKEN}\n")
    assert read_token(file) == TOKEN
    for text in ("", "\n", "short", "two words of some length", f"{TOKEN}\n{TOKEN}", "a" * 5000):
        file.write_text(text)
        with pytest.raises(InputError, match="must hold one word of 16 to 4096 ASCII") as error:
            read_token(file)
        assert not text.strip() or text not in str(error.value)
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(InputError, match=f"{VARIABLE} must hold one word"):
            read_token(None)
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="it is not ASCII text"):
        read_token(file)
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert read_token(None) == TOKEN


def get_health(host):
    """The status of the service at HOST:PORT; ConnectionError if it takes no connections."""
    with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as client:
        client.request("GET", "/healthz")
        return json.loads(client.getresponse().read())["status"]


def test_sigterm_finishes_what_runs(tmp_path):
    """A client in the middle of its upload is answered, new ones are refused, the status is 0."""
    (tmp_path / "token").write_text(TOKEN)
    command = [
        *(sys.executable, "-m", "boneage_jax.serve", f"--workdir={WORKDIR}", "--port=0"),
        *(f"--extensions={tiny_backbone.__file__}", f"--token_file={tmp_path}/token"),
    ]
    body = (
        b'--a\r\nContent-Disposition: form-data; name="file"; filename="Smith.png"\r\n\r\n'
        + cv2.imencode(".png", IMAGES[0])[1].tobytes()
        + b"\r\n--a--\r\n"
    )
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.stderr.read()
        host = line.split()[0].removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as client:
            client.putrequest("POST", "/predict")
            client.putheader("Authorization", f"Bearer {TOKEN}")
            client.putheader("Content-Type", "multipart/form-data; boundary=a")
            client.putheader("Content-Length", str(len(body)))
            client.endheaders(body[:100])
            assert get_health(host) == "ok"  # the upload has begun
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionError):
                while get_health(host):
                    time.sleep(0.05)
            client.send(body[100:])
            answer = client.getresponse()
            row = json.loads(answer.read())
        assert answer.status == 200 and row["file"] == "Smith.png" and row["bone_age_months"] > 0
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    finally:
        process.kill()
        process.communicate()
    assert "POST /predict 200" in err
    assert not any(word in out + err for word in ("Smith", TOKEN, "Traceback"))
