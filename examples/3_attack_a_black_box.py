"""Attack a model that you can only query.

The victim is a random forest behind a function that returns scores, as a service would: you see no
gradients, each query costs, and the budget is limited. This script tries random noise, then attacks
its scores, its labels alone, and a copy that is trained on its answers.

    python examples/3_attack_a_black_box.py
"""

import argparse

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from advkit import CallableClassifier, attacks, data

EPS = 0.2


def main() -> dict[str, float]:
    """Attack the service in four ways; print and return the accuracy that each leaves."""
    train, test = data.digits("train"), data.digits("test")
    forest = RandomForestClassifier(50, random_state=0).fit(train.x.flatten(1), train.y)
    x, y = test.x[:100], test.y[:100]

    def service(rows: np.ndarray) -> np.ndarray:
        """Return the scores of a batch; a request to your server would stand here."""
        return forest.predict_proba(rows.reshape(len(rows), -1))

    # The classifier cuts batches, retries failed calls and never sends more than the budget.
    victim = CallableClassifier(service, 10, max_batch=500, retries=3, max_queries=200_000)

    # A net that has learned from 800 answers has gradients; its examples may fool the forest too.
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    copy = attacks.Substitute(max_queries=800, seed=0).fit(victim, student, test.x[100:200])
    print(f"clean accuracy {float((victim.predict(x) == y).float().mean()):.0%}")
    print(f"the copy took {copy.queries} queries to train")

    tried = {
        "random noise": attacks.RandomNoise(eps=EPS, seed=0),  # what any attack must beat
        "scores": attacks.Square(eps=EPS, max_queries=200, seed=0),
        "labels alone": attacks.HopSkipJump(norm="linf", max_queries=300, seed=0),
        "a copy": attacks.Transfer(attack=attacks.PGD(eps=EPS), surrogate=copy.model),
    }
    left = {}
    for name, attack in tried.items():
        before = victim.queries
        result = attack.run(victim, x, y)
        # HopSkipJump looks for the nearest example, so what lies outside of the budget fails.
        fooled = result.success & (result.distance <= EPS + 1e-6)
        left[name] = float((~fooled).float().mean())
        spent = (victim.queries - before) / len(x)
        print(f"{name:>12}: accuracy {left[name]:.0%}, {spent:.0f} queries per image")
    print(f"{victim.queries} queries in all, {victim.queries_left} left")
    return left


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
