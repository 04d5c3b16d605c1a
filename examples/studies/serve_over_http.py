"""Attack a model behind an HTTP service: CSV rows in, JSON scores out, and a bill by the sample.

    python examples/studies/serve_over_http.py [--quick]

Trains a random forest on scikit-learn's digits, serves it on loopback as a cloud service would (at
most 10 rows a request, and every seventh request is answered with 503 Service Unavailable), and
reaches it only through `advkit.CallableClassifier`, which cuts batches, tries again and holds the
budget. Prints the clean accuracy and, for each attack, the accuracy within 0.2 in linf, the median
distance of what it found, and what was sent. `--quick` takes 20 images and a fifth of the budget.

`serve` by itself puts any fitted estimator on a port:

    with serve(estimator) as url:
        scores = ask(url, rows)
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread, Timer
from urllib.error import HTTPError

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from advkit import CallableClassifier, QueryBudgetExceeded, attacks, data
from advkit import eval as rob
from advkit.core.protocols import Attack

EPS = 0.2
ATTACKS: list[Attack] = [  # each is run with a budget of its own
    attacks.RandomNoise(eps=EPS),
    attacks.Square(eps=EPS, max_queries=200),
    attacks.HopSkipJump(norm="linf", max_queries=200),
]
MAX_ROWS = 10
MAX_BYTES = 1_000_000  # of a request, or of an answer
FAILS_EVERY = 7
BUDGET = 50_000  # samples for each attack


def main() -> None:
    """Train, serve, attack and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    images, budget = (20, BUDGET // 5) if quick else (100, BUDGET)
    train, test = data.digits("train"), data.digits("test").head(images)
    forest = RandomForestClassifier(60, random_state=0, n_jobs=1)
    forest.fit(train.x.flatten(1).numpy(), train.y.numpy())
    print("| attack | accuracy | median distance | samples | requests | of them failed |")
    print("| --- | --- | --- | --- | --- | --- |")
    with serve(forest) as url:
        model = remote(url, budget)
        accuracy = float(rob.accuracy(model, test.x, test.y))
        print(row("none", accuracy, 0.0, model))
        for attack in ATTACKS:
            model = remote(url, budget)
            print(row(repr(attack), *measured(attack, model, test), model))


def remote(url: str, budget: int) -> CallableClassifier:
    """The service at `url` as a classifier."""
    return CallableClassifier(
        partial(ask, url),
        num_classes=10,
        max_batch=MAX_ROWS,
        retries=3,
        backoff=0.01,  # seconds; a service on loopback recovers soon
        max_queries=budget,
        log=True,
    )


def measured(attack: Attack, model: CallableClassifier, test: data.Dataset) -> tuple[float, float]:
    """Accuracy within `EPS`, and the median distance, by what the budget pays for."""
    try:
        result = attack.run(model, test.x, test.y)
    except QueryBudgetExceeded as error:
        if error.result is None:
            raise
        result = error.result
    distance = result.distance.masked_fill(~result.success, math.inf)
    return float((distance > EPS).float().mean()), float(distance.median())


def row(name: str, accuracy: float, distance: float, model: CallableClassifier) -> str:
    """A line of the table."""
    attempts = sum(call.attempts for call in model.log)
    cells = (
        name,
        f"{100 * accuracy:.1f} %",
        f"{distance:.3g}",
        model.queries,
        attempts,
        attempts - len(model.log),
    )
    return f"| {' | '.join(map(str, cells))} |"


def ask(url: str, rows: np.ndarray, timeout: float = 60.0) -> list[list[float]]:
    """The scores `(n, classes)` that the service gives to `rows` `(n, ...)`.

    Raises:
        ConnectionError: the service refuses the rows, cannot answer now, or answers with anything
            but scores in JSON.
        OSError: the service does not exist, or nothing came from it for `timeout` seconds.
    """
    body = io.StringIO()
    np.savetxt(body, rows.reshape(len(rows), -1), fmt="%.17g", delimiter=",")
    request = urllib.request.Request(url, body.getvalue().encode(), {"Content-Type": "text/csv"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=timeout) as answer:
            content = answer.read(MAX_BYTES)  # more than that is cut, and then it is not JSON
        return json.loads(content)["scores"]
    except HTTPError as error:
        with error:
            raise ConnectionError(f"{error.code} {error.reason}") from error
    except (HTTPException, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConnectionError(f"the service must answer with scores in JSON: {error!r}") from error


@contextmanager
def serve(classifier: object, patience: float = 10.0) -> Iterator[str]:
    """Serve an estimator's `predict_proba` on a free port of loopback; gives the URL to post to.

    A request that has not arrived after `patience` seconds is refused, so that no client holds a
    thread for longer. The end waits for requests that are still open.
    """
    settings = {"classifier": classifier, "patience": patience, "timeout": 2 * patience}
    handler = type("Handler", (_Handler,), {**settings, "count": itertools.count(1)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # those are not waited for
        thread = Thread(target=server.serve_forever, args=(0.05,))  # seconds to notice the end
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _RefusedError(Exception):
    """A request that is refused, with an HTTP status and a reason."""


class _Handler(BaseHTTPRequestHandler):
    """Answers a POST of CSV rows with JSON scores, and everything else with an error."""

    classifier: object
    count: Iterator[int]
    patience: float
    default_request_version = "HTTP/1.0"  # an answer in 0.9 has no status

    def setup(self) -> None:
        super().setup()
        # `timeout` limits each read alone: a client may send a byte now and then, for ever
        self.limit = Timer(self.patience, self._stop_reading)
        self.limit.start()

    def _stop_reading(self) -> None:
        with suppress(OSError):  # the client has left
            self.connection.shutdown(socket.SHUT_RD)

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        self.limit.cancel()
        self.limit.join()
        super().finish()

    def do_POST(self) -> None:
        try:
            body = self._body()
            if next(self.count) % FAILS_EVERY == 0:
                raise _RefusedError(503, "try again")
            scores = self.classifier.predict_proba(_rows(body)).tolist()
        except _RefusedError as error:
            status, reason = error.args
            self.send_error(status, explain=reason)
        except ValueError as error:  # not UTF-8, not CSV, or rows that the classifier rejects
            self.send_error(400, explain=str(error))
        except Exception as error:  # noqa: BLE001 - a classifier may raise anything
            self.send_error(500, explain=type(error).__name__)
        else:
            self._send({"scores": scores})

    def _body(self) -> bytes:
        length = ",".join(self.headers.get_all("Content-Length", []))
        if not length or "Transfer-Encoding" in self.headers:
            raise _RefusedError(411, "a request must have a Content-Length")
        if not re.fullmatch("[0-9]+", length):
            raise _RefusedError(400, "Content-Length must be one number")
        if int(length) > MAX_BYTES:
            raise _RefusedError(413, f"a request may have {MAX_BYTES} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _RefusedError(408, "the body ended or stopped before its Content-Length")
        return body

    def _send(self, answer: dict[str, list[list[float]]]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the client keeps a log."""


def _rows(body: bytes) -> np.ndarray:
    """The finite numbers `(n, features)` of a body."""
    text = body.decode()
    if not text.strip():
        raise ValueError("there are no rows")
    rows = np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2, comments=None)
    if len(rows) > MAX_ROWS:
        raise _RefusedError(413, f"a request may have {MAX_ROWS} rows")
    if not np.isfinite(rows).all():
        raise ValueError("numbers must be finite")
    return rows


if __name__ == "__main__":
    main()
