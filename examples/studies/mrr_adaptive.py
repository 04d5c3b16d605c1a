"""What is left of defenders that know clean data alone when the attack knows them?

    python examples/studies/mrr_adaptive.py --data FOLDER [--quick] [--out FOLDER]

Table 2 of the article that `mrr_study.py` follows, on its net for MNIST. `--out` gets
`adaptive.json`, and the net and defenders, which both studies go on from. `--quick` takes a handful
of images: its figures mean nothing.

Three ways to count, each with what it hides. The article's: each defender alarms at its own
percentile, so that more defenders flag more clean images, and an attack whose weight of the
detector is fixed. The honest one: all defenders together flag the same share of clean images
whatever their number, and the attack searches that weight too and begins at a natural image. And
by budget: the share of images for which nothing within it is both wrong and accepted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mrr_victims import COUNTS, FILES, FULL, QUICK, Size, answers, fitted, mlp
from study import (
    arguments,
    percent,
    require_files,
    run_part,
    table,
)
from torch import Tensor, nn

from advkit import TorchClassifier, attacks
from advkit.attacks import FeatureMatching, JointCarliniWagner, SelectivePGD
from advkit.data import Dataset
from advkit.defenses import MRR
from advkit.detectors import Guard

# The article's Table 2: share of images defended, distortion over that of N = 0, false alarms.
ARTICLE = {
    1: {
        1: (43, 1.04, 2.9), 2: (53, 1.11, 4.4), 4: (64, 1.12, 6.1), 8: (65, 1.31, 7.8),
        16: (66, 1.38, 8.4),
    },
    5: {
        1: (46, 1.09, 6.9), 2: (63, 1.28, 11.2), 4: (69, 1.28, 16.2), 8: (81, 1.63, 21.9),
        16: (84, 1.57, 27.6),
    },
}  # fmt: skip
PERCENT = (1, 5)  # false-positive rates
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # linf; the last one holds every image


@dataclass(frozen=True, eq=False)
class Case:
    """What is attacked, and what the attacker has.

    Attributes:
        net: the victim.
        mrr: its defenders, in a chain.
        seeds: as many defenders without a chain.
        clean: images that are asked for false alarms.
        data: images that are attacked, all of them classified rightly.
        start_images: clean images of the attacker.
        rounds: of the attacks, and how many steps each has.
    """

    net: nn.Module
    mrr: MRR
    seeds: MRR
    clean: Dataset
    data: Dataset
    start_images: Tensor
    rounds: tuple[int, int]


def main() -> None:
    """Fit, attack, print the tables and write what is asked for."""
    args = arguments(__doc__, data="nets and images", out="defenders and adaptive.json")
    require_files(args.data, *FILES["mlp"])
    size = QUICK if args.quick else FULL
    run_part("adaptive", partial(knowing, args.data, size, args.out), args.out)


def knowing(folder: Path, size: Size, out: Path | None) -> tuple[dict[str, Any], str]:
    """Table 2, on the article's net."""
    victim = mlp(folder, size, out)
    mrr, _ = fitted(victim, out)
    layer = replace(victim.settings.latent[0], chain=None)
    other = replace(victim, name="MLP seeds", settings=MRR(layer))
    seeds, _ = fitted(other, out)
    right = answers(mrr.fitted.victim, victim.test.x) == victim.test.y
    data = Dataset(victim.test.x[right], victim.test.y[right], "right").head(size.adaptive)
    case = Case(
        victim.net, mrr, seeds, victim.test, data, victim.fit.x[: 10 * size.few // 2], size.rounds
    )
    return adaptive(case, [n for n in COUNTS if n <= size.defenders])


def adaptive(case: Case, counts: Sequence[int]) -> tuple[dict[str, Any], str]:
    """All of it, as figures and as text."""
    plain = TorchClassifier(case.net)
    rounds, steps = case.rounds
    weak = JointCarliniWagner(schedule="published", search_steps=rounds + 1, steps=2 * steps)
    strong = JointCarliniWagner(search_steps=rounds, steps=steps, start_images=case.start_images)
    results: dict[str, Any] = {
        "images": len(case.data.x),
        "article": {"0": minimum_norm(case, weak, plain)},
        "honest": {"0": minimum_norm(case, strong, plain)},
        "control": {},
    }
    for level in PERCENT:
        for n in counts:
            chain = case.mrr.first(n, inputs=False)
            each = chain.with_policy(fpr=level / 100, joint_threshold=False)
            results["article"][f"{level} %, N = {n}"] = minimum_norm(case, weak, guard(case, each))
            results["article"][f"{level} %, N = {n}, tuned"] = minimum_norm(
                case, strong, guard(case, each)
            )
            together = chain.with_policy(fpr=level / 100)
            results["honest"][f"{level} %, N = {n}"] = minimum_norm(
                case, strong, guard(case, together)
            )
        results["control"] |= controls(case, strong, level, counts[-1], results["article"])
    results["budgets"] = by_budget(case, counts)
    return results, report(results, counts)


def guard(case: Case, mrr: MRR) -> Guard:
    """The victim behind defenders."""
    return Guard(case.net, mrr)


def minimum_norm(case: Case, attack: JointCarliniWagner, model: Any) -> dict[str, float]:
    """Shares in percent and distances of one attack in l2 on one guard."""
    found = attack.run(model, case.data.x, case.data.y)
    won = found.distance[found.success]
    all_of_them = torch.where(found.success, found.distance, math.inf)
    figures = {
        "defended": percent(~found.success),
        "mean": float(won.mean()) if len(won) else math.nan,
        "mean square": float(won.square().mean()) if len(won) else math.nan,
        "median": float(all_of_them.sort().values[(len(all_of_them) - 1) // 2]),
        "false alarms": false_alarms(case, model),
    }
    print(f"{attack} on {model}: {figures}", file=sys.stderr, flush=True)
    return figures


def false_alarms(case: Case, model: Any) -> float:
    """Share of rightly classified clean images that is rejected, in percent."""
    if not isinstance(model, Guard):
        return 0.0
    right = model.model.predict(case.clean.x) == case.clean.y
    rejected = model.inspect(case.clean.x).alarm
    return percent(rejected[right])


def controls(
    case: Case,
    attack: JointCarliniWagner,
    level: int,
    most: int,
    article: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """One defender that flags as much as all; defenders that differ by their seed alone; more."""
    rate = article[f"{level} %, N = {most}, tuned"]["false alarms"]
    smallest = 101 / len(case.mrr.fitted.clean)  # percent: one of what is held out
    one = case.mrr.first(1, inputs=False).with_policy(fpr=max(rate, smallest) / 100)
    seeds = case.seeds.with_policy(fpr=level / 100)
    dictionaries = case.mrr.first(most).with_policy(fpr=level / 100)
    chain = case.mrr.first(most, inputs=False).with_policy(fpr=level / 100)
    longer = replace(attack, steps=4 * attack.steps)
    return {
        f"{level} %, N = {most}, four times the steps": minimum_norm(
            case, longer, guard(case, chain)
        ),
        f"N = {most} and the input defender, {level} % jointly": minimum_norm(
            case, attack, guard(case, dictionaries)
        ),
        f"N = 1 at the rate of {most} with {level} % each": minimum_norm(
            case, attack, guard(case, one)
        ),
        f"{most} seeds without a chain, {level} % jointly": minimum_norm(
            case, attack, guard(case, seeds)
        ),
    }


def by_budget(case: Case, counts: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Share of images for which nothing in the budget is wrong and accepted, in percent."""
    models: dict[str, Any] = {"no guard": TorchClassifier(case.net)}
    for n in (counts[0], counts[-1]):
        models[f"N = {n}, 5 % jointly"] = guard(
            case, case.mrr.first(n, inputs=False).with_policy(fpr=0.05)
        )
    found: dict[str, dict[str, list[float]]] = {}
    for name, model in models.items():
        rows: dict[str, list[float]] = {}
        for eps in BUDGETS:
            worst = torch.zeros(len(case.data.x), dtype=torch.bool)
            for attack_name, attack in by_name(case, eps).items():
                success = attacked(attack, model, case.data)
                worst |= success
                rows.setdefault(attack_name, []).append(percent(~success))
            rows.setdefault("worst of all", []).append(percent(~worst))
        found[name] = rows
        print(f"{name}: {rows}", file=sys.stderr, flush=True)
    return found


def by_name(case: Case, eps: float) -> dict[str, Callable[[Any, Tensor, Tensor], Tensor]]:
    """The attacks within a budget: one that ignores the guard, three that know it."""
    steps = case.rounds[1]

    def ignoring(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return attacks.PGD(eps=eps, steps=steps, stop="never")(case.net, x, y)

    known = {
        "selective PGD": SelectivePGD(eps=eps, steps=steps, start_images=case.start_images),
        "orthogonal PGD": SelectivePGD(
            eps=eps, steps=steps, start_images=case.start_images, kind="orthogonal"
        ),
        "feature matching": FeatureMatching(eps=eps, steps=steps, start_images=case.start_images),
    }
    return {"PGD on the victim": ignoring, **known}


def attacked(attack: Callable[[Any, Tensor, Tensor], Tensor], model: Any, data: Dataset) -> Tensor:
    """Whether what an attack gives is answered, and wrongly, bool `(n,)`."""
    answer = model.predict(attack(model, data.x, data.y))
    return (answer != data.y) & (answer >= 0)


def report(results: Mapping[str, Any], counts: Sequence[int]) -> str:
    """Tables in Markdown."""
    return f"""## Attacks that know the defenders, {results["images"]} images

The article's way: each defender at its own percentile

{table(*article_rows(results["article"], counts))}

The honest way: matched false alarms, tuned attack

{table(*honest_rows({**results["honest"], **results["control"]}))}

Defended by budget, linf, in %

{table(*budget_rows(results["budgets"]))}
"""


Rows = tuple[list[object], list[list[object]]]


def article_rows(found: Mapping[str, Mapping[str, float]], counts: Sequence[int]) -> Rows:
    """The article's attack and the tuned one beside the article's figures."""
    head: list[object] = ["each", "N", "false alarms", "article", "defended", "article"]
    head += ["normalised distortion", "article", "tuned: defended", "tuned: mean l2"]
    base, rows = found["0"]["mean square"], []
    for level in PERCENT:
        for n in counts:
            weak, tuned = (found[f"{level} %, N = {n}{end}"] for end in ("", ", tuned"))
            said = ARTICLE[level].get(n, ("-", "-", "-"))
            row: list[object] = [f"{level} %", n, f"{weak['false alarms']:.1f}", said[2]]
            row += [f"{weak['defended']:.0f}", said[0]]
            row += [f"{weak['mean square'] / base:.2f}", said[1]]
            rows.append([*row, f"{tuned['defended']:.0f}", f"{tuned['mean']:.2f}"])
    return head, rows


def honest_rows(found: Mapping[str, Mapping[str, float]]) -> Rows:
    """A row for each guard."""
    head: list[object] = ["guard", "false alarms", "defended", "mean l2", "median l2", "of N = 0"]
    base = found["0"]["median"]
    rows: list[list[object]] = [
        [
            "none" if name == "0" else name,
            f"{f['false alarms']:.1f}",
            f"{f['defended']:.0f}",
            f"{f['mean']:.2f}",
            f"{f['median']:.2f}",
            f"{f['median'] / base:.2f}",
        ]
        for name, f in found.items()
    ]
    return head, rows


def budget_rows(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Rows:
    """A row for each guard and attack, a column for each budget."""
    rows: list[list[object]] = [
        [name, attack, *(f"{share:.0f}" for share in shares)]
        for name, parts in found.items()
        for attack, shares in parts.items()
    ]
    return ["guard", "attack", *BUDGETS], rows


if __name__ == "__main__":
    main()
