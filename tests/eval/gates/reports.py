"""Reports with outcomes that a test makes up."""

import dataclasses

import torch

from advkit.eval import AttackOutcome, Report
from tests.eval.made_up import PROVENANCE, inputs_of


def outcome(fooled, n, *, clean=None, eps=0.1, norm="linf", distance=0.05, **more):
    """Outcome of an attack on `n` inputs that fools those with the numbers `fooled`.

    The distance is one number for all or a tensor `(n,)`; without an `eps` it is a minimum-norm
    attack.
    """
    clean = torch.ones(n).bool() if clean is None else clean
    success = torch.zeros(n).bool()
    success[fooled] = True
    success &= clean
    radius = torch.inf if eps is None else eps
    zeros = torch.zeros(n, dtype=torch.int64)
    values = {
        "name": "Made",
        "settings": {} if eps is None else {"eps": eps},
        "parameters": {} if eps is None else {"eps": eps},
        "norm": norm,
        "minimum_norm": eps is None,
        "eps": eps,
        "radius": torch.where(clean, torch.tensor(radius).double(), 0.0),
        "robust": clean & ~success,
        "distance": torch.where(success, torch.as_tensor(distance), torch.nan),
        "forward": zeros,
        "backward": zeros,
        "no_gradient": zeros.bool(),
        "not_finite": zeros.bool(),
        "seconds": 0.0,
        "examples": None,
    }
    return AttackOutcome(**{**values, **more})


def report(*outcomes, n=20, clean=None, **more):
    """Report on `n` inputs with these outcomes."""
    clean = torch.ones(n).bool() if clean is None else clean
    values = {
        "model": "Net()",
        "bounds": (0.0, 1.0),
        "inputs": inputs_of(clean),
        "outcomes": outcomes,
        "provenance": PROVENANCE,
    }
    return Report(**{**values, **more})


def fooling(*fooled, n=20, **more):
    """Report of one budget attack, linf 0.1, that fools the inputs with these numbers."""
    return report(outcome(list(fooled), n, **more), n=n)


def with_rows(made, rows):
    """Return a report with its rows in another order."""
    inputs = dataclasses.replace(
        made.inputs,
        index=made.inputs.index[rows],
        label=made.inputs.label[rows],
        prediction=made.inputs.prediction[rows],
        sha256=made.inputs.sha256[:, rows],
    )
    return dataclasses.replace(
        made, inputs=inputs, outcomes=tuple(_moved(each, rows) for each in made.outcomes)
    )


def _moved(made, rows):
    columns = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    tensors = {name: value[rows] for name, value in columns.items() if torch.is_tensor(value)}
    return dataclasses.replace(made, **tensors)
