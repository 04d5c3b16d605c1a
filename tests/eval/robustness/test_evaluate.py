"""Evaluation: denominators, worst cases, and who is attacked at all."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advkit import TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.results import AttackResult, InconclusiveWarning, Queries
from tests.eval import evaluated
from tests.toys import answers, convnet, images


@pytest.fixture
def net():
    return convnet()


@pytest.fixture
def x():
    return images(40)


@pytest.fixture
def y(net, x):
    """Labels of which the net gets the first ten wrong."""
    y = answers(net, x)
    return torch.cat([(y[:10] + 1) % 3, y[10:]])


@dataclasses.dataclass(frozen=True)
class Fools:
    """An attack that has its way with inputs whose first pixel lies in an interval.

    The pixel is the distance.
    """

    low: float
    high: float
    norm: str = "l2"
    eps: object = 2.0

    def run(self, model, x, y=None, *, target=None):
        first = x.flatten(1)[:, 0]
        n = len(x)
        ones = torch.ones(n, dtype=torch.int64)
        return AttackResult(
            x_adv=x, success=(self.low <= first) & (first < self.high), distance=first,
            norm=self.norm,
            queries=Queries(3 * ones, 2 * ones), no_gradient=torch.zeros(n, dtype=torch.bool),
        )  # fmt: skip

    def __call__(self, model, x, y=None, *, target=None):
        return x


def test_accuracy_states_its_denominator(net, x, y):
    rate = rob.accuracy(net, x, y, batch_size=7)
    assert rate == rob.Rate(30, 40)
    assert float(rate) == 0.75
    assert str(rate) == "75.00 % (30 of 40)"
    interval = list(rate.interval)
    assert rate.to_dict() == {"value": 0.75, "count": 30, "total": 40, "interval": interval}
    assert rob.Rate(0, 0).to_dict()["value"] is None
    assert rob.accuracy(net, [], None) == rob.Rate(0, 0)


def test_what_an_attack_refuses_is_counted_over_all_inputs(net, x, y):
    class Refuses(Fools):
        def run(self, model, x, y=None, *, target=None):
            if len(x) == 8:
                return super().run(model, x, y, target=target)
            raise ValueError("not these")

    said = "in the batch that begins at sample 8: not these"
    with pytest.raises(ValueError, match=said):
        rob.evaluate(net, x[10:22], y[10:22], attacks=[Refuses(0.0, 0.5)], batch_size=8)


def test_worst_case_is_taken_input_by_input(net, x, y):
    """Two attacks that each turn some inputs: the union counts, not the better of the means."""
    low, high = Fools(0.0, 0.4), Fools(0.6, 1.1)
    report = rob.evaluate(net, x, y, attacks=[low, high])
    first = x.flatten(1)[10:, 0]
    each = [int((first >= 0.4).sum()), int((first < 0.6).sum())]
    assert [o.robust_accuracy.count for o in report.outcomes] == each
    both = int(((first >= 0.4) & (first < 0.6)).sum())
    assert report.worst_case == rob.Rate(both, 40)
    assert both < min(each)
    assert rob.robust_accuracy(net, x, y, attacks=[low, high]) == report.worst_case


def test_misclassified_inputs_are_not_robust_and_not_attacked(net, x, y):
    report = rob.evaluate(net, x, y, attacks=[Fools(2, 3), attacks.PGD(eps=0.0, steps=1)])
    for outcome in report.outcomes:
        assert outcome.robust_accuracy == rob.Rate(30, 40)
        assert (outcome.forward[:10] == 0).all()
        assert (outcome.forward[10:] > 0).all()
    assert report.outcomes[0].mean_of_attacked(report.outcomes[0].forward) == 3
    assert report.outcomes[0].median_distance == math.inf


def test_it_is_what_the_attack_says(net, x, y):
    attack = attacks.PGD(eps=0.03, steps=5)
    result = attack.run(net, x, y)
    report = rob.evaluate(net, x, y, attacks=[attack], batch_size=16)
    assert report.outcomes[0].robust_accuracy.count == int((~result.success).sum())
    assert 0 < report.outcomes[0].robust_accuracy.count < 30


@pytest.mark.parametrize("batch_size", [1, 7, 40, 100])
def test_batches_change_nothing(net, x, y, batch_size):
    attack = attacks.PGD(eps=0.03, steps=5)
    expected = evaluated.plain(rob.evaluate(net, x, y, attacks=[attack], batch_size=13))
    found = evaluated.plain(rob.evaluate(net, x, y, attacks=[attack], batch_size=batch_size))
    for report in (expected, found):
        for key in ("forward_per_attacked_input", "backward_per_attacked_input"):
            report["attacks"][0].pop(key)  # which samples share a backward pass does depend on it
        report["sha256"].pop("records")  # which hold the passes of each input
    assert found == expected


def test_loaders_and_generators_of_batches(net, x, y):
    attack = attacks.FGSM(eps=0.05)
    expected = rob.robust_accuracy(net, x, y, attacks=[attack])
    loader = DataLoader(TensorDataset(x, y), batch_size=9)
    assert rob.robust_accuracy(net, loader, attacks=[attack]) == expected
    assert rob.robust_accuracy(net, ((a, b) for a, b in loader), attacks=[attack]) == expected
    assert rob.accuracy(net, loader) == rob.Rate(30, 40)


def test_eps_of_each_sample_follows_it_through_the_batches(net, x, y):
    eps = torch.linspace(0, 0.1, 40)
    attack = attacks.PGD(eps=eps, steps=5)
    expected = attack.run(net, x, y)
    outcome = rob.evaluate(net, x, y, attacks=[attack], batch_size=7).outcomes[0]
    assert torch.equal(outcome.robust, ~expected.success)
    assert outcome.eps is None


def test_the_stream_reports_after_each_batch_on_the_same_inputs(net, x, y):
    stream = rob.evaluate_stream(net, x, y, attacks=[Fools(0, 0.5), Fools(0.5, 1)], batch_size=16)
    reports = list(stream)
    assert [len(r.clean) for r in reports] == [16, 32, 40]
    for report in reports:
        assert {len(o.robust) for o in report.outcomes} == {len(report.clean)}
    assert "INTERRUPTED: 16 of 40" in str(reports[0])
    assert "INTERRUPTED" not in str(reports[-1])


def test_the_module_is_untouched(net, x, y):
    net.train()
    calls = int(net.calls)
    rob.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
    assert net.training
    assert net.norm.training
    assert net.calls == calls


def test_inputs_without_gradient_are_named(net, x):
    class Dead(nn.Module):
        def forward(self, x):
            return net(torch.full_like(x, 0.5) + 0 * x)

    y = answers(Dead(), x)
    with pytest.warns(UserWarning, match="gradient of zero"):
        report = rob.evaluate(Dead(), x, y, attacks=[attacks.FGSM(eps=0.1)])
    assert "had no usable gradient on 40 inputs" in str(report)
    assert report.to_dict()["attacks"][0]["inputs_without_gradient"] == 40


def test_bad_arguments(net, x, y):
    attack = attacks.FGSM(eps=0.1)
    with pytest.raises(ValueError, match="at least one attack"):
        rob.evaluate(net, x, y, attacks=[])
    with pytest.raises(TypeError, match="`attacks` must be a list of attacks"):
        rob.evaluate(net, x, y, attacks=attack)
    with pytest.raises(TypeError, match="`attacks` must be a list of attacks"):
        rob.evaluate(net, x, y, attacks=["FGSM"])
    with pytest.raises(ValueError, match="at least one sample"):
        rob.evaluate(net, x[:0], y[:0], attacks=[attack])
    with pytest.raises(ValueError, match="`y` must be below 3"):
        rob.evaluate(net, x, torch.full_like(y, 3), attacks=[attack])
    with pytest.raises(ValueError, match="`y` must have one label for each of 40 samples, got 39"):
        rob.accuracy(net, x, y[1:])
    with pytest.raises(ValueError, match="bounds"):
        rob.accuracy(net, 5 * x, y)


def report_of(net, x, y):
    made = [a(eps=e) for a in (attacks.FGSM, attacks.PGD) for e in (0.02, 0.1)]
    return rob.evaluate(net, x, y, attacks=[*made, attacks.FGM(eps=0.5)])


def test_the_table_is_complete(net, x, y):
    report = report_of(net, x, y)
    text = str(report)
    for outcome in report.outcomes:
        assert outcome.label in text
        assert str(outcome.robust_accuracy) in text
    assert "clean accuracy 75.00 % (30 of 40)" in text
    for budget, rate in report.worst_cases.items():
        assert f"worst case, {budget} " in text
        assert str(rate) in text
    assert "share of all 40 inputs" in text
    assert "The 10 inputs that are misclassified" in text


def test_the_dict_is_plain_and_round_trips(net, x, y, tmp_path):
    report = report_of(net, x, y)
    path = report.save_json(tmp_path / "deep" / "report.json")
    assert json.loads(path.read_text()) == report.to_dict()
    found = json.loads(path.read_text())
    assert found["worst_case_by_budget"]["l2 0.5"] == report.worst_cases["l2 0.5"].to_dict()
    assert found["attacks"][0]["settings"] == {
        "eps": 0.02,
    }
    assert found["attacks"][0]["eps"] == 0.02


def test_lines_join_measured_points_of_one_attack_only(net, x, y):
    figure = report_of(net, x, y).plot()
    titles = [axes.get_xlabel() for axes in figure.axes]
    assert titles == ["eps (l2, input units)", "eps (linf, input units)"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[1].lines}
    assert set(lines) == {"FGSM", "PGD", "random noise", "worst case", "no attack"}
    assert lines["no attack"] == [[0.0, 75.0]]
    assert [point[0] for point in lines["PGD"]] == [0.02, 0.1]
    assert [point[0] for point in lines["random noise"]] == [0.02, 0.1]
    alone = rob.evaluate(net, x, y, attacks=[attacks.PGD(eps=0.1)]).plot()
    lines = {line.get_label(): line.get_xydata().tolist() for line in alone.axes[0].lines}
    assert [point[0] for point in lines["PGD"]] == [0.1]
    each = attacks.FGSM(eps=torch.full((40,), 0.1))
    assert rob.evaluate(net, x, y, attacks=[each]).plot() is None


def test_the_page_holds_table_curves_and_pictures(net, x, y, tmp_path):
    report = report_of(net, x, y)
    html = report.save_html(tmp_path / "report.html").read_text()
    table = html[html.index('id="budget-table"') : html.index('id="cost-table"')]
    table = table[: table.index("</table>")]
    # a heading of all, and of each budget its title, noise and worst case
    assert table.count("<tr") == 1 + 3 * len(report.worst_cases) + len(report.outcomes)
    assert html.count('<svg class="panel"') == 2
    assert html.count("data:image/png;base64,") % 3 == 0
    assert "http" not in html
    for outcome in report.outcomes:
        assert outcome.label.replace("'", "&#39;") in html


def test_saved_files_tell_that_they_belong_together(net, x, y, tmp_path):
    report = report_of(net, x, y)
    json_path, _, html_path = report.save(tmp_path / "deep")
    found, page = json.loads(json_path.read_text()), html_path.read_text()
    assert found["page"] == "report.html"
    assert f"digest: {found['digest']}\n" in page
    assert {**found, **report.to_dict()} == found
    assert sorted(p.name for p in json_path.parent.iterdir()) == [
        "records.npz",
        "report.html",
        "report.json",
    ]
    assert "digest: " not in report.to_html()


def test_the_digest_depends_on_all_figures_except_times(net, x, y):
    report = report_of(net, x, y)
    first, *rest = report.outcomes
    slower = dataclasses.replace(first, seconds=first.seconds + 1)
    assert dataclasses.replace(report, outcomes=(slower, *rest)).digest == report.digest
    other = dataclasses.replace(first, forward=first.forward + 1)
    assert dataclasses.replace(report, outcomes=(other, *rest)).digest != report.digest
    relabeled = dataclasses.replace(report.inputs, prediction=1 - report.inputs.prediction)
    assert dataclasses.replace(report, inputs=relabeled).digest != report.digest


def test_the_figures_survive_a_page_that_cannot_be_drawn(net, x, y, tmp_path, monkeypatch):
    report = report_of(net, x, y)
    report.save(tmp_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match="jinja2"):
        dataclasses.replace(report, model="another").save(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["model"], found["page"]) == ("another", None)


def test_examples_are_what_they_say(net, x, y):
    report = report_of(net, x, y)
    for outcome in report.outcomes:
        shown = outcome.examples
        assert 0 < len(shown.y) <= 6
        model = TorchClassifier(net)
        assert torch.equal(model.predict(shown.x), shown.y)
        assert torch.equal(model.predict(shown.x_adv), shown.predicted)
        assert (shown.predicted != shown.y).all()


def test_tables_have_no_pictures(x):
    rows = nn.Sequential(nn.Linear(4, 2))
    data = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    report = rob.evaluate(rows, data, answers(rows, data), attacks=[attacks.FGSM(eps=0.9)])
    page = report.to_html()
    assert "data:image" not in page
    assert 'id="examples"' not in page


def test_missing_extras_are_named(net, x, y, monkeypatch):
    import sys

    report = report_of(net, x, y)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"the extra .report. of advkit"):
        report.to_html()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"the extra .report. of advkit"):
        report.plot()


def test_the_numbers_of_the_dict_are_those_of_the_outcomes(net, x, y):
    report = report_of(net, x, y)
    for outcome, plain in zip(report.outcomes, report.to_dict()["attacks"], strict=True):
        assert plain["forward_per_attacked_input"] == outcome.forward[10:].double().mean()
        assert plain["backward_per_attacked_input"] == outcome.backward[10:].double().mean()
        turned = outcome.median_distance < math.inf
        assert plain["median_distance_of_attacked"] == (outcome.median_distance if turned else None)
        fooled = 30 - outcome.robust_accuracy.count
        assert plain["success_rate"] == rob.Rate(fooled, 30).to_dict()
        assert plain["robust_accuracy"]["count"] == outcome.robust_accuracy.count
    counts = report.outcomes[-1]
    assert counts.mean_of_attacked(counts.backward) == 1
    assert counts.mean_of_attacked(counts.forward) == 2


def test_the_curve_of_the_worst_case_is_the_worst_case_at_every_budget(net, x, y):
    made = [kind(eps=eps) for kind in (attacks.PGD, attacks.FGSM) for eps in (0.01, 0.02, 0.05)]
    report = rob.evaluate(net, x, y, attacks=[*made, attacks.FAB(norm="linf", steps=5)])
    (curve,) = (v for v in report.plot().axes[0].lines if v.get_label() == "worst case")
    eps, accuracy = curve.get_data()
    assert len(set(accuracy)) > 4
    for budget, rate in report.worst_cases.items():
        reached = float(budget.removeprefix("linf ")) * (1 + 1e-6)
        assert accuracy[eps <= reached][-1] == pytest.approx(100 * float(rate))


def test_an_attack_has_one_color_in_all_panels(net, x, y):
    norms, kinds = ("linf", "l2", "l1"), (attacks.PGD, attacks.FGM)
    made = [kind(eps=0.1, norm=norm) for norm in norms for kind in kinds]
    made = [*made[1:], attacks.FAB(), attacks.DeepFool(), attacks.FGSM(eps=0.1)]
    colors = {}
    for axes in rob.evaluate(net, x, y, attacks=made).plot().axes:
        for line in axes.lines:
            colors.setdefault(line.get_label(), set()).add(line.get_color())
    assert {len(of_one) for of_one in colors.values()} == {1}
    drawn = [color for name in ("PGD", "FGM", "FGSM", "FAB", "DeepFool") for color in colors[name]]
    assert len(set(drawn)) == 5


def test_batches_are_moved_to_the_device(net, x, y):
    moved = []

    class Batch(torch.Tensor):
        def to(self, device):
            moved.append(device)
            return self.as_subclass(torch.Tensor)

    pair = (x.as_subclass(Batch), y.as_subclass(Batch))
    rob.evaluate(net, [pair], attacks=[Fools(0, 1)], device="cpu")
    assert list(map(str, moved)) == ["cpu", "cpu"]


def test_batch_size_and_progress_are_passed_on(net, x, y, capsys, monkeypatch):
    sizes = []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    rob.robust_accuracy(net, x, y, attacks=[Fools(2, 3)], batch_size=8)
    assert sizes[0] == max(sizes) == 8
    monkeypatch.setattr("advkit.core.progress.FIRST_LINE", 0)
    rob.evaluate(net, x, y, attacks=[Fools(2, 3)], progress=True)
    assert "evaluate: 40 of 40 inputs, Fools" in capsys.readouterr().err


def test_a_share_of_nothing_is_not_a_number():
    assert str(float(rob.Rate(0, 0))) == "nan"


def test_an_empty_batch_among_others_is_passed_over(net, x, y):
    def refuse(module, args):
        assert len(args[0])

    net.register_forward_pre_hook(refuse)
    assert rob.accuracy(net, [(x[:0], y[:0]), (x, y)]) == rob.Rate(30, 40)


def test_json_has_no_nan(net, x, y, tmp_path):
    report = dataclasses.replace(
        rob.evaluate(net, x, y, attacks=[Fools(2, 3)]), bounds=(0, float("nan"))
    )
    with pytest.raises(ValueError, match="JSON"):
        report.save_json(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_no_more_than_six_examples_over_all_batches(net, x, y):
    report = rob.evaluate(net, x, y, attacks=[attacks.FGM(eps=2.0)], batch_size=5)
    assert len(report.outcomes[0].examples.y) == 6


def test_curves_are_in_percent(net, x, y):
    report = report_of(net, x, y)
    lines = {line.get_label(): line.get_xydata().tolist() for line in report.plot().axes[1].lines}
    shares = {o.eps: 100 * float(o.robust_accuracy) for o in report.outcomes if o.name == "PGD"}
    assert dict(map(tuple, lines["PGD"])) == shares


def test_colour_images_are_images():
    rows = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    data = torch.rand(9, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    report = rob.evaluate(rows, data, answers(rows, data), attacks=[attacks.FGSM(eps=0.9)])
    (examples,) = [o.examples for o in report.outcomes]
    assert report.to_html().count("data:image/png;base64,") == 3 * len(examples) > 0


def test_words_of_the_user_are_escaped_in_the_page(net, x, y):
    report = rob.evaluate(net, x, y, attacks=[Fools(0, 1)])
    report = dataclasses.replace(report, about={"data": "<script>alert(1)</script>"})
    assert "<script>" not in report.to_html()


def test_eps_of_the_wrong_length_is_refused(net, x, y):
    for n in (39, 41):
        attack = attacks.FGSM(eps=torch.ones(n))
        with pytest.raises(ValueError, match=rf"`eps` must .* shape \(40,\), got shape \({n},\)"):
            rob.evaluate(net, x, y, attacks=[attack])
    with pytest.raises(ValueError, match="`eps` must .* got 12 values for 40 samples or more"):
        rob.evaluate(net, [(x, y)], attacks=[attacks.FGSM(eps=torch.ones(12))])


def test_nothing_to_evaluate_is_an_error(net, x, y):
    with pytest.raises(ValueError, match="at least one sample"):
        rob.evaluate(net, [(x[:0], y[:0])], attacks=[Fools(0, 1)])


def test_a_stream_complains_at_once(net, x, y):
    with pytest.raises(ValueError, match="at least one attack"):
        rob.evaluate_stream(net, x, y, attacks=[])


def test_budgets_that_differ_by_little_are_kept_apart(net, x, y):
    made = [a(eps=e) for a in (attacks.FGSM, attacks.FGM) for e in (0.031372, 0.031368)]
    made = [dataclasses.replace(a, norm="linf") if a.norm == "l2" else a for a in made]
    report = rob.evaluate(net, x, y, attacks=made)
    assert list(report.worst_cases) == ["linf 0.031372", "linf 0.031368"]


def test_families_leave_out_budget_and_norm(net, x, y):
    attack = attacks.PGD(eps=0.1, norm="l2", steps=3)
    outcome = rob.evaluate(net, x, y, attacks=[attack]).outcomes[0]
    assert outcome.family == "PGD(steps=3)"
    assert outcome.label == "PGD(norm='l2', eps=0.1, steps=3)"


def test_the_page_marks_the_worst_cases(net, x, y):
    report = report_of(net, x, y)
    assert report.to_html().count('class="worst"') == len(report.worst_cases) == 3


def test_errors_say_which_batch_they_count_in(net, x, y):
    x[23] = torch.nan
    for ask in (rob.accuracy, lambda *a, **k: rob.evaluate(*a, attacks=[Fools(0, 1)], **k)):
        with pytest.raises(ValueError, match="begins at sample 20: `x` must be finite.*sample 3"):
            ask(net, x, y, batch_size=10)
        with pytest.raises(ValueError, match="^`x` must be finite.*sample 23"):
            ask(net, x, y)


def test_batches_of_different_sizes(y):
    class Pooled(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1) * 9

    small, large = images(3), torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    pairs = [(v, answers(Pooled(), v)) for v in (small, large)]
    report = rob.evaluate(Pooled(), pairs, attacks=[attacks.FGSM(eps=0.5)])
    assert report.outcomes[0].examples.x.shape == (3, 1, 6, 6)


def test_arrays_and_classes_are_refused_with_the_way_out(net, x, y):
    with pytest.raises(TypeError, match=r"torch.from_numpy"):
        rob.accuracy(net, x.numpy(), y)
    with pytest.raises(TypeError, match="list of attacks"):
        rob.evaluate(net, x, y, attacks=[attacks.PGD])


def test_settings_of_any_kind_can_be_saved(net, x, y, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Odd(Fools):
        dtype: object = torch.float64
        weights: object = None

    odd = Odd(0, 1, dtype=torch.float32, weights=np.zeros(3))
    report = rob.evaluate(net, x, y, attacks=[odd])
    report.save_json(tmp_path / "report.json")
    assert "dtype=torch.float32" in report.outcomes[0].label


def test_numbers_of_numpy_count_as_budgets(net, x, y, tmp_path):
    made = [a(eps=np.float32(0.125)) for a in (attacks.FGSM, attacks.PGD)]
    report = rob.evaluate(net, x, y, attacks=[*made, attacks.PGD(eps=0.125, steps=np.int64(3))])
    assert {o.eps for o in report.outcomes} == {0.125}
    assert list(report.worst_cases) == ["linf 0.125"]
    assert report.outcomes[2].label == "PGD(eps=0.125, steps=3)"
    report.save_json(tmp_path / "report.json")


def test_what_an_attack_could_not_begin_on_is_in_the_report(x):
    class Sure(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[2.0, 0.0, 1.0]]).expand(len(x), -1)

    y = torch.zeros(40).long()
    hopeless = attacks.HopSkipJump(max_queries=20, init_trials=3)
    transfer = attacks.Transfer(attack=hopeless, surrogate=Sure())
    with pytest.warns(InconclusiveWarning, match="could not begin for"):
        report = rob.evaluate(Sure(), x, y, attacks=[hopeless, transfer], batch_size=32)
    for outcome in report.outcomes:
        assert outcome.no_start.all()
        assert outcome.to_dict()["inputs_without_start"] == 40
    found = [f for f in report.findings if "could not begin on 40 inputs" in f.message]
    assert [finding.name for finding in found] == ["no_start", "no_start"]
    assert "could not begin on 40 inputs" in " ".join(str(report).split())
    assert "could not begin on 40 inputs" in report.to_html()
    clean = rob.evaluate(Sure(), x, y + 1, attacks=[hopeless])
    assert not clean.outcomes[0].no_start.any()
    assert "could not begin" not in str(clean)


def test_robust_accuracy_is_within_one_budget(net, x, y):
    made = [attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1), attacks.FAB(norm="linf", steps=2)]
    report = rob.evaluate(net, x, y, attacks=made)
    assert rob.robust_accuracy(net, x, y, attacks=made) == report.worst_case
    each = attacks.FGSM(eps=torch.full((40,), 0.1))
    assert rob.robust_accuracy(net, x, y, attacks=[each]) == report.outcomes[0].robust_accuracy
    passes = []
    net.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    for more, got in (
        ([attacks.FGSM(eps=0.2)], "linf 0.1; linf 0.2"),
        ([attacks.FGM(eps=0.1)], "linf 0.1; l2 0.1"),
        ([each], "linf 0.1; linf, one budget for each input"),
    ):
        with pytest.raises(ValueError, match=f"must share one norm and `eps`, got {got}. Call"):
            rob.robust_accuracy(net, x, y, attacks=[*made, *more])
    with pytest.raises(ValueError, match="got minimum-norm attacks alone"):
        rob.robust_accuracy(net, x, y, attacks=[attacks.FAB()])
    assert not passes  # refused before any work


def test_robust_accuracy_of_attacks_that_name_their_norm_in_the_result_alone(net, x, y):
    @dataclasses.dataclass(frozen=True)
    class Custom:
        eps: float

        def run(self, *arguments):
            return attacks.FGSM(eps=self.eps).run(*arguments)

    alone = attacks.FGSM(eps=0.1)
    both = rob.robust_accuracy(net, x, y, attacks=[Custom(0.1), alone])
    assert both == rob.robust_accuracy(net, x, y, attacks=[alone])
    with pytest.raises(ValueError, match="`attacks` must share .*, got linf 0.2; linf 0.1. Call"):
        rob.robust_accuracy(net, x, y, attacks=[Custom(0.2), alone])
    each = [attacks.FGSM(eps=torch.full((40,), eps)) for eps in (0.1, 0.2)]
    same = [each[0], attacks.FAB(norm="linf", steps=2), dataclasses.replace(each[0], stop="never")]
    assert rob.robust_accuracy(net, x, y, attacks=same).total == 40
    passes = []
    net.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    with pytest.raises(ValueError, match=r"one budget for each input; .* \(2\). Call"):
        rob.robust_accuracy(net, x, y, attacks=each)
    assert not passes


def test_the_curve_of_the_worst_case_holds_budgets_of_each_input(net, x, y):
    each = attacks.PGD(eps=torch.full((40,), 0.05))
    report = rob.evaluate(net, x, y, attacks=[attacks.RandomNoise(eps=0.05), each])
    (curve,) = (v for v in report.plot().axes[0].lines if v.get_label() == "worst case")
    eps, accuracy = curve.get_data()
    expected = report.worst_cases["linf 0.05"]
    first, second = (float(outcome.robust_accuracy) for outcome in report.outcomes)
    assert float(expected) == second < first
    assert accuracy[eps <= 0.05 * (1 + 1e-6)][-1] == pytest.approx(100 * float(expected))


def test_each_attack_of_the_dict_names_its_worst_case(net, x, y):
    each = [attacks.FGSM(eps=torch.full((40,), eps)) for eps in (0.1, 0.2, 0.1)]
    made = [*each, attacks.FGSM(eps=0.1), attacks.FAB(steps=2)]
    plain = rob.evaluate(net, x, y, attacks=made).to_dict()
    own = "linf, one budget for each input"
    budgets = [attack["budget"] for attack in plain["attacks"]]
    assert budgets == [own, f"{own} (2)", own, "linf 0.1", None]
    assert set(plain["worst_case_by_budget"]) == {b for b in budgets if b is not None}


def test_the_norm_that_only_results_tell_does_not_depend_on_the_last_batch(net, x, y):
    class Mine:
        def run(self, model, x, y):
            return attacks.DeepFool(steps=5).run(model, x, y)

    wrong = torch.where(torch.arange(40) < 20, y, (y + 1) % 3)
    wrong[:20] = net.eval()(x[:20]).argmax(1)
    wrong[20:] = (net(x[20:]).argmax(1) + 1) % 3
    report = rob.evaluate(net, x, wrong, attacks=[Mine()], batch_size=20)
    assert report.outcomes[0].norm == "l2"
    assert list(report.nearest) == ["l2"]
