"""The HTTP study under malformed, endless and hostile requests and answers."""

import json
import random
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import numpy as np
import pytest
from examples.studies.serve_over_http import MAX_BYTES, ask, serve
from sklearn.tree import DecisionTreeClassifier

from examples.studies import serve_over_http

PATIENCE = 0.2  # seconds that an unfinished request may take
ROWS = np.arange(8.0).reshape(2, 4)
POST = b"POST / HTTP/1.1\r\n"


def with_body(body, head=b""):
    return POST + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


# requests by name, and the statuses that may answer them
MALFORMED = {
    "no length": (POST + b"\r\n", {411}),
    "chunked": (POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\n1,2\n\r\n0\r\n\r\n", {411}),
    "chunked with a length": (with_body(b"1,2,3,4\n", b"Transfer-Encoding: chunked\r\n"), {411}),
    "empty length": (POST + b"Content-Length:\r\n\r\n", {411}),
    "a word as length": (POST + b"Content-Length: many\r\n\r\n", {400}),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n1,2\n", {400}),
    "signed length": (POST + b"Content-Length: +4\r\n\r\n1,2\n", {400}),
    "fractional length": (POST + b"Content-Length: 4.0\r\n\r\n1,2\n", {400}),
    "superscript length": (POST + "Content-Length: 2²\r\n\r\n".encode("latin-1"), {400}),
    "two lengths": (with_body(b"1,2,3,4\n", b"Content-Length: 8\r\n"), {400}),
    "length of 5,000 digits": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", {400, 413}),
    "too large": (POST + b"Content-Length: %d\r\n\r\n" % (MAX_BYTES + 1), {413}),
    "empty body": (with_body(b""), {400}),
    "blank body": (with_body(b"\n \n"), {400}),
    "comment alone": (with_body(b"# nothing\n"), {400}),
    "not UTF-8": (with_body(b"\xff\xfe1,2,3,4\n"), {400}),
    "NUL bytes": (with_body(b"\0\0\0\0\n"), {400}),
    "words": (with_body(b"a,b,c,d\n"), {400}),
    "ragged": (with_body(b"1,2,3,4\n1,2\n"), {400}),
    "too few columns": (with_body(b"1,2\n"), {400}),
    "too many columns": (with_body(b"1,2,3,4,5\n"), {400}),
    "NaN": (with_body(b"nan,2,3,4\n"), {400}),
    "infinite": (with_body(b"1,2,3,inf\n"), {400}),
    "overflow": (with_body(b"1e999,2,3,4\n"), {400}),
    "too many rows": (with_body(b"1,2,3,4\n" * 11), {413}),
    "too many rows, no last line end": (with_body((b"1,2,3,4\n" * 11)[:-1]), {413}),
    "GET": (b"GET / HTTP/1.1\r\n\r\n", {501}),
    "PUT": (b"PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", {501}),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\r\n\r\n", {400}),
    "one word": (b"POST\r\n\r\n", {400}),
    "unknown version": (b"POST / HTTP/9.9\r\n\r\n", {400, 505}),
    "long line": (b"POST /" + b"a" * 70_000, {414}),
    "many headers": (POST + b"A: b\r\n" * 200 + b"\r\n", {431}),
    "long header": (POST + b"A: " + b"b" * 70_000 + b"\r\n\r\n", {431}),
}

# requests that never end, what is sent again and again after them, and the statuses
ENDLESS = {
    "nothing": (b"", b"", {None}),
    "half a line": (b"POST / HT", b"", {400}),
    "half a header": (POST + b"Content-Le", b"", {411}),
    "no end of the headers": (POST + b"Content-Length: 8\r\n", b"", {408}),
    "no body": (POST + b"Content-Length: 8\r\n\r\n", b"", {408}),
    "half a body": (POST + b"Content-Length: 8\r\n\r\n1,2,", b"", {408}),
    "a byte of a line now and then": (b"POST /", b"a", {400}),
    "a header now and then": (POST, b"A: b\r\n", {411, 431}),
    "a byte of a body now and then": (POST + b"Content-Length: 99999\r\n\r\n", b"1", {408}),
}

JSON = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
WRONG_ANSWERS = {
    "nothing": b"",
    "not HTTP": b"hello\r\n\r\n",
    "half a status line": b"HTTP/1.0 2",
    "no body": JSON,
    "words": JSON + b"hello",
    "not UTF-8": JSON + b"\xff\xff\xff",
    "a list": JSON + b"[1, 2]",
    "no scores": JSON + b'{"labels": [1, 2]}',
    "half of it": b'HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"scores": [[0.',
    "deep": JSON + b"[" * 100_000,
    "too long": JSON + b'{"scores": [[' + b"1, " * MAX_BYTES + b"1]]}",
    "a broken chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n",
    "500": b"HTTP/1.0 500 Oh\r\n\r\n",
    "many headers": b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
}


class Tree:
    """A classifier that fails as it is told to."""

    def __init__(self, error=None):
        self.tree = DecisionTreeClassifier(random_state=0).fit(ROWS, [0, 1])
        self.error = error

    def predict_proba(self, rows):
        if self.error is not None:
            raise self.error
        return self.tree.predict_proba(rows)


@pytest.fixture(autouse=True)
def whole(monkeypatch, capfd):
    """No failures on purpose; and at the end no thread is left and no traceback printed."""
    monkeypatch.setattr(serve_over_http, "FAILS_EVERY", 10**9)
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before
    assert capfd.readouterr().err == ""


def connected(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def status_of(client):
    """The status that comes back before the connection ends; `None` for none."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:  # after an answer to a request that was not read to its end
        pass
    return int(received.split()[1]) if received else None


def check_that_it_serves(url):
    assert ask(url, ROWS) == [[1.0, 0.0], [0.0, 1.0]]


def test_a_malformed_request_is_refused(tally):
    trials = tally("a malformed request is refused, and the next one answered")
    with serve(Tree(), PATIENCE) as url:
        for name, (request, statuses) in MALFORMED.items():
            with trials.trial(name), connected(url) as client:
                client.sendall(request)
                assert status_of(client) in statuses
                check_that_it_serves(url)


def test_a_random_request_is_answered(tally):
    trials = tally("a request with random bytes is answered")
    rng = random.Random(0)
    good = with_body(b"0,1,2,3\n4,5,6,7\n", b"Content-Type: text/csv\r\n")
    with serve(Tree(), PATIENCE) as url:
        for i in range(200):
            request = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                request[rng.randrange(6, len(request))] = rng.randrange(256)
            with trials.trial(f"{i}: {bytes(request)}"), connected(url) as client:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                assert status_of(client) in {200, *range(400, 500), 501, 505}
        check_that_it_serves(url)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_request_that_never_ends_holds_nothing(tally, name):
    trials = tally("a request that never ends is given up, and its thread ends")
    begin, more, statuses = ENDLESS[name]
    with trials.trial(name), serve(Tree(), PATIENCE) as url, connected(url) as client:
        client.sendall(begin)
        check_that_it_serves(url)  # meanwhile
        if more:
            keep_sending(client, more)
        assert status_of(client) in statuses
        check_that_it_serves(url)


def keep_sending(client, piece):
    """Send `piece` every few milliseconds until something comes back."""
    client.settimeout(0.01)
    for _ in range(3000):
        try:
            client.sendall(piece)
            client.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        except ConnectionError:
            pass
        client.settimeout(30)
        return
    raise AssertionError("the service never gave up")


def test_the_end_does_not_wait_for_those_who_say_nothing(tally):
    with tally("the service ends while clients hang").trial("four clients"):
        before = set(threading.enumerate())
        with serve(Tree(), PATIENCE) as url:
            clients = [connected(url) for _ in range(4)]
            clients[0].sendall(POST)
            check_that_it_serves(url)
        assert set(threading.enumerate()) == before
        assert [status_of(client) for client in clients] == [411, None, None, None]
        for client in clients:
            client.close()


def test_clients_that_leave_are_no_error(tally):
    trials = tally("a client that resets its connection leaves the service whole")
    with serve(Tree(), PATIENCE) as url:
        for request in (
            b"",
            b"POST /",
            POST + b"Content-Length: 8\r\n\r\n1",
            with_body(b"0,1,2,3\n"),
        ):
            with trials.trial(request):
                with connected(url) as client:
                    client.sendall(request)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                check_that_it_serves(url)


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("b"), MemoryError()])
def test_a_classifier_that_fails_is_an_answer(error):
    broken = Tree(error)
    with serve(broken, PATIENCE) as url:
        with pytest.raises(ConnectionError, match="500 Internal Server Error"):
            ask(url, ROWS)
        broken.error = None
        check_that_it_serves(url)


@contextmanager
def answering(content, *, hang=False):
    """A service that gives one answer, whatever it is sent, and may not end it."""
    over = threading.Event()

    def answer():
        client, _ = listener.accept()
        with client:
            received = b""
            while b"\r\n\r\n" not in received or received.endswith(b"\r\n\r\n"):
                received += client.recv(65536)
            with suppress(ConnectionError):  # the client may leave in the middle
                client.sendall(content)
            if hang:
                over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        over.set()
        thread.join()


def test_an_answer_that_is_wrong_is_a_connection_error(tally):
    trials = tally("a wrong answer of a service is a ConnectionError")
    for name, content in WRONG_ANSWERS.items():
        with trials.trial(name), answering(content) as url, pytest.raises(ConnectionError):
            ask(url, ROWS)


def test_a_service_that_hangs_is_given_up(tally):
    trials = tally("a service that hangs is given up")
    for content in (b"", b"HTTP/1.0 200 OK\r\n", JSON + b'{"scores"'):
        hanging = answering(content, hang=True)
        with trials.trial(content), hanging as url, pytest.raises(OSError, match="timed out"):
            ask(url, ROWS, timeout=0.05)


def test_a_long_answer_is_read_in_part(monkeypatch):
    with answering(JSON + json.dumps({"scores": [[0.0] * 100]}).encode()) as url:
        monkeypatch.setattr(serve_over_http, "MAX_BYTES", 50)
        with pytest.raises(ConnectionError, match="must answer with scores in JSON"):
            ask(url, ROWS)
