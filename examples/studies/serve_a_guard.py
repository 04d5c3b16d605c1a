"""Serve a guarded net over HTTP with FastAPI, with request ids and metrics for Prometheus.

    pip install fastapi uvicorn
    python examples/studies/serve_a_guard.py [--folder served] [--port 8000]

The first run trains a small net on scikit-learn's digits, fits a detector to attacks on it,
calibrates the guard and saves both in the folder, all in a few seconds. Later runs load them. A
request is for one image; the header `X-Request-ID` may give it an id:

    python -c "import json; print(json.dumps({'image': 8 * [8 * [0.5]]}))" > image.json
    curl localhost:8000/predict -H 'Content-Type: application/json' -d @image.json
    curl localhost:8000/metrics
    curl localhost:8000/healthz

An alarm is a line in `alarms.jsonl` in the folder, with the id that the client got. FastAPI runs
each request in a thread of its own, and all of them share one guard. A proxy in front of the
service should limit the size of a request.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Annotated

import torch

from advkit import attacks, data, defenses, detectors
from advkit.models import REJECTED

try:
    import uvicorn
    from fastapi import FastAPI, Header, HTTPException, Response
    from pydantic import BaseModel

    MISSING = ""
except ImportError as error:
    MISSING = f"{error}. Install what serves: pip install fastapi uvicorn"
    BaseModel = object  # so that --help works

SHAPE = (8, 8)
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")  # it goes into headers and logs
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Request(BaseModel):
    """An image of 8x8 pixels in [0, 1]."""

    image: list[list[float]]


class Answer(BaseModel):
    """What the guard found; a rejected image has no label."""

    label: int | None
    anomaly_score: float
    alarm: bool
    request_id: str


def main() -> None:
    """Train or load a guard, and serve it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("served"))
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if MISSING:
        parser.error(MISSING)
    uvicorn.run(service(guarded(options.folder)), host="127.0.0.1", port=options.port)


def guarded(folder: Path) -> detectors.Guard:
    """The guard of the folder, which is trained and saved there if it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, file = folder / "net.pt", folder / "guard.npz"
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )
    if not file.exists():
        guard = trained(net)
        torch.save(net.state_dict(), weights)
        guard.save(file)  # last: the file says that all is there
    net.load_state_dict(torch.load(weights, weights_only=True))
    return detectors.Guard.load(file, net.eval(), log=folder / "alarms.jsonl")


def trained(net: torch.nn.Module) -> detectors.Guard:
    """A calibrated guard around `net`, which is trained for it."""
    train, test = data.digits("train"), data.digits("test")
    pairs = torch.utils.data.TensorDataset(train.x, train.y)
    defenses.fit(
        net,
        torch.utils.data.DataLoader(pairs, batch_size=64, shuffle=True),
        loss=lambda net, x, y: torch.nn.functional.cross_entropy(net(x), y),
        optimizer=torch.optim.Adam(net.parameters(), lr=5e-3),
        epochs=15,
        progress=False,
    )
    attack, known = attacks.PGD(eps=0.2, steps=20), test.head(200)
    table = detectors.collect({"net": net}, {"PGD": attack}, known.x, known.y)
    forest = detectors.OutputForest(random_state=0).fit(table.outputs, table.adversarial)
    return detectors.Guard(net, forest, fpr=0.05).calibrate(test.x[200:400])


def service(guard: detectors.Guard) -> FastAPI:
    """The web application around a guard."""
    app = FastAPI(title="A guarded net")

    @app.post("/predict")
    def predict(
        request: Request, response: Response, x_request_id: Annotated[str | None, Header()] = None
    ) -> Answer:
        if x_request_id is not None and not REQUEST_ID.fullmatch(x_request_id):
            raise HTTPException(400, f"`X-Request-ID` must match {REQUEST_ID.pattern}.")
        try:
            verdict = guard.inspect(batch_of(request.image), request_id=x_request_id)
        except ValueError as error:  # with this net, only pixels that are no pixels raise it
            raise HTTPException(400, str(error)) from error
        response.headers["X-Request-ID"] = verdict.request_id
        label, alarm = int(verdict.labels[0]), bool(verdict.alarm[0])
        return Answer(
            label=None if label == REJECTED else label,
            anomaly_score=float(verdict.anomaly_score[0]),
            alarm=alarm,
            request_id=verdict.request_id,
        )

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(guard.metrics({"model": "digits"}), media_type=METRICS_TYPE)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def batch_of(image: list[list[float]]) -> torch.Tensor:
    """A batch `(1, 1, 8, 8)` of one image.

    Raises:
        ValueError: the image has another shape.
    """
    sides = {len(row) for row in image}
    if (len(image), *sides) != SHAPE:
        found = " or ".join(map(str, sorted(sides)))
        raise ValueError(f"`image` must have 8 rows of 8 pixels, got {len(image)} of {found}.")
    return torch.tensor(image)[None, None]


if __name__ == "__main__":
    main()
