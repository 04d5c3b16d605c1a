"""Can a forest tell from a model's output that it was attacked, how, and which model it was?

    python examples/studies/output_detector_study.py --data FOLDER [--quick] [--out FOLDER]

Follows "Fortify Machine Learning Production Systems: Detect and Classify Adversarial Attacks"
(Kalin, Ciolino and Noever, 2021): six attacks on pre-trained nets, and a random forest on the class
probabilities. Three nets of ImageNet on 100 images stand in for their five, and five nets of
CIFAR-10 on 500 images, two of them trained here, for narrower intervals. Their split lets one image
be on both sides; beside it stands the split that does not. Then what a defender would ask: which
attacks are caught that the forest never saw, what simpler scores do, and what is left once the
attacker knows. `--out` gets the tables of outputs, `results.json` and the figures. `--quick` takes
a handful of images: its figures mean nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nets as published
import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from study import (
    SEED,
    NarrowPGD,
    arguments,
    learn_mirrored,
    loaded,
    require_files,
    save_figure,
    save_json,
    seeded,
    table,
)
from torch import Tensor, nn

from advkit import TorchClassifier, attacks, detectors
from advkit import eval as rob
from advkit.attacks import Adaptive, Evasion, Mimicry
from advkit.data import Dataset, load_npz
from advkit.detectors import OutputForest, OutputTable
from advkit.detectors.features import Feature
from advkit.detectors.output_table import CLEAN

Array = npt.NDArray[Any]
EPS = 0.03  # of FGSM and PGD, linf, in the paper
PAPER = {
    "FGM": attacks.FGM(eps=5.0, norm="l2"),
    "FGSM": attacks.FGSM(eps=EPS),
    "PGD": attacks.PGD(eps=EPS, steps=10),
    "LinfPGD": attacks.PGD(eps=0.1, steps=10),
    "L2PGD": NarrowPGD(eps=5.0, norm="l2", steps=10),
    "L2DeepFool": attacks.DeepFool(eps=5.0, steps=10, candidates=10),
}
IMAGENET_IMAGES = "imagenet_sample_224.npz"
CIFAR_IMAGES = "cifar10_test_0000_0499.npz"
CIFAR_TRAIN = "cifar10_train_00000_09999.npz"
IMAGENET = {
    "MobileNet V2": (published.imagenet_mobilenet_v2, "imagenet_mobilenet_v2.pt"),
    "MobileNet V1 0.50": (published.imagenet_mobilenet_v1, "imagenet_mobilenet_v1_050.pt"),
    "SqueezeNet 1.1": (published.imagenet_squeezenet, "imagenet_squeezenet11.pt"),
}
CIFAR = {
    "ResNet-20": (published.cifar10_resnet20, "cifar10_resnet20.pt"),
    "ResNet-44": (published.cifar10_resnet44, "cifar10_resnet44.pt"),
    "robust ResNet": (published.cifar10_resnet4b, "cifar10_resnet4b_robust.pt"),
}
VICTIM = "ResNet-20"  # of the attacks that the forest never saw, and of those that know it
FPR = 0.05


@dataclass(frozen=True)
class Size:
    """How much is trained and asked.

    Attributes:
        imagenet: images of ImageNet.
        cifar: images of CIFAR-10.
        train: images that the two nets learn from.
        epochs: of that.
        trees: of a forest.
        folds: of cross-validation.
        fit: of the CIFAR-10 images, what a guard learns from,
        calibrate: and what finds its threshold; the rest is attacked.
        steps: of the attacks that know the guard.
        queries: of Square on the guard.
        bootstrap: resamples of an interval.
    """

    imagenet: int
    cifar: int
    train: int
    epochs: int
    trees: int
    folds: int
    fit: int
    calibrate: int
    steps: int
    queries: int
    bootstrap: int


FULL = Size(100, 500, 10_000, 12, 100, 5, 250, 100, 100, 2000, 1000)
QUICK = Size(2, 48, 128, 1, 5, 2, 20, 20, 2, 12, 10)


def main() -> None:
    """Attack, learn, print the tables and write what is asked for."""
    args = arguments(__doc__, data="nets and images", out="tables, results.json and the figures")
    weights = (file for _, file in (IMAGENET | CIFAR).values())
    require_files(args.data, IMAGENET_IMAGES, CIFAR_IMAGES, CIFAR_TRAIN, *weights)
    began = time.process_time()
    size = QUICK if args.quick else FULL
    results: dict[str, Any] = {}
    with seeded():
        of_cifar = cifar_outputs(args.data, size, args.out)
        of_imagenet = imagenet_outputs(args.data, size, args.out)
        for name, outputs in (("ImageNet", of_imagenet), ("CIFAR-10", of_cifar)):
            results[name] = tables_of_the_paper(outputs, size)
        of_cifar = moved(of_cifar)
        data = load_npz(args.data / CIFAR_IMAGES).head(size.cifar)
        victim = published_nets(args.data, [VICTIM])[VICTIM]
        results["scores"] = by_clean_data_alone(of_cifar, size)
        results["unseen"] = unseen_attacks(of_cifar, size)
        results["weaker"] = weaker_attacks(of_cifar, victim, data, size)
        results["pixels"] = from_pixels(victim, data, size)
        results["adaptive"] = attackers_who_know(of_cifar, victim, data, size)
    results["seconds"] = round(time.process_time() - began)
    if args.out is not None:
        save(args.out, results)
    print(report(results))


# --- what the models answer ---------------------------------------------------------------------


def imagenet_outputs(folder: Path, size: Size, out: Path | None) -> OutputTable:
    """Logits of the ImageNet nets."""
    data = load_npz(folder / IMAGENET_IMAGES).head(size.imagenet)
    names = list(IMAGENET) if size is FULL else list(IMAGENET)[1:]
    return collected("imagenet", lambda: published_nets(folder, names), data, out, 20)


def cifar_outputs(folder: Path, size: Size, out: Path | None) -> OutputTable:
    """Logits of the CIFAR-10 nets."""
    data = load_npz(folder / CIFAR_IMAGES).head(size.cifar)
    return collected("cifar10", lambda: cifar_nets(folder, size), data, out, 125)


def cifar_nets(folder: Path, size: Size) -> dict[str, nn.Module]:
    """The CIFAR-10 nets: three published, two trained."""
    train = load_npz(folder / CIFAR_TRAIN).head(size.train)
    return {
        **published_nets(folder, CIFAR),
        "plain CNN": learn_mirrored(published.plain_cnn(), train, size.epochs),
        "separable CNN": learn_mirrored(separable_cnn(), train, size.epochs),
    }


def published_nets(folder: Path, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return published nets by name."""
    found = {name: (IMAGENET | CIFAR)[name] for name in names}
    return {name: loaded(factory(), folder / file) for name, (factory, file) in found.items()}


def separable_cnn() -> nn.Module:
    """Depthwise and pointwise convolutions of stride 2, global average."""
    layers: list[nn.Module] = [nn.BatchNorm2d(3), nn.Conv2d(3, 48, 3, padding=1)]
    for before, after in ((48, 96), (96, 192), (192, 256)):
        layers += [
            nn.BatchNorm2d(before), nn.SiLU(),
            nn.Conv2d(before, before, 3, 2, 1, groups=before), nn.Conv2d(before, after, 1),
        ]  # fmt: skip
    return nn.Sequential(
        *layers, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)
    )


def collected(
    name: str,
    models: Callable[[], dict[str, nn.Module]],
    data: Dataset,
    out: Path | None,
    batch_size: int,
) -> OutputTable:
    """Logits under every attack of the paper; kept in `out` and read from there."""
    path = None if out is None else out / f"{name}.npz"
    if path is not None and path.is_file():
        return OutputTable.load(path)
    made = detectors.collect(
        models(), PAPER, data.x, data.y, outputs="logits", batch_size=batch_size
    )
    if path is not None:
        made.save(path)
    return made


def moved(outputs: OutputTable) -> OutputTable:
    """Without what attacks left as it was, since the net was wrong there: that is a clean image."""
    return outputs[~outputs.adversarial | (outputs.distance > 0)]


def probabilities(outputs: OutputTable) -> OutputTable:
    """The same table with the softmax of its logits, which is what the paper's forest sees."""
    return dataclasses.replace(outputs, outputs=softmax(outputs.outputs, axis=1), kind="scores")


@dataclass(frozen=True)
class View:
    """What a forest is shown of a table of logits."""

    outputs: Literal["scores", "logits"]
    features: tuple[Feature, ...] = ("raw",)

    def of(self, logits: OutputTable) -> OutputTable:
        """The rows that it is shown."""
        return probabilities(logits) if self.outputs == "scores" else logits

    def forest(self, size: Size) -> OutputForest:
        """A forest for these rows."""
        return OutputForest(
            n_estimators=size.trees,
            features=self.features,
            outputs=self.outputs,
            random_state=SEED,
        )


PUBLISHED = View("scores")
BEST = View("logits", ("raw", "sorted", "margin", "entropy"))
SPLITS = ("ungrouped", "grouped")
RATES = [(label, rate) for label in ("fake", "clean") for rate in ("recall", "f1")]
PLAIN = "probabilities"
VIEWS = {PLAIN: PUBLISHED, "logits": View("logits"), "logits, all features": BEST}


# --- the tables of the paper ----------------------------------------------------------------------


def tables_of_the_paper(whole: OutputTable, size: Size) -> dict[str, Any]:
    """Tables II, III and IV and the confusion of attacks, by both splits."""
    logits = moved(whole)
    seen = probabilities(logits)
    attacked = seen[seen.adversarial]
    shown = {"probabilities, all rows": (PUBLISHED, whole)}
    shown |= {name: (view, logits) for name, view in VIEWS.items()}
    found: dict[str, Any] = {"accuracy": accuracies(whole)}
    for split in SPLITS:
        grouped = split == "grouped"
        ask = partial(classified, size=size, grouped=grouped)
        found[split] = {
            "fake": {name: of_fakes(*pair, size, grouped=grouped) for name, pair in shown.items()},
            "model": ask(PUBLISHED, attacked, attacked.model)[0].to_dict(),
            "attack": ask(PUBLISHED, seen, seen.attack)[0].to_dict(),
            "attack, best": ask(BEST, logits, logits.attack)[0].to_dict(),
        }
    return found


def of_fakes(view: View, logits: OutputTable, size: Size, *, grouped: bool) -> dict[str, Any]:
    """Table III, and how many of each attack are caught."""
    seen = view.of(logits)
    fake = np.where(seen.adversarial, "fake", CLEAN)
    scores, told = classified(view, seen, fake, size=size, grouped=grouped)
    return {**scores.to_dict(), "caught": detection(seen, told[:, 1], size)}


def accuracies(seen: OutputTable) -> dict[str, dict[str, float]]:
    """Table II: accuracy in %, clean and over the attacks."""
    found = {}
    for model in dict.fromkeys(seen.model.tolist()):
        by_attack = {}
        for attack in dict.fromkeys(seen.attack.tolist()):
            part = seen.filter(model=model, attack=attack)
            by_attack[attack] = 100 * float((part.predicted == part.label).mean())
        attacked = [share for attack, share in by_attack.items() if attack != CLEAN]
        mean, spread = float(np.mean(attacked)), float(np.std(attacked))
        found[model] = {**by_attack, "mean": mean, "std": spread}
    return found


def classified(
    view: View, seen: OutputTable, labels: Array, *, size: Size, grouped: bool
) -> tuple[rob.ClassificationScores, Array]:
    """A forest's answers to one question, each row by a forest that was fitted without its fold.

    Returns:
        Scores, and the probability of each label, in the order of their names.
    """
    told = cross_val_predict(
        view.forest(size),
        seen.outputs,
        labels,
        groups=seen.groups if grouped else None,
        cv=folds(size, grouped=grouped),
        method="predict_proba",
    )
    names = sorted(set(labels.tolist()))
    scores = rob.classification_scores(
        labels, told, classes=names, samples=seen.sample, bootstrap=size.bootstrap
    )
    return scores, told


def folds(size: Size, *, grouped: bool) -> StratifiedKFold | StratifiedGroupKFold:
    """The published split, or the one that keeps all rows of an image on one side."""
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    return kind(size.folds, shuffle=True, random_state=SEED)


# --- what a defender would ask --------------------------------------------------------------------


def parts(seen: OutputTable, size: Size) -> list[tuple[Array, Array]]:
    """Rows to fit on and rows to score, for each fold, with no image on both sides."""
    cut = folds(size, grouped=True)
    return list(cut.split(seen.outputs, seen.attack, groups=seen.groups))


def by_clean_data_alone(logits: OutputTable, size: Size) -> dict[str, Any]:
    """Scores that were fitted on clean rows, beside forests that have seen the attacks."""
    seen = probabilities(logits)
    contestants: dict[str, tuple[OutputTable, Callable[[OutputTable], Any]]] = {
        **{f"forest, {n}": (v.of(logits), partial(fitted, v, size)) for n, v in VIEWS.items()},
        "MaxSoftmax": (seen, scorer(detectors.MaxSoftmax(outputs="scores"))),
        "OutputEntropy": (seen, scorer(detectors.OutputEntropy(outputs="scores"))),
        "Mahalanobis": (logits, scorer(detectors.Mahalanobis())),
        "KernelDensity": (logits, scorer(detectors.KernelDensity())),
        "LocalIntrinsicDimensionality": (logits, scorer(detectors.LocalIntrinsicDimensionality())),
    }
    found = {}
    for name, (given, learnt_from) in contestants.items():
        anomaly_score = np.empty(len(given))
        for train, test in parts(given, size):
            anomaly_score[test] = learnt_from(given[train]).anomaly_score(given.outputs[test])
        found[name] = detection(given, anomaly_score, size)
    return found


def fitted(view: View, size: Size, seen: OutputTable) -> OutputForest:
    """A forest that was told which rows are attacked."""
    return view.forest(size).fit(seen.outputs, seen.adversarial)


def scorer(detector: Any) -> Callable[[OutputTable], Any]:
    """The fit of a detector that learns from clean rows, class by class as the models say."""

    def learnt_from(seen: OutputTable) -> Any:
        clean = seen.filter(attack=CLEAN)
        return detector.fit(clean.outputs, clean.predicted)

    return learnt_from


def detection(seen: OutputTable, anomaly_score: Array, size: Size) -> dict[str, Any]:
    """How well all attacks, and each of them, are told from clean rows."""
    return rob.detection_scores(
        seen.adversarial, anomaly_score, attack=seen.attack, samples=seen.sample,
        bootstrap=size.bootstrap,
    ).to_dict()  # fmt: skip


def unseen_attacks(logits: OutputTable, size: Size) -> dict[str, Any]:
    """Each attack, by forests that have seen all of the others but not it, nor the image."""
    found = {}
    for attack in PAPER:
        rows = np.isin(logits.attack, [CLEAN, attack])
        anomaly_score = np.zeros(len(logits))
        for train, test in parts(logits, size):
            known = train[logits.attack[train] != attack]
            forest = fitted(BEST, size, logits[known])
            anomaly_score[test] = forest.anomaly_score(logits.outputs[test])
        found[attack] = detection(logits[rows], anomaly_score[rows], size)
    return found


def weaker_attacks(
    logits: OutputTable, net: nn.Module, data: Dataset, size: Size
) -> dict[str, Any]:
    """Attacks of less strength, or of other kinds, than those that the forest has learnt."""
    weaker = {
        **{f"PGD, eps {eps:g}": attacks.PGD(eps=eps, steps=10) for eps in (0.004, 0.008, 0.015)},
        **{
            f"L2PGD, eps {eps:g}": NarrowPGD(eps=eps, norm="l2", steps=10)
            for eps in (0.25, 0.5, 1.0)
        },
        "PGD that stops at success": attacks.PGD(eps=EPS, steps=10, stop="first"),
        "FAB": attacks.FAB(steps=20),
        "Square": attacks.Square(eps=EPS, max_queries=size.queries // 4, stop="first"),
    }
    other = detectors.collect({VICTIM: net}, weaker, data.x, data.y, outputs="logits")
    anomaly_score = np.empty(len(other))
    for train, test in parts(logits, size):
        rows = np.isin(other.sample, np.unique(logits.sample[test]))
        forest = fitted(BEST, size, logits[train])
        anomaly_score[rows] = forest.anomaly_score(other.outputs[rows])
    fooled = ~other.adversarial | (other.success & (other.distance > 0))
    return {
        "accuracy": accuracies(other)[VICTIM],
        "caught": detection(other[fooled], anomaly_score[fooled], size),
    }


def from_pixels(net: nn.Module, data: Dataset, size: Size) -> dict[str, Any]:
    """The detector that the paper reports as failing: a small net that sees the image itself."""
    made = {name: attack(net, data.x, data.y) for name, attack in PAPER.items()}
    images = torch.cat([data.x, *made.values()])
    attack = np.repeat([CLEAN, *made], len(data.x))
    sample = np.tile(np.arange(len(data.x)), 1 + len(made))
    fake = torch.from_numpy(attack != CLEAN).long()
    anomaly_score = np.empty(len(images))
    for train, test in folds(size, grouped=True).split(sample, attack, groups=sample):
        detector = learn_mirrored(pixel_net(), balanced(images[train], fake[train]), size.epochs)
        scores = TorchClassifier(detector).scores(images[test])
        anomaly_score[test] = scores[:, 1].numpy()
    return rob.detection_scores(
        attack != CLEAN, anomaly_score, attack=attack, samples=sample, bootstrap=size.bootstrap
    ).to_dict()


def balanced(x: Tensor, fake: Tensor) -> Dataset:
    """As many clean images as attacked ones, by repeating them."""
    clean, times = (fake == 0).nonzero().flatten(), int(fake.sum() // (fake == 0).sum())
    rows = torch.cat([fake.nonzero().flatten(), clean.repeat(times)])
    return Dataset(x[rows], fake[rows], "pixels")


def pixel_net() -> nn.Module:
    """A fraction of the size of the nets that are attacked."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2048, 2),
    )  # fmt: skip


# --- attackers who know -----------------------------------------------------------------------


def attackers_who_know(
    logits: OutputTable, net: nn.Module, data: Dataset, size: Size
) -> dict[str, Any]:
    """Guards around one net: what attackers get past them who know of them, and who do not."""
    learn = logits.filter(model=VICTIM, sample=list(range(size.fit)))
    held_out = data.x[size.fit : size.fit + size.calibrate]
    x, y = (part[size.fit + size.calibrate :] for part in (data.x, data.y))
    clean = learn.filter(attack=CLEAN)
    seen = probabilities(learn)
    guarding: dict[str, tuple[Literal["scores", "logits"], Any]] = {
        "forest, probabilities": ("scores", fitted(PUBLISHED, size, seen)),
        "forest, logits, all features": ("logits", fitted(BEST, size, learn)),
        "MaxSoftmax": ("scores", scorer(detectors.MaxSoftmax(outputs="scores"))(seen)),
        "Mahalanobis": ("logits", scorer(detectors.Mahalanobis())(learn)),
        "KernelDensity": ("logits", scorer(detectors.KernelDensity())(learn)),
    }
    found = {}
    for name, (outputs, detector) in guarding.items():
        guard = detectors.Guard(net, detector, fpr=FPR, outputs=outputs).calibrate(held_out)
        rows = (seen if outputs == "scores" else learn).outputs
        tried = knowing(guard, rows, torch.from_numpy(clean.outputs), size)
        found[name] = against(guard, x, y, tried)
    return found


def knowing(guard: Any, rows: Array, clean: Tensor, size: Size) -> dict[str, Any]:
    """The paper's PGD, and attacks on net and guard together within the same ball."""
    climb = attacks.PGD(eps=EPS, steps=size.steps)
    surrogate = detectors.DetectorSurrogate(guard.detector, seed=SEED).fit(rows)
    spread = float(np.ptp(surrogate.anomaly_score(rows)))
    evasions = [
        Evasion(
            detector_score=surrogate.anomaly_score, threshold=guard.threshold - room * spread,
            weight=10 / spread, outputs=guard.outputs,
        )
        for room in (0.0, 0.1, 0.3)
    ]  # fmt: skip
    mimicry = Mimicry(logits=clean, outputs=guard.outputs)
    return {
        "PGD, unaware": attacks.Transfer(attack=PAPER["PGD"], surrogate=guard.model),
        "Square on the guard": attacks.Square(eps=EPS, max_queries=size.queries),
        "Evasion": Adaptive(attack=climb, losses=evasions),
        "Mimicry": Adaptive(attack=climb, losses=[mimicry]),
        "all that know": Adaptive(attack=climb, losses=["ce", mimicry, *evasions]),
    }


def against(guard: Any, x: Tensor, y: Tensor, tried: Mapping[str, Any]) -> dict[str, Any]:
    """Clean figures, and for each attack what the guard catches and what gets past it, in %."""
    verdict = guard.inspect(x)
    found: dict[str, Any] = {
        "inputs": len(x),
        "false alarms": 100 * float(verdict.alarm.double().mean()),
        "clean": 100 * float((verdict.labels == y).double().mean()),
    }
    for name, attack in tried.items():
        result = attack.run(guard, x, y)
        verdict = guard.inspect(result.x_adv)
        misclassified = guard.model.predict(result.x_adv) != y
        past = (verdict.labels != y) & ~verdict.alarm
        found[name] = {
            "caught": 100 * float(verdict.alarm[misclassified].double().mean()),
            "past": 100 * float(past.double().mean()),
        }
    return found


# --- what is shown -------------------------------------------------------------------------------


def report(results: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    lines: list[str] = []
    for name in ("ImageNet", "CIFAR-10"):
        found = results[name]
        lines += [f"## {name}: accuracy in %", accuracy_table(found["accuracy"])]
        lines += [f"## {name}: fake?", fake_table(found)]
        lines += [f"## {name}: which model?", class_table(found, "model")]
        for question in ("attack", "attack, best"):
            lines += [f"## {name}: which {question}? grouped"]
            lines += [confusion_table(found["grouped"][question])]
        lines += [f"## {name}: caught, by {PLAIN}", detection_table(caught_by_split(found))]
    lines += [
        "## Clean data alone, AUROC by attack", detection_table(results["scores"]),
        "## Attacks that the forest never saw", detection_table(flat(results["unseen"])),
        "## Weaker and other attacks: accuracy in %, and those that fooled the net",
        str(results["weaker"]["accuracy"]),
        detection_table({"forest": results["weaker"]["caught"]}),
        "## From pixels", detection_table({"small net": results["pixels"]}),
        "## Attackers who know", adaptive_table(results["adaptive"]),
        f"{results['seconds']} seconds of one core",
    ]  # fmt: skip
    return "\n\n".join(lines)


def accuracy_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Table II."""
    columns = list(next(iter(found.values())))
    rows = [[model, *(f"{share[c]:.1f}" for c in columns)] for model, share in found.items()]
    return table(["model", *columns], rows)


def fake_table(found: Mapping[str, Any]) -> str:
    """Table III for each view and split."""
    rows: list[list[object]] = []
    for name in found["grouped"]["fake"]:
        for split in SPLITS:
            scores = found[split]["fake"][name]
            both = (scores["per_class"][label]["ap"] for label in ("fake", CLEAN))
            auroc = scores["caught"]["overall"]["auroc"]
            rows.append([f"{name}, {split}", *map(estimate, both), estimate(auroc)])
            rows[-1] += [f"{scores['per_class'][c][k]['value']:.3f}" for c, k in RATES]
    columns = ["AP fake", "AP clean", "AUROC", *(f"{k} {c}" for c, k in RATES)]
    return table(["forest on", *columns], rows)


def class_table(found: Mapping[str, Any], question: str) -> str:
    """Table IV: average precision with its interval, recall and F1, by both splits."""
    rows: list[list[object]] = []
    for split in SPLITS:
        scores = found[split][question]
        for name, figures in scores["per_class"].items():
            cells = [estimate(figures[k]) for k in ("ap", "recall", "f1")]
            rows.append([f"{name}, {split}", *cells])
        rows.append([f"mean, {split}", estimate(scores["mean_ap"]), "", ""])
    return table(["class", "AP", "recall", "F1"], rows)


def confusion_table(scores: Mapping[str, Any]) -> str:
    """Rows: what was done; columns: what the forest says; in % of the row."""
    names = list(scores["classes"])
    rows = []
    for name, counts in zip(names, scores["confusion"], strict=True):
        rows.append([name, *(f"{100 * count / max(1, sum(counts)):.0f}" for count in counts)])
    return table(["attack", *names], rows)


def caught_by_split(found: Mapping[str, Any]) -> dict[str, Any]:
    """Detection scores of the forest on probabilities, by split."""
    return {split: found[split]["fake"][PLAIN]["caught"] for split in SPLITS}


def flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """One column, the scores of each attack being those of its own forests."""
    of_each = {name: scores["per_attack"][name] for name, scores in found.items()}
    return {"forest without it": {"per_attack": of_each}}


def detection_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """For each detector and attack AUROC, and how many are caught at a false-positive rate."""
    names = list(next(iter(found.values()))["per_attack"])
    rows: list[list[object]] = []
    for attack in names:
        cells: list[object] = []
        for scores in found.values():
            of_attack = scores["per_attack"][attack]
            caught = 100 * of_attack["tpr"][f"{FPR:g}"]["value"]
            cells.append(f"{of_attack['auroc']['value']:.3f}, {caught:.0f} %")
        rows.append([attack, *cells])
    return table(["attack", *found], rows)


def adaptive_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What is caught of the wrong answers, and what gets past of all inputs."""
    names = [name for name, value in next(iter(found.values())).items() if isinstance(value, dict)]
    rows = [
        [
            guard, f"{figures['false alarms']:.0f}", f"{figures['clean']:.0f}",
            *(f"{figures[n]['caught']:.0f}, {figures[n]['past']:.0f}" for n in names),
        ]
        for guard, figures in found.items()
    ]  # fmt: skip
    return table(["guard", "false alarms", "clean", *names], rows)


def estimate(figure: Mapping[str, Any]) -> str:
    """A value and its interval."""
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def save(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json` and `adaptive.png`."""
    save_json(folder / "results.json", results)
    save_figure(folder / "adaptive.png", adaptive_figure(results["adaptive"]))


def adaptive_figure(found: Mapping[str, Mapping[str, Any]]) -> Any:
    """For each guard, the share of inputs that get a wrong answer past it."""
    from matplotlib.figure import Figure

    tried = [name for name, value in next(iter(found.values())).items() if isinstance(value, dict)]
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(tried)
    for i, name in enumerate(tried):
        places = np.arange(len(found)) + (i - (len(tried) - 1) / 2) * width
        bars = axes.bar(places, [f[name]["past"] for f in found.values()], width, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(found)), [name.replace(", ", ",\n") for name in found])
    axes.set(ylabel="inputs with a wrong answer and no alarm, in %", ylim=(0, 108))
    axes.set_title(f"Past a guard that rejects {100 * FPR:.0f} % of clean inputs, linf {EPS:g}")
    figure.legend(fontsize="small", ncols=len(tried), loc="outside lower center")
    return figure


if __name__ == "__main__":
    main()
