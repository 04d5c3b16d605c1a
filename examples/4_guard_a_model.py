"""Put a detector in front of a model, and attack both.

A detector gives each prediction of a model an anomaly score, and a guard rejects the predictions
whose score is above a threshold. This script fits a detector to the outputs of a net under attack
and guards the net with it. It then attacks twice, first without and then with knowledge of the
detector. Only the second attack measures the robustness of the guard.

    python examples/4_guard_a_model.py
"""

import argparse

from sklearn.neural_network import MLPClassifier

from advkit import SklearnClassifier, attacks, data, detectors

EPS = 0.2


def main() -> dict[str, float]:
    """Guard a net and attack it twice; print and return the attack success rates."""
    train, test = data.digits("train"), data.digits("test")
    mlp = MLPClassifier((64,), learning_rate_init=0.01, random_state=0)
    net = SklearnClassifier(mlp.fit(train.x.flatten(1), train.y))

    # Fit the detector on the logits of the net for clean and for attacked inputs.
    attack = attacks.PGD(eps=EPS, steps=20)
    known = test.head(200)
    table = detectors.collect({"net": net}, {"PGD": attack}, known.x, known.y, outputs="logits")
    forest = detectors.OutputForest(outputs="logits", random_state=0)
    forest.fit(table.outputs, table.adversarial)

    # Calibrate on clean inputs that neither was fitted on, to reject about one in twenty. With a
    # hundred inputs the threshold is a rough estimate.
    guard = detectors.Guard(net, forest, fpr=0.05, outputs="logits", on_alarm="reject")
    guard.calibrate(test.x[200:300])

    # Attackers who know the guard follow the gradient of a surrogate of the detector, or imitate
    # the logits of clean inputs. In both cases the guard itself decides whether they succeed.
    surrogate = detectors.DetectorSurrogate(forest, epochs=20, seed=0).fit(table.outputs)
    evasion = attacks.Evasion(
        detector_score=surrogate.anomaly_score, threshold=guard.threshold, outputs="logits"
    )
    mimicry = attacks.Mimicry(logits=net.logits(known.x).detach(), outputs="logits")
    aware = attacks.Adaptive(attack=attack, losses=["ce", evasion, mimicry])
    tried = {
        "without a guard": (net, attack),
        "by an attacker unaware of it": (guard, attacks.Transfer(attack=attack, surrogate=net)),
        "by an attacker aware of it": (guard, aware),
    }
    x, y = test.x[300:], test.y[300:]
    print(f"clean inputs rejected: {float(guard.inspect(x).alarm.float().mean()):.0%}")
    passed = {}
    for name, (model, tries) in tried.items():
        # An attack succeeds if the guard returns a wrong label. A rejection is not a success.
        passed[name] = float(tries.run(model, x, y).success.float().mean())
        print(f"wrong answers {name}: {passed[name]:.0%}")
    return passed


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
