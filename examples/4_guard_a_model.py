"""Put a detector in front of a model, and attack both.

A detector gives each answer of a model a suspicion, and a guard rejects the answers above a
threshold. This script fits a detector to the outputs of a net under attack, guards the net with
it, and then attacks twice: first without and then with knowledge of the detector. Only the second
attack tells you what the guard is worth.

    python examples/4_guard_a_model.py
"""

from sklearn.neural_network import MLPClassifier

from advkit import SklearnClassifier, attacks, data, detectors

EPS = 0.2


def main() -> dict[str, float]:
    """Guard a net, attack it twice; print and return the shares of wrong, accepted answers."""
    train, test = data.digits("train"), data.digits("test")
    mlp = MLPClassifier((64,), learning_rate_init=0.01, random_state=0)
    net = SklearnClassifier(mlp.fit(train.x.flatten(1), train.y))

    # The detector learns from the logits of the net on clean and on attacked inputs.
    attack = attacks.PGD(eps=EPS, steps=20)
    known = test.head(200)
    table = detectors.collect({"net": net}, {"PGD": attack}, known.x, known.y, outputs="logits")
    forest = detectors.OutputForest(outputs="logits", random_state=0)
    forest.fit(table.outputs, table.adversarial)

    # Calibrate on clean inputs that neither has seen, to reject about one in twenty. A hundred
    # inputs place the threshold only roughly.
    guard = detectors.Guard(net, forest, outputs="logits", on_alarm="reject")
    guard.calibrate(test.x[200:300], fpr=0.05)

    # An attacker who knows the guard follows the gradient of a copy of the detector, or imitates
    # the logits of clean inputs. Either way the guard itself decides whether the attack succeeds.
    copy = detectors.DetectorSurrogate(forest, epochs=20, seed=0).fit(table.outputs)
    evasion = attacks.Evasion(
        detector_score=copy.anomaly_score, threshold=guard.threshold, outputs="logits"
    )
    mimicry = attacks.Mimicry(logits=net.logits(known.x).detach(), outputs="logits")
    aware = attacks.Adaptive(attack=attack, losses=["ce", evasion, mimicry])
    tried = {
        "without a guard": (net, attack),
        "by an attacker unaware of it": (guard, attacks.Transfer(attack=attack, surrogate=net)),
        "by an attacker aware of it": (guard, aware),
    }
    x, y = test.x[300:], test.y[300:]
    print(f"clean inputs rejected: {float(guard.judge(x).alarm.float().mean()):.0%}")
    passed = {}
    for name, (model, tries) in tried.items():
        # A success is an answer that is wrong and not a rejection.
        passed[name] = float(tries.run(model, x, y).success.float().mean())
        print(f"wrong answers {name}: {passed[name]:.0%}")
    return passed


if __name__ == "__main__":
    main()
