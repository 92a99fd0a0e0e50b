"""Clients that are slow, leave or stay too long, given to the service as raw ASGI messages."""

import asyncio
import contextlib
import errno
import threading

import cv2
import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from boneage_jax.serving.app import Service
from boneage_jax.serving.limits import Limits
from boneage_jax.serving.request_log import RequestLog

PICTURE = cv2.imencode(".png", np.full((9, 9), 7, np.uint8))[1].tobytes()
HEAD = b'--a\r\nContent-Disposition: form-data; name="file"; filename="Smith.png"\r\n\r\n'
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/predict",
    "query_string": b"",
    "headers": [(b"content-type", b"multipart/form-data; boundary=a")],
}


def request(*parts, then="stays"):
    """A request whose body comes in these parts; then the client stays, leaves or stalls."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if then != "stalls":
        messages[-1]["more_body"] = False
    if then == "leaves":
        messages.append({"type": "http.disconnect"})
    coming = iter(messages)

    async def receive():
        await asyncio.sleep(0)
        message = next(coming, None)
        return message or await asyncio.Event().wait()

    return Request(SCOPE, receive)


def whole(**options):
    return request(HEAD, PICTURE, b"\r\n--a--\r\n", **options)


def during(held, work, **limits):
    """Runs `work(service)` while the service runs."""

    async def run():
        service = Service([held], Limits(**limits))
        async with service.running(None):
            return await work(service)

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_a_stalled_upload_ends_and_leaves_nothing(held):
    async def work(service):
        with pytest.raises(HTTPException) as refused:
            await service.predict(request(HEAD, b"x" * 5_000_000, then="stalls"))
        return refused.value, service.uploads.taken, service.queue.taken

    error, *taken = during(held, work, upload_seconds=0.2)
    assert error.status_code == 408 and error.detail.startswith("the upload took more than 0.2 s")
    assert taken == [0, 0] and not held.sizes


def test_stalled_uploads_keep_nobody_out_until_there_are_many(held):
    held.gate.set()

    async def work(service):
        stalled = [
            asyncio.ensure_future(service.predict(request(HEAD, then="stalls"))) for _ in range(7)
        ]
        await asyncio.sleep(0.05)
        answer = await service.predict(whole())
        stalled.append(asyncio.ensure_future(service.predict(request(HEAD, then="stalls"))))
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException) as refused:
            await service.predict(whole())
        for each in stalled:
            each.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        return answer.status_code, refused.value.status_code, service.uploads.taken

    assert during(held, work, queue=2) == (200, 503, 0)


@pytest.mark.parametrize("then", ["leaves", "cancelled"])
def test_a_client_that_leaves_takes_its_work_along(held, then):
    async def work(service):
        first = asyncio.ensure_future(service.predict(whole()))
        await asyncio.to_thread(held.began.wait, 10)  # it holds the network
        leaving = whole(then="leaves" if then == "leaves" else "stays")
        second = asyncio.ensure_future(service.predict(leaving))
        third = asyncio.ensure_future(service.predict(whole()))
        await asyncio.sleep(0.2)
        if then == "cancelled":
            second.cancel()
        gone = (await asyncio.gather(second, return_exceptions=True))[0]
        held.gate.set()
        answers = [(await each).status_code for each in (first, third)]
        return type(gone), answers, service.queue.taken, service.batches.images

    kind = ClientDisconnect if then == "leaves" else asyncio.CancelledError
    assert during(held, work) == (kind, [200, 200], 0, 2)


def test_a_client_that_leaves_during_its_upload_is_no_error(held, caplog):
    async def app(scope, receive, send):
        await service.predict(Request(scope, receive, send))

    async def receive():
        return {"type": "http.disconnect"}

    sent = []

    async def send(message):
        sent.append(message)

    service = Service([held], Limits())
    with caplog.at_level("INFO", "boneage_jax"):
        asyncio.run(RequestLog(app, ("/predict",))(SCOPE, receive, send))
    assert sent == []
    assert "POST /predict client gone" in caplog.text and "Traceback" not in caplog.text


def test_who_stays_longer_than_the_end_is_asked_to_come_again(caplog):
    sent = []

    async def app(scope, receive, send):
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def run():
        task = asyncio.ensure_future(RequestLog(app, ())(SCOPE, None, send))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    asyncio.run(run())
    assert sent[0]["status"] == 503 and b"the service ends" in sent[1]["body"]


def test_a_large_upload_waits_on_disk_and_a_full_disk_is_said(held, monkeypatch):
    """The form is written by Starlette; what it holds in memory is 1 MiB."""
    held.gate.set()
    opened = []

    def full(*args, **options):
        opened.append(args)
        raise OSError(errno.ENOSPC, "No space left on device")

    async def work(service):
        large = request(HEAD, *[bytes(1 << 16)] * 32, b"\r\n--a--\r\n")
        monkeypatch.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(HTTPException) as refused:
            await service.predict(large)
        monkeypatch.undo()
        return refused.value, (await service.predict(whole())).status_code

    error, status = during(held, work)
    assert opened and error.status_code == 507
    assert error.detail == "the server has no room for the upload: No space left on device"
    assert status == 200


def test_an_exception_of_any_decoder_is_an_answer(held, monkeypatch):
    monkeypatch.setattr(held, "put_right_and_fit", lambda image, stem: {}["x"])
    answer = during(held, lambda service: service.predict(whole()))
    assert answer.status_code == 422
    assert b'"error":"it cannot be read: KeyError: \'x\'"' in answer.body


def test_ending_leaves_no_request_without_an_answer(held):
    """The network's step is finished, though nobody waits for new ones."""

    async def work(service):
        task = asyncio.ensure_future(service.predict(whole()))
        await asyncio.to_thread(held.began.wait, 10)
        threading.Timer(0.2, held.gate.set).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 10)
        return task.result().status_code

    assert during(held, work) == 200
