"""Do defenders that know clean data alone detect attacks that ignore them?

    python examples/studies/mrr_study.py --data FOLDER [--only PART] [--quick] [--out FOLDER]

Follows "Safe Machine Learning and Defeating Adversarial Attacks" (Rouhani, Samragh, Javidi and
Koushanfar, 2019): modular robust redundancy. Its Table 1 for nets of MNIST, CIFAR-10 and ImageNet:
how well attacks that ignore the defenders are detected. Its Figure 4: what victim and defender see.
Its Table 2 is reproduced by `mrr_adaptive.py`. `--out` gets the nets and defenders, a .json file
for each part and the figure, and goes on from what is there. `--quick` takes a handful of images:
its figures mean nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mrr_victims import (
    COUNTS,
    FILES,
    FULL,
    QUICK,
    VICTIMS,
    Size,
    Victim,
    answers,
    fitted,
    mlp,
)
from nets import imagenet_mobilenet_v1
from sklearn.metrics import roc_auc_score
from study import arguments, require_files, run_part, save_figure, table
from torch import Tensor, nn
from torch.nn import functional as F

from advkit import attacks, detectors
from advkit.core.archives import read_torch
from advkit.data import Dataset, load_npz
from advkit.defenses import MRR, LatentDefenders
from advkit.models import evaluating

IMAGENET_IMAGES, MOBILENET = "imagenet_sample_224.npz", "imagenet_mobilenet_v1_050.pt"
# Area under the ROC curve with 16 defenders, in the article's Table 1.
ARTICLE = {
    "MNIST": {"FGS": 0.996, "JSMA": 0.995, "DeepFool": 0.996, "C&W": 0.989, "BIM": 0.994},
    "CIFAR-10": {"FGS": 0.911, "JSMA": 0.966, "DeepFool": 0.960, "C&W": 0.929, "BIM": 0.907},
    "ImageNet": {"FGS": 0.881, "DeepFool": 0.908, "C&W": 0.907, "BIM": 0.820},
}


def main() -> None:
    """Fit, attack, print the tables and write what is asked for."""
    args = arguments(
        __doc__,
        data="nets and images",
        out="defenders, .json files and the figure",
        only=list(PARTS),
    )
    parts = list(PARTS) if args.only is None else [args.only]
    require_files(args.data, *(name for part in parts for name in FILES_OF_PARTS[part]))
    size = QUICK if args.quick else FULL
    for name in parts:
        run_part(name, partial(PARTS[name], args.data, size, args.out), args.out)


# --- attacks that ignore the defenders, Table 1 --------------------------------------------------


def oblivious(part: str) -> Callable[[Path, Size, Path | None], tuple[dict[str, Any], str]]:
    """What Table 1 does for one victim."""

    def run(folder: Path, size: Size, out: Path | None) -> tuple[dict[str, Any], str]:
        victim = VICTIMS[part](folder, size, out)
        mrr, seconds = fitted(victim, out)
        model = mrr.fitted.victim
        labels = answers(model, victim.test.x)
        right = labels == victim.test.y
        simpler = baselines(mrr, victim)
        clean = scores_of_all(mrr, simpler, victim.test.x[right])
        latent = mrr.first(mrr.latent[0].count, inputs=False)
        results: dict[str, Any] = {
            "victim": victim.name,
            "accuracy": float(right.float().mean()),
            "fit seconds": seconds,
            "clean images": int(right.sum()),
            "false alarms": false_alarms(mrr, victim),
            "correlation": latent.correlation(victim.test.x[right]).tolist(),
            "milliseconds": milliseconds(latent, victim.test.x),
            "attacks": {},
        }
        for method, settings in methods(victim, size).items():
            parts = {}
            for name, attack in settings.items():
                x_adv, y = attack()
                wrong = (answers(model, x_adv) != y) & right[: len(y)]
                parts[name] = scores_of_all(mrr, simpler, x_adv[wrong])
                print(f"{victim.name} {method} {name}: {int(wrong.sum())}", file=sys.stderr)
            results["attacks"][method] = detection_rates(clean, parts)
        return results, report(victim, results)

    return run


def methods(
    victim: Victim, size: Size
) -> dict[str, dict[str, Callable[[], tuple[Tensor, Tensor]]]]:
    """The article's attacks, by the settings that its authors' code has for MNIST."""
    data = victim.test.head(victim.attacked)
    few = data.head(victim.few)
    rounds, steps = (4, 40) if victim.dear else size.search
    target = (few.y + torch.randint(1, 10, few.y.shape)) % 10

    def on(
        attack: attacks.Attack, part: Dataset, goal: Tensor | None = None
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: (attack(victim.net, part.x, part.y, target=goal), part.y)

    return {
        "FGS": {
            f"eps {eps}": on(attacks.FGSM(eps=eps), data)
            for eps in (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
        },
        "JSMA": {
            f"theta {theta}": on(attacks.JSMA(theta=theta, gamma=0.05), few, target)
            for theta in ((0.6, 1.0) if victim.dear else (0.6, 0.7, 0.8, 0.9, 1.0))
        },
        "DeepFool": {
            f"{steps} steps": on(attacks.DeepFool(steps=steps), data)
            for steps in ((5, 50) if victim.dear else (2, 5, 10, 20, 50, 100))
        },
        "C&W": {
            f"confidence {confidence}": on(
                attacks.CarliniWagnerL2(
                    confidence=float(confidence), search_steps=rounds, steps=steps
                ),
                few,
            )
            for confidence in ((0, 10, 20, 40) if victim.dear else range(0, 80, 10))
        },
        "BIM": {
            f"{steps} steps of {step}": on(
                attacks.BIM(eps=0.5, steps=steps, step_size=step, stop="never"), data
            )
            for step in (0.001, 0.002)
            for steps in ((5, 20, 50) if victim.dear else (5, 10, 20, 50, 100))
        },
    }


def scores_of_all(
    mrr: MRR, simpler: Mapping[str, Any], x: Tensor
) -> dict[str, np.ndarray[Any, Any]]:
    """Risk by the first defenders, by other rules, and what simpler detectors say, by name."""
    scores = mrr.scores(x)
    most = mrr.latent[0].count
    found = {f"N = {n}": scores[:, :n].amax(1).numpy() for n in COUNTS if n <= most}
    found["mean of all"] = scores[:, :most].mean(1).numpy()
    if mrr.inputs is not None:
        found["input defender"] = scores[:, most].numpy()
        found["all and input"] = scores.amax(1).numpy()
    features, logits = seen(mrr, x)
    for name, detector in simpler.items():
        rows = logits if name == "max softmax" else features
        found[name] = np.asarray(detector.anomaly_score(rows)) if len(rows) else np.zeros(0)
    return found


def detection_rates(
    clean: Mapping[str, np.ndarray[Any, Any]],
    parts: Mapping[str, Mapping[str, np.ndarray[Any, Any]]],
) -> dict[str, Any]:
    """Area under the ROC curve and detection at 1 and 5 %, pooled and for each setting."""
    pooled = {name: np.concatenate([part[name] for part in parts.values()]) for name in clean}
    return {
        "rows": len(pooled["N = 1"]),
        "pooled": {name: figures(clean[name], pooled[name]) for name in clean},
        "parts": {
            setting: {
                "rows": len(part["N = 1"]),
                **{name: figures(clean[name], part[name]) for name in clean},
            }
            for setting, part in parts.items()
        },
    }


def figures(clean: np.ndarray[Any, Any], attacked: np.ndarray[Any, Any]) -> list[float] | None:
    """Area under the curve, and shares above what 1 % and 5 % of the clean ones are above."""
    if not len(attacked):
        return None
    labels = np.repeat([0, 1], [len(clean), len(attacked)])
    area = roc_auc_score(labels, np.concatenate([clean, attacked]))
    shares = [float((attacked > np.quantile(clean, 1 - fpr)).mean()) for fpr in (0.01, 0.05)]
    return [float(area), *shares]


def false_alarms(mrr: MRR, victim: Victim) -> dict[str, Any]:
    """Share of clean images that is flagged, right or wrong answers alike, by policy and N."""
    found: dict[str, Any] = {"images": len(victim.test.x)}
    scores = mrr.scores(victim.test.x)
    for percent in (1, 5):
        for n in (n for n in COUNTS if n <= mrr.latent[0].count):
            shorter = mrr.first(n, inputs=False).with_policy(fpr=percent / 100)
            risk = scores[:, :n].amax(1)
            try:
                together = float((risk > shorter.threshold).double().mean())
            except ValueError:  # too few are held out for so small a share
                together = float("nan")
            each = float((risk > 1 - percent / 100).double().mean())
            found[f"{percent} %, N = {n}"] = {"jointly": together, "each": each}
    return found


def milliseconds(mrr: MRR, x: Tensor) -> dict[str, float]:
    """Of the risk of one image, the median of 50, and of 1,000 at once."""
    times = []
    for _ in range(50):
        began = time.perf_counter()
        mrr.risk(x[:1])
        times.append(time.perf_counter() - began)
    many = x[torch.arange(1000) % len(x)]
    began = time.perf_counter()
    mrr.risk(many)
    return {
        "one image": 1e3 * float(np.median(times)),
        "1,000 images": 1e3 * (time.perf_counter() - began),
    }


# --- simpler detectors on what the victim sees ---------------------------------------------------


class Seen:
    """Features of the victim at the defenders' layer, and its logits."""

    def __init__(self, mrr: MRR) -> None:
        self.model = mrr.fitted.victim
        self.tap = mrr.fitted.latent[0].defenders[0].tapped.tap

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(n, width)`, averaged over space, and `(n, classes)`."""
        layer = self.model.module.get_submodule(self.tap.layer)
        caught: list[Tensor] = []
        if self.tap.side == "output":
            handle = layer.register_forward_hook(lambda _, args, out: caught.append(out))
        else:
            handle = layer.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            with torch.no_grad(), evaluating(self.model):
                logits = [self.model.logits(part) for part in torch.split(x, 128)]
        finally:
            handle.remove()
        features = [part.flatten(2).mean(2) if part.ndim > 2 else part for part in caught]
        return torch.cat(features), torch.cat(logits)


def seen(mrr: MRR, x: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """As arrays; of no inputs, nothing."""
    if not len(x):
        return np.zeros((0, 1)), np.zeros((0, 1))
    features, logits = Seen(mrr)(x)
    return features.numpy(), logits.numpy()


def baselines(mrr: MRR, victim: Victim) -> dict[str, Any]:
    """Detectors of outputs that know clean data alone, by name."""
    data = victim.fit.head(5000)
    features, logits = seen(mrr, data.x)
    y = data.y.numpy()
    return {
        "max softmax": detectors.MaxSoftmax().fit(logits),
        "Mahalanobis": detectors.Mahalanobis().fit(features, y),
        "kernel density": detectors.KernelDensity().fit(features, y),
    }


# --- ImageNet ------------------------------------------------------------------------------------


def mobilenet(folder: Path, size: Size, out: Path | None) -> tuple[dict[str, Any], str]:
    """One defender on a net of ImageNet, with one image of each of 100 classes.

    The article has ten classes with many images. Here each class is known by crops of the one image
    that is then attacked, so that the figures say how the features of an image move, and nothing of
    images that were not seen. The net answers one of these classes: any other would have no density
    and be found by that alone.
    """
    data = load_npz(folder / IMAGENET_IMAGES).head(100 if size is FULL else 3)
    net = AmongClasses(imagenet_mobilenet_v1(), data.y)
    data = Dataset(data.x, torch.arange(len(data.y)), data.name)
    weights = read_torch(folder / MOBILENET)
    net.net.load_state_dict({name: value.float() for name, value in weights.items()})
    settings = LatentDefenders(count=1, epochs=3 if size is FULL else 1, batch_size=25, lr=1e-4)
    mrr = MRR(settings, calibration_fraction=0.3)
    views = 12 if size is FULL else 8
    known = Dataset(crops(data.x, views), data.y.repeat(views), "crops")
    began = time.perf_counter()
    mrr.fit(net, known.x, known.y, progress=True)
    fit = time.perf_counter() - began
    x = F.interpolate(data.x, size=160, mode="bilinear", antialias=True).clamp(0, 1)
    right = answers(mrr.fitted.victim, x) == data.y
    x, y = x[right], data.y[right]
    fresh = crops(data.x[right], 3, seed=1)
    labels = answers(mrr.fitted.victim, fresh)
    same = labels == y.repeat(3)
    negatives = torch.cat([distances(mrr, x, y), distances(mrr, fresh[same], labels[same])])
    pixels = {f"eps {eps}": attacks.FGSM(eps=eps) for eps in (0.01, 0.03, 0.1)}
    tried: dict[str, dict[str, Any]] = {
        "FGS": pixels,
        "DeepFool": {"10 classes": attacks.DeepFool()},
        "C&W": {"confidence 0": attacks.CarliniWagnerL2(search_steps=2, steps=25)},
        "BIM": {
            "20 steps of 0.002": attacks.BIM(eps=0.04, steps=20, step_size=0.002, stop="never")
        },
    }
    found = {}
    for method, settings_ in tried.items():
        positives = []
        for attack in settings_.values():
            x_adv = attack(net, x, y)
            told = answers(mrr.fitted.victim, x_adv)
            positives.append(distances(mrr, x_adv[told != y], told[told != y]))
        found[method] = figures(negatives.numpy(), torch.cat(positives).numpy())
    rows = [[name, shown(f), f"{ARTICLE['ImageNet'][name]:.3f}"] for name, f in found.items()]
    results = {"attacks": found, "images": len(x), "fit seconds": round(fit)}
    return results, f"## MobileNet V1 0.50\n\n{table(['attack', 'here', 'article'], rows)}\n"


class AmongClasses(nn.Module):
    """A net that answers some of its classes alone."""

    def __init__(self, net: nn.Module, classes: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("classes", classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits[:, self.classes]


def distances(mrr: MRR, x: Tensor, labels: Tensor) -> Tensor:
    """To the centre of the class that is answered.

    With a handful of images for each class there is no distribution for each of them.
    """
    if not len(x):
        return torch.zeros(0)
    with torch.no_grad():
        parts = zip(torch.split(x, 25), torch.split(labels, 25), strict=True)
        return torch.cat([mrr.fitted.distances(a, b)[:, 0] for a, b in parts])


def crops(x: Tensor, count: int, seed: int = 0) -> Tensor:
    """Of each image `count` crops of 160 pixels, mirrored at random: `(count * n, 3, 160, 160)`."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(count):
        for image in x:
            side = int(torch.randint(176, 225, (), generator=generator))
            top, left = (int(v) for v in torch.randint(0, 225 - side, (2,), generator=generator))
            part = image[None, :, top : top + side, left : left + side]
            part = part.flip(3) if torch.rand((), generator=generator) < 0.5 else part
            parts.append(F.interpolate(part, size=160, mode="bilinear", antialias=True))
    return torch.cat(parts).clamp(0, 1)


# --- what is printed -----------------------------------------------------------------------------


def report(victim: Victim, results: Mapping[str, Any]) -> str:
    """Tables of one victim, in Markdown."""
    found = results["attacks"]
    names = list(next(iter(found.values()))["pooled"])
    article = ARTICLE[victim.images]
    head = ["attack", "rows", *names, "article, N = 16"]
    areas = [
        [method, f["rows"], *(shown(f["pooled"][name]) for name in names), f"{article[method]:.3f}"]
        for method, f in found.items()
    ]
    caught = [
        [method, *(percent(f["pooled"][name]) for name in names)] for method, f in found.items()
    ]
    most = [name for name in names if name.startswith("N")][-1]
    parts = [
        [method, setting, part["rows"], shown(part[most]), percent(part[most])]
        for method, f in found.items()
        for setting, part in f["parts"].items()
    ]
    alarms = [
        [name, *(f"{100 * f[kind]:.2f}" for kind in ("jointly", "each"))]
        for name, f in results["false alarms"].items()
        if name != "images"
    ]
    off = np.array(results["correlation"])[np.triu_indices(len(results["correlation"]), 1)]
    return f"""## {victim.name}: {100 * results["accuracy"]:.1f} % accurate, fitted in \
{results["fit seconds"]} s

Area under the ROC curve, settings pooled

{table(head, areas)}

Detected at 1 and 5 % of {results["clean images"]} clean images, in %

{table(["attack", *names], caught)}

Each setting, {most}

{table(["attack", "setting", "rows", "area", "detected"], parts)}

False alarms in %, of {results["false alarms"]["images"]} clean images

{table(["security", "jointly", "each"], alarms)}

Correlation of two defenders' scores on clean images: {off.min():.2f} to {off.max():.2f}. \
Risk of one image {results["milliseconds"]["one image"]:.1f} ms, \
of 1,000 {results["milliseconds"]["1,000 images"]:.0f} ms.
"""


def shown(found: list[float] | None) -> str:
    """An area."""
    return "none" if found is None else f"{found[0]:.4f}"


def percent(found: list[float] | None) -> str:
    """Two shares."""
    return "none" if found is None else f"{100 * found[1]:.1f}, {100 * found[2]:.1f}"


# --- what victim and defender see, Figure 4 ------------------------------------------------------


def figure(folder: Path, size: Size, out: Path | None) -> tuple[dict[str, Any], str]:
    """Figure 4: features and distances to their class's centre, of victim and first defender."""
    victim = mlp(folder, size, out)
    mrr, _ = fitted(victim, out)
    data = victim.test.head(size.attacked)
    x_adv = attacks.FGSM(eps=0.1)(victim.net, data.x, data.y)
    model = mrr.fitted.victim
    right, wrong = answers(model, data.x) == data.y, answers(model, x_adv) != data.y
    clean, moved = data.x[right], x_adv[right & wrong]
    labels = {"clean": answers(model, clean), "FGSM": answers(model, moved)}
    seen_by = Seen(mrr)
    train = victim.fit.head(10_000)
    centres = class_means(seen_by(train.x)[0], train.y)
    of_victim = {k: seen_by(x)[0] for k, x in (("clean", clean), ("FGSM", moved))}
    own = mrr.first(1)
    of_defender = {k: own.features(x).detach() for k, x in (("clean", clean), ("FGSM", moved))}
    away = {
        "victim": {k: (f - centres[labels[k]]).norm(dim=1) for k, f in of_victim.items()},
        "defender": {
            k: own.fitted.distances(x, labels[k])[:, 0].detach()
            for k, x in (("clean", clean), ("FGSM", moved))
        },
    }
    areas = {
        name: roc_auc_score(
            np.repeat([0, 1], [len(part["clean"]), len(part["FGSM"])]), torch.cat([*part.values()])
        )
        for name, part in away.items()
    }
    if out is not None:
        drawn = draw({"victim": of_victim, "defender": of_defender}, away, labels, areas)
        save_figure(out / "figure4.png", drawn)
    said = ", ".join(f"{area:.3f} in the {name}" for name, area in areas.items())
    return {"areas": areas}, f"## Figure 4\n\nArea under the curve by distance: {said}\n"


def class_means(features: Tensor, y: Tensor) -> Tensor:
    """`(10, width)`."""
    return torch.stack([features[y == label].mean(0) for label in range(10)])


def draw(
    features: Mapping[str, Mapping[str, Tensor]],
    away: Mapping[str, Mapping[str, Tensor]],
    labels: Mapping[str, Tensor],
    areas: Mapping[str, float],
) -> Any:
    """Three principal axes of the features above, distances to the centre of the class below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(shown)
    for column, name in enumerate(features):
        clean, moved = features[name]["clean"], features[name]["FGSM"]
        mean = clean.mean(0)
        axes = torch.linalg.svd(clean - mean, full_matrices=False).Vh[:3].T
        space = shown.add_subplot(2, 2, 1 + column, projection="3d")
        points, dots = (clean - mean) @ axes, (moved - mean) @ axes
        space.scatter(*points.T, c=labels["clean"], cmap="tab10", s=6, alpha=0.6)
        space.scatter(*dots[:200].T, c="red", s=10, marker="x", label="FGSM, eps 0.1")
        space.set_title(f"What the {name} sees: three principal axes")
        space.legend(loc="upper right")
        chart = shown.add_subplot(2, 2, 3 + column)
        most = float(torch.cat([*away[name].values()]).quantile(0.995))
        bins = np.linspace(0, most, 40)
        for kind, colour in (("clean", "tab:blue"), ("FGSM", "tab:red")):
            chart.hist(away[name][kind], bins, density=True, alpha=0.6, color=colour, label=kind)
        chart.set_title(f"Distance to the centre of the answer's class: AUC {areas[name]:.3f}")
        chart.set_xlabel("distance")
        chart.set_ylabel("density of images")
        chart.legend()
    return shown


PARTS: dict[str, Callable[[Path, Size, Path | None], tuple[dict[str, Any], str]]] = {
    **{part: oblivious(part) for part in VICTIMS},
    "mobilenet": mobilenet,
    "figure": figure,
}
FILES_OF_PARTS = {**FILES, "mobilenet": (IMAGENET_IMAGES, MOBILENET), "figure": FILES["mlp"]}


if __name__ == "__main__":
    main()
