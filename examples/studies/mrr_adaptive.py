"""What is left of the defenders of `mrr_study.py` when the attack knows them: its Table 2.

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
from typing import Any

import torch
from cloud_automl_study import table as markdown
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
PERCENT = (1, 5)
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
        natural: clean images of the attacker.
        rounds: of the attacks, and how many steps each has.
    """

    net: nn.Module
    mrr: MRR
    seeds: MRR
    clean: Dataset
    data: Dataset
    natural: Tensor
    rounds: tuple[int, int]


def adaptive(case: Case, counts: Sequence[int]) -> tuple[dict[str, Any], str]:
    """All of it, as figures and as text."""
    plain = TorchClassifier(case.net)
    rounds, steps = case.rounds
    weak = JointCarliniWagner(published=True, search_steps=rounds + 1, steps=2 * steps)
    strong = JointCarliniWagner(search_steps=rounds, steps=steps, natural=case.natural)
    results: dict[str, Any] = {
        "images": len(case.data.x),
        "article": {"0": minimum_norm(case, weak, plain)},
        "honest": {"0": minimum_norm(case, strong, plain)},
        "control": {},
    }
    for percent in PERCENT:
        for n in counts:
            chain = case.mrr.first(n, inputs=False)
            each = chain.with_policy(security=percent, jointly=False)
            results["article"][f"{percent} %, N = {n}"] = minimum_norm(
                case, weak, guard(case, each)
            )
            results["article"][f"{percent} %, N = {n}, tuned"] = minimum_norm(
                case, strong, guard(case, each)
            )
            together = chain.with_policy(security=percent)
            results["honest"][f"{percent} %, N = {n}"] = minimum_norm(
                case, strong, guard(case, together)
            )
        results["control"] |= controls(case, strong, percent, counts[-1], results["article"])
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
        "defended": 100 * float((~found.success).double().mean()),
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
    rejected = model.judge(case.clean.x).alarm
    return 100 * float(rejected[right].double().mean())


def controls(
    case: Case,
    attack: JointCarliniWagner,
    percent: int,
    most: int,
    article: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """One defender that flags as much as all; defenders that differ by their seed alone; more."""
    rate = article[f"{percent} %, N = {most}, tuned"]["false alarms"]
    least = 101 / len(case.mrr.fitted.clean)  # percent: one of what is held out
    one = case.mrr.first(1, inputs=False).with_policy(security=max(rate, least))
    seeds = case.seeds.with_policy(security=percent)
    dictionaries = case.mrr.first(most).with_policy(security=percent)
    chain = case.mrr.first(most, inputs=False).with_policy(security=percent)
    longer = replace(attack, steps=4 * attack.steps)
    return {
        f"{percent} %, N = {most}, four times the steps": minimum_norm(
            case, longer, guard(case, chain)
        ),
        f"N = {most} and the input defender, {percent} % jointly": minimum_norm(
            case, attack, guard(case, dictionaries)
        ),
        f"N = 1 at the rate of {most} with {percent} % each": minimum_norm(
            case, attack, guard(case, one)
        ),
        f"{most} seeds without a chain, {percent} % jointly": minimum_norm(
            case, attack, guard(case, seeds)
        ),
    }


def by_budget(case: Case, counts: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Share of images for which nothing in the budget is wrong and accepted, in percent."""
    models: dict[str, Any] = {"no guard": TorchClassifier(case.net)}
    for n in (counts[0], counts[-1]):
        models[f"N = {n}, 5 % jointly"] = guard(
            case, case.mrr.first(n, inputs=False).with_policy(security=5)
        )
    found: dict[str, dict[str, list[float]]] = {}
    for name, model in models.items():
        rows: dict[str, list[float]] = {}
        for eps in BUDGETS:
            worst = torch.zeros(len(case.data.x), dtype=torch.bool)
            for attack_name, attack in by_name(case, eps).items():
                success = attacked(attack, model, case.data)
                worst |= success
                rows.setdefault(attack_name, []).append(left(success))
            rows.setdefault("worst of all", []).append(left(worst))
        found[name] = rows
        print(f"{name}: {rows}", file=sys.stderr, flush=True)
    return found


def by_name(case: Case, eps: float) -> dict[str, Callable[[Any, Tensor, Tensor], Tensor]]:
    """The attacks within a budget: one that ignores the guard, three that know it."""
    steps = case.rounds[1]

    def ignoring(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return attacks.PGD(eps=eps, steps=steps, stop="never")(case.net, x, y)

    known = {
        "selective PGD": SelectivePGD(eps=eps, steps=steps, natural=case.natural),
        "orthogonal PGD": SelectivePGD(
            eps=eps, steps=steps, natural=case.natural, kind="orthogonal"
        ),
        "feature matching": FeatureMatching(eps=eps, steps=steps, natural=case.natural),
    }
    return {"PGD on the victim": ignoring, **known}


def attacked(attack: Callable[[Any, Tensor, Tensor], Tensor], model: Any, data: Dataset) -> Tensor:
    """Whether what an attack gives is answered, and wrongly, bool `(n,)`."""
    answer = model.predict(attack(model, data.x, data.y))
    return (answer != data.y) & (answer >= 0)


def left(success: Tensor) -> float:
    """What an attack leaves, in percent."""
    return 100 * float((~success).double().mean())


def report(results: Mapping[str, Any], counts: Sequence[int]) -> str:
    """Tables in Markdown."""
    return f"""## Attacks that know the defenders, {results["images"]} images

The article's way: each defender at its own percentile

{markdown(*article_rows(results["article"], counts))}

The honest way: matched false alarms, tuned attack

{markdown(*honest_rows({**results["honest"], **results["control"]}))}

Defended by budget, linf, in %

{markdown(*budget_rows(results["budgets"]))}
"""


Rows = tuple[list[object], list[list[object]]]


def article_rows(found: Mapping[str, Mapping[str, float]], counts: Sequence[int]) -> Rows:
    """The article's attack and the tuned one beside the article's figures."""
    head: list[object] = ["each", "N", "false alarms", "article", "defended", "article"]
    head += ["normalised distortion", "article", "tuned: defended", "tuned: mean l2"]
    base, rows = found["0"]["mean square"], []
    for percent in PERCENT:
        for n in counts:
            weak, tuned = (found[f"{percent} %, N = {n}{end}"] for end in ("", ", tuned"))
            said = ARTICLE[percent].get(n, ("-", "-", "-"))
            row: list[object] = [f"{percent} %", n, f"{weak['false alarms']:.1f}", said[2]]
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
