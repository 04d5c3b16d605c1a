import copy
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from advkit import TorchClassifier, attacks, data
from advkit.defenses import MRR, Chain, InputDefender, LatentDefenders
from advkit.defenses.mrr import latent
from advkit.detectors import Guard
from advkit.models import REJECTED
from tests.defenses.mrr.victims import digits, mlp

QUICK = LatentDefenders(count=3, epochs=2)
PATCHES = InputDefender(patch_size=4, atoms=8, sparsity=2, iterations=5, patches_per_image=4)


@pytest.fixture(scope="module")
def net():
    return mlp()


@pytest.fixture(scope="module")
def mrr(net):
    return MRR(QUICK, fpr=0.1, calibration_fraction=0.4).fit(net, *digits())


@pytest.fixture(scope="module")
def both(net):
    return MRR(
        [QUICK, LatentDefenders(layer="1", epochs=1)], PATCHES, calibration_fraction=0.4
    ).fit(net, *digits())


@pytest.fixture(scope="module")
def clean():
    test = data.digits("test")
    return test.x[:300], test.y[:300]


class TestRisk:
    def test_scores_of_all_defenders_and_their_risk(self, both, clean):
        x, _ = clean
        scores = both.scores(x)
        assert scores.shape == (len(x), 5)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert torch.equal(both.risk(x), scores.amax(1))
        assert torch.equal(both.flag(x), both.risk(x) > both.threshold)

    def test_attacked_inputs_are_riskier(self, mrr, net, clean):
        x, y = clean
        x_adv = attacks.FGSM(eps=0.2)(net, x, y)
        wrong = TorchClassifier(net).predict(x_adv) != y
        assert mrr.risk(x_adv[wrong]).mean() > mrr.risk(x).mean() + 0.1

    def test_labels_are_what_the_victim_answers_unless_they_are_given(self, mrr, net, clean):
        x, _ = clean
        own = TorchClassifier(net).predict(x)
        assert torch.equal(mrr.risk(x), mrr.risk(x, own))
        assert mrr.risk(x, (own + 1) % 10).mean() > mrr.risk(x).mean() + 0.2

    def test_an_input_does_not_depend_on_its_batch(self, both, clean):
        x, _ = clean
        whole = both.scores(x)
        torch.testing.assert_close(both.scores(x[:1]), whole[:1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(both.scores(x[200:210]), whole[200:210], rtol=1e-3, atol=1e-3)
        assert both.scores(x[:0]).shape == (0, 5)
        assert both.risk(x[:0]).shape == (0,)

    def test_the_victim_is_bit_identical(self, clean):
        net = mlp().train()
        net[1].weight.requires_grad_(False)
        before = copy.deepcopy(net.state_dict())
        found = MRR(QUICK).fit(net, *digits(300))
        found.risk(clean[0])
        assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
        assert net.training
        assert not net[1].weight.requires_grad
        assert all(p.grad is None or not p.grad.any() for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_works_where_gradients_are_off(self, mrr, clean):
        with torch.inference_mode():
            found = mrr.risk(clean[0])
        torch.testing.assert_close(found, mrr.risk(clean[0]))

    def test_a_fit_where_gradients_are_off(self, net):
        with torch.inference_mode():
            found = MRR(QUICK).fit(net, *digits(300))
        same = MRR(QUICK).fit(net, *digits(300))
        assert torch.equal(found.risk(digits(9)[0]), same.risk(digits(9)[0]))


class TestExcess:
    @pytest.mark.parametrize("rule", ["max", "vote", "noisy_or", "mean"])
    def test_one_is_positive_where_the_risk_is_above_the_threshold(self, both, clean, rule):
        found = both.with_policy(aggregate=rule, precision=(0.2, 0.3, 0.4, 0.1, 0.3))
        x, _ = clean
        labels = found.fitted.victim.predict(x)
        risk = found.risk(x)
        for threshold in (0.3, 0.7, 0.9):
            alarm = (found.margin_over_threshold(x, labels, threshold) > 0).any(1)
            clear = (risk - threshold).abs() > 1e-4
            assert torch.equal(alarm[clear], (risk > threshold)[clear])
            assert 0 < alarm.float().mean() < 1

    def test_it_has_gradients(self, both, clean):
        x = clean[0][:6].clone().requires_grad_()
        labels = clean[1][:6]
        for rule in ("max", "vote", "mean"):
            excess = both.with_policy(aggregate=rule).margin_over_threshold(x, labels, 0.5)
            (gradient,) = torch.autograd.grad(excess.clamp_max(1e3).sum(), x)
            assert gradient.flatten(1).any(1).all()
            assert gradient.isfinite().all()

    def test_features_are_those_of_the_latent_defenders(self, both, clean):
        width = sum(own.density.projection.shape[2] * own.count for own in both.fitted.latent)
        assert both.features(clean[0]).shape == (len(clean[0]), width)


class TestThreshold:
    def test_jointly_at_most_the_requested_share_of_held_out_inputs_alarms(self, mrr):
        risks = mrr.fitted.clean.amax(1)
        for fpr in (0.01, 0.05, 0.2):
            threshold = mrr.with_policy(fpr=fpr).threshold
            above = int((risks > threshold).sum())
            assert above <= fpr * (len(risks) + 1) < above + 2

    @pytest.mark.slow("several fits")
    def test_the_rate_on_new_clean_data_is_the_requested_one(self, net):
        """Exchangeable data: over many splits the mean rate is the requested one, never more."""
        x, y = data.digits("train").x, data.digits("train").y
        rates = []
        for seed in range(8):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            fit, new = order[:700], order[700:]
            settings = {"fpr": 0.1, "calibration_fraction": 0.5, "seed": seed}
            found = MRR(LatentDefenders(count=2, epochs=1), **settings).fit(net, x[fit], y[fit])
            rates.append(found.flag(x[new]).double().mean())
        n = 8 * 175  # what the threshold was found on
        slack = 3 * (0.1 * 0.9 * (1 / n + 1 / (8 * len(new)))) ** 0.5
        assert abs(np.mean(rates) - 0.1) < slack

    def test_clean_inputs_may_be_given(self, net, clean):
        """All of `x` is learned from, and scores are ranks among half of the others."""
        x, y = digits(300)
        found = MRR(LatentDefenders(epochs=1), fpr=0.1).fit(net, x, y, clean[0])
        alone = MRR(LatentDefenders(epochs=1), calibration_fraction=0.0, joint_threshold=False).fit(
            net, x, y
        )
        fitted, other = found.fitted, alone.fitted
        assert torch.equal(fitted.latent[0].features(x), other.latent[0].features(x))
        assert int(fitted.calibration.counts.sum()) == len(fitted.clean) == 150
        labels = fitted.victim.predict(clean[0])
        distances = fitted.distances(clean[0], labels)[:, 0].double()
        kept = fitted.calibration.distances[fitted.calibration.distances.isfinite()]
        nearest = torch.cdist(kept[:, None], distances[:, None]).amin(1)
        assert (nearest < 1e-5).all()
        scores = found.scores(clean[0])
        ranks = scores[:, 0] * (fitted.calibration.counts[labels] + 1)
        others = scores[(ranks - ranks.round()).abs() > 1e-3]  # its own have whole ranks
        assert len(others) > 100
        assert (torch.cdist(others, fitted.clean).amin(1) < 1e-3).all()
        assert 0.02 < found.flag(clean[0]).double().mean() < 0.2

    def test_each_by_itself_is_the_papers_rule(self, mrr, clean):
        """Thresholding the greatest score is the alarm of any defender at its own percentile."""
        x, _ = clean
        found = mrr.with_policy(joint_threshold=False, fpr=0.05)
        assert found.threshold == 0.95
        labels = found.fitted.victim.predict(x)
        distances = found.fitted.distances(x, labels)
        limits = found.fitted.calibration.limits(0.95)[:, labels].T
        assert torch.equal(found.flag(x), (distances > limits).any(1))

    def test_on_its_own_data_each_leaves_the_requested_share_outside(self, net):
        x, y = digits()
        found = MRR(QUICK, calibration_fraction=0.0, joint_threshold=False, fpr=0.1).fit(net, x, y)
        alarms = (found.scores(x) > found.threshold).double().mean(0)
        assert ((alarms - 0.1).abs() < 0.02).all()
        assert found.fitted.clean.shape == (0, 3)

    def test_too_little_held_out(self, mrr):
        found = mrr.with_policy(fpr=0.0001)
        sentence = (
            r"`fpr` must be at least 0.0055 with 180 clean inputs for the threshold, got 0.0001\."
        )
        with pytest.raises(ValueError, match=sentence):
            found.flag(digits(3)[0])


class TestPolicy:
    def test_defenders_are_shared_and_the_rest_is_as_given(self, mrr):
        other = mrr.with_policy(aggregate="vote", fpr=0.03, joint_threshold=False, precision=0.6)
        assert other.fitted is mrr.fitted
        assert (other.rule.name, other.rule.precision) == ("vote", 0.6)
        assert (other.fpr, other.joint_threshold) == (0.03, False)
        assert (mrr.rule.name, mrr.fpr, mrr.joint_threshold) == ("max", 0.1, True)
        assert repr(other) == "MRR(3 defenders, aggregate='vote', fpr=0.03 each)"
        assert repr(MRR()) == "MRR(not fitted, aggregate='max', fpr=0.01 jointly)"

    def test_the_first_defenders_are_a_shorter_chain(self, mrr, both, net, clean):
        two = mrr.first(2)
        fitted = MRR(LatentDefenders(count=2, epochs=2), fpr=0.1, calibration_fraction=0.4).fit(
            net, *digits()
        )
        assert torch.equal(two.scores(clean[0]), fitted.scores(clean[0]))
        assert two.threshold == fitted.threshold
        assert two.latent == fitted.latent
        scores = both.scores(clean[0])
        assert torch.equal(both.first(1).scores(clean[0]), scores[:, [0, 3, 4]])
        latent = both.first(1, inputs=False)
        assert torch.equal(latent.scores(clean[0]), scores[:, [0, 3]])
        assert latent.inputs is None
        assert latent.threshold <= both.first(1).threshold

    def test_more_than_there_are(self, both):
        with pytest.raises(ValueError, match="`count` must be at most 1, the defenders of a layer"):
            both.first(2)

    def test_a_precision_for_each_is_not_one_for_fewer(self, mrr):
        found = mrr.with_policy(aggregate="noisy_or", precision=[0.2, 0.3, 0.4])
        with pytest.raises(ValueError, match="one for each of 2 defenders, got 3"):
            found.first(2)

    def test_correlations_are_numpys(self, mrr, clean):
        found = mrr.correlation(clean[0])
        np.testing.assert_allclose(found, np.corrcoef(mrr.scores(clean[0]).T), atol=1e-12)
        with pytest.raises(ValueError, match="`x` must hold at least 2 inputs, got 1"):
            mrr.correlation(clean[0][:1])


class TestFiles:
    def test_a_file_gives_the_same_detector(self, both, net, clean, tmp_path):
        path = tmp_path / "mrr.npz"
        policy = {"aggregate": "noisy_or", "precision": [0.2, 0.3, 0.4, 0.1, 0.3]}
        saved = both.with_policy(fpr=0.07, **policy)
        saved.save(path)
        loaded = MRR.load(path, TorchClassifier(net))
        own = TorchClassifier(net).predict(clean[0])
        assert torch.equal(loaded.scores(clean[0], own), saved.scores(clean[0]))
        assert torch.equal(loaded.risk(clean[0]), saved.risk(clean[0]))
        assert loaded.threshold == saved.threshold
        assert loaded.latent == saved.latent
        assert loaded.inputs == saved.inputs
        assert (loaded.rule, loaded.fpr) == (saved.rule, 0.07)
        assert list(tmp_path.iterdir()) == [path]

    def test_gaussian_densities_and_bfloat16_too(self, clean, tmp_path):
        settings = LatentDefenders(density="gaussian", chain=None, epochs=1)
        found = MRR(settings).fit(mlp(), *digits(300))
        found.save(tmp_path / "mrr.npz")
        loaded = MRR.load(tmp_path / "mrr.npz", mlp())
        assert torch.equal(loaded.scores(clean[0]), found.scores(clean[0]))
        half = mlp().bfloat16()
        x, y = digits(300)
        found = MRR(settings).fit(half, x.bfloat16(), y)
        found.save(tmp_path / "half.npz")
        loaded = MRR.load(tmp_path / "half.npz", half)
        x = clean[0].bfloat16()
        assert torch.equal(loaded.scores(x), found.scores(x))

    def test_another_model(self, mrr, tmp_path):
        mrr.save(tmp_path / "mrr.npz")
        shorter = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))
        wider = mlp()
        wider[1], wider[4] = nn.Linear(64, 50), nn.Linear(50, 20)
        for other in (shorter, wider):
            with pytest.raises(
                ValueError, match="`model` must be the one that MRR was fitted with"
            ):
                MRR.load(tmp_path / "mrr.npz", other)

    def test_no_such_file(self, net, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            MRR.load(tmp_path / "none.npz", net)
        np.savez(tmp_path / "other.npz", about=np.array("hello"))
        with pytest.raises(ValueError, match="is not a file of MRR"):
            MRR.load(tmp_path / "other.npz", net)

    @pytest.mark.parametrize("version", [1, 9])
    def test_a_file_of_another_format_is_refused(self, net, tmp_path, version):
        """Format 1 held percentages; a newer one is not known."""
        about = json.dumps({"format": f"advkit MRR {version}"})
        np.savez(tmp_path / "other.npz", about=np.array(about))
        sentence = f"other.npz must have the format 'advkit MRR 2', got 'advkit MRR {version}'"
        with pytest.raises(ValueError, match=sentence):
            MRR.load(tmp_path / "other.npz", net)

    def test_a_fit_that_was_killed_goes_on_after_its_last_defender(
        self, mrr, net, tmp_path, monkeypatch, clean
    ):
        path, trained = tmp_path / "fit.npz", []
        train = latent._train

        def dies(*args, seed):
            if len(trained) == 2:
                raise KeyboardInterrupt
            trained.append(seed)
            return train(*args, seed=seed)

        monkeypatch.setattr(latent, "_train", dies)
        settings = {"fpr": 0.1, "calibration_fraction": 0.4}
        with pytest.raises(KeyboardInterrupt):
            MRR(QUICK, **settings).fit(net, *digits(), checkpoint=path)
        monkeypatch.setattr(
            latent, "_train", lambda *a, seed: trained.append(seed) or train(*a, seed=seed)
        )
        found = MRR(QUICK, **settings).fit(net, *digits(), checkpoint=path)
        assert trained == [0, 1, 2]
        assert torch.equal(found.scores(clean[0]), mrr.scores(clean[0]))
        again = MRR(QUICK, **settings).fit(net, *digits(), checkpoint=path)
        assert trained == [0, 1, 2]
        assert torch.equal(again.scores(clean[0]), mrr.scores(clean[0]))

    @pytest.mark.parametrize("change", ["data", "labels", "settings", "model"])
    def test_a_checkpoint_of_another_fit(self, net, tmp_path, change):
        path = tmp_path / "fit.npz"
        x, y = digits(300)
        one = LatentDefenders(epochs=1)
        MRR(one).fit(net, x, y, checkpoint=path)
        if change == "data":
            x = x.clone()
            x[0, 0, 0, 0] = 0.5
        if change == "labels":
            y = y.clone()
            y[:] = 3
        settings = LatentDefenders(epochs=2) if change == "settings" else one
        model = copy.deepcopy(net)
        if change == "model":
            model[1].bias.data[0] += 1
        with pytest.raises(ValueError, match="which was written with another model"):
            MRR(settings).fit(model, x, y, checkpoint=path)

    def test_a_checkpoint_that_cannot_be_written_costs_no_defender(
        self, net, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(latent, "_train", lambda *_, **__: pytest.fail("it was trained"))
        (tmp_path / "file").write_text("here")
        with pytest.raises(OSError, match="file"):
            MRR(QUICK).fit(net, *digits(300), checkpoint=tmp_path / "file" / "fit.npz")

    def test_progress_is_a_line_for_each_defender(self, net, capsys):
        MRR(LatentDefenders(count=2, epochs=1)).fit(net, *digits(200), progress=True)
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines] == [
            "defender 1 of 2 at 4",
            "defender 2 of 2 at 4",
        ]


class TestGuard:
    def test_it_guards_a_model(self, mrr, net, clean):
        x, _ = clean
        guard = Guard(net, mrr)
        assert guard.threshold == mrr.threshold
        verdict = guard.inspect(x)
        np.testing.assert_allclose(verdict.anomaly_score, mrr.risk(x))
        assert torch.equal(verdict.alarm, mrr.flag(x))
        assert torch.equal(guard.predict(x) == REJECTED, mrr.flag(x))


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"latent": 3}, TypeError, "`latent` must be LatentDefenders or a list of them, got 3"),
        ({"latent": []}, ValueError, "`latent` or `inputs` must hold a defender"),
        ({"inputs": 7}, TypeError, "`inputs` must be an InputDefender or None, got 7"),
        ({"aggregate": "sum"}, ValueError, "`aggregate` must be one of"),
        ({"fpr": 0}, ValueError, r"`fpr` must lie in .0, 1., got 0\."),
        ({"fpr": 1}, ValueError, "in .0, 1., got 1. It is a share, not a percentage"),
        ({"fpr": 5}, ValueError, "in .0, 1., got 5. It is a share, not a percentage"),
        ({"joint_threshold": 1}, TypeError, "`joint_threshold` must be True or False"),
        ({"calibration_fraction": 1}, ValueError, "`calibration_fraction` must be below 1, got 1"),
        ({"seed": 0.5}, TypeError, "`seed` must be an int"),
    ],
)
def test_errors_of_settings(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        MRR(**settings)


class TestErrorsOfFit:
    def test_a_model_without_layers(self):
        x, y = digits(100)
        forest = LogisticRegression(max_iter=5000).fit(x.flatten(1), y)
        with pytest.raises(TypeError, match="`model` must be an nn.Module or a TorchClassifier"):
            MRR().fit(forest, x, y)

    def test_labels_that_the_model_does_not_have(self, net):
        x, y = digits(100)
        with pytest.raises(ValueError, match="`y` must be below 10"):
            MRR().fit(net, x, y + 1)

    def test_too_few_samples(self, net):
        x, y = digits(3)
        with pytest.raises(
            ValueError, match="`x` must have more samples to hold out a fraction of 0.2, got 3"
        ):
            MRR().fit(net, x, y)

    def test_nothing_to_find_the_threshold_on(self, net):
        with pytest.raises(
            ValueError, match="`joint_threshold` must be False with calibration_fraction=0 and"
        ):
            MRR(QUICK, calibration_fraction=0.0).fit(net, *digits(100))
        own = MRR(LatentDefenders(epochs=1), calibration_fraction=0.0, joint_threshold=False).fit(
            net, *digits(100)
        )
        with pytest.raises(
            ValueError, match="`joint_threshold` must be False with calibration_fraction=0, which"
        ):
            own.with_policy(joint_threshold=True).flag(digits(3)[0])

    def test_clean_inputs_of_the_wrong_kind(self, net):
        x, y = digits(100)
        with pytest.raises(ValueError, match="`clean` must hold at least 2 inputs, got 1"):
            MRR().fit(net, x, y, x[:1])
        with pytest.raises(ValueError, match="`clean` must lie in"):
            MRR().fit(net, x, y, x + 3)

    def test_one_precision_for_each(self, net):
        rule = {"aggregate": "noisy_or", "precision": [0.5, 0.6]}
        with pytest.raises(ValueError, match="one for each of 3 defenders, got 2"):
            MRR(QUICK, **rule).fit(net, *digits(200))

    def test_before_any(self, net):
        with pytest.raises(ValueError, match="`MRR` must be fitted before use. Call fit"):
            MRR().risk(digits(3)[0])
        for joint in (True, False):
            with pytest.raises(ValueError, match="`MRR` must be fitted"):
                Guard(net, MRR(joint_threshold=joint))

    def test_an_error_leaves_an_earlier_fit(self, net):
        found = MRR(LatentDefenders(epochs=1)).fit(net, *digits(200))
        before = found.fitted
        with pytest.raises(ValueError, match="`y` must be below"):
            found.fit(net, digits(200)[0], digits(200)[1] + 5)
        assert found.fitted is before

    def test_labels_of_another_length(self, mrr):
        with pytest.raises(ValueError, match=r"`labels` must have shape \(3,\)"):
            mrr.risk(digits(3)[0], torch.zeros(4, dtype=torch.int64))


def test_defenders_alone_or_dictionaries_alone(net, clean):
    found = MRR([], PATCHES, calibration_fraction=0.4).fit(net, *digits())
    assert found.scores(clean[0]).shape == (300, 1)
    assert found.features(clean[0]).shape == (300, 0)


def test_a_chain_is_part_of_the_file(net, tmp_path):
    settings = LatentDefenders(count=2, epochs=1, chain=Chain(step_size=0.3, clean_fraction=0.2))
    MRR(settings).fit(net, *digits(200)).save(tmp_path / "mrr.npz")
    assert MRR.load(tmp_path / "mrr.npz", net).latent == (settings,)
