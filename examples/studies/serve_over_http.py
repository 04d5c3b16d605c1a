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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.error import HTTPError

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from advkit import CallableClassifier, QueryBudgetExceeded, attacks, data
from advkit import eval as rob
from advkit.core.protocols import Attack

EPS = 0.2
ATTACKS: list[Attack] = [  # each is run with a budget of its own
    attacks.RandomNoise(eps=EPS),
    attacks.Square(eps=EPS, queries=200),
    attacks.HopSkipJump(norm="linf", queries=200),
]
MAX_ROWS = 10
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
        back_off=0.01,  # seconds; a service on loopback recovers soon
        budget=budget,
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


def ask(url: str, rows: np.ndarray) -> list[list[float]]:
    """The scores `(n, classes)` that the service gives to `rows` `(n, ...)`.

    Raises:
        ConnectionError: the service refuses the rows, or cannot answer now.
        OSError: there is no service.
    """
    body = io.StringIO()
    np.savetxt(body, rows.reshape(len(rows), -1), fmt="%.17g", delimiter=",")
    request = urllib.request.Request(url, body.getvalue().encode(), {"Content-Type": "text/csv"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=60) as answer:
            return json.load(answer)["scores"]
    except HTTPError as error:
        with error:
            raise ConnectionError(f"{error.code} {error.reason}") from error


@contextmanager
def serve(classifier: object) -> Iterator[str]:
    """Serve an estimator's `predict_proba` on a free port of loopback; gives the URL to post to."""
    handler = type("Handler", (_Handler,), {"classifier": classifier, "count": itertools.count(1)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))  # seconds to notice the end
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers a POST of CSV rows with JSON scores."""

    classifier: object
    count: Iterator[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if next(self.count) % FAILS_EVERY == 0:
            self.send_error(503)
            return
        if body.count("\n") > MAX_ROWS:
            self.send_error(413)
            return
        try:
            rows = np.loadtxt(io.StringIO(body), delimiter=",", ndmin=2)
            scores = self.classifier.predict_proba(rows).tolist()
        except ValueError as error:
            self.send_error(400, explain=str(error))
            return
        self._send({"scores": scores})

    def _send(self, answer: dict[str, list[list[float]]]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the client keeps a log."""


if __name__ == "__main__":
    main()
