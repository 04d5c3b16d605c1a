"""Ensemble: several classifiers as one, in three ways."""

import copy
import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import nn

from advkit import CallableClassifier, Ensemble, SklearnClassifier, TorchClassifier, attacks
from advkit.models import evaluating
from tests.toys import Linear3, convnet, images


class Fixed:
    """Answers the same to every input."""

    bounds = (0.0, 1.0)

    def __init__(self, label, classes=3):
        self.label, self.num_classes = label, classes

    def predict(self, x):
        return torch.full((len(x),), self.label)

    def __repr__(self):
        return f"Fixed({self.label})"


class Scored(Fixed):
    def __init__(self, *row):
        super().__init__(row.index(max(row)), len(row))
        self.row = torch.tensor(row)

    def scores(self, x):
        return self.row.expand(len(x), -1)


@pytest.fixture
def x():
    return images()


@pytest.fixture
def nets():
    other = copy.deepcopy(convnet())
    with torch.no_grad():
        other.head.weight.copy_(other.head.weight.flip(1))
    return [convnet(), other]


def test_logits_are_averaged(nets, x):
    model = Ensemble(nets)
    z = (nets[0](x) + nets[1](x)) / 2
    torch.testing.assert_close(model.logits(x), z)
    torch.testing.assert_close(model.scores(x), z.softmax(1))
    assert torch.equal(model.predict(x), z.argmax(1))
    assert not model.scores(x).requires_grad
    assert model.bounds == (0, 1)
    assert model.num_classes == 3
    assert repr(model) == "Ensemble(2 models, combine='logits')"


def test_probabilities_are_averaged(nets, x):
    model = Ensemble(nets, combine="probabilities")
    p = (nets[0](x).softmax(1) + nets[1](x).softmax(1)) / 2
    torch.testing.assert_close(model.scores(x), p)
    torch.testing.assert_close(model.logits(x), p.log())
    assert torch.equal(model.predict(x), p.argmax(1))
    assert not torch.allclose(p, Ensemble(nets).scores(x), atol=1e-3)


def test_the_logarithm_of_small_probabilities_is_exact():
    far = torch.tensor([[0.0, 1000.0, -1000.0]])
    model = Ensemble([nn.Identity(), nn.Identity()], combine="probabilities")
    torch.testing.assert_close(model.logits(far), far.log_softmax(1))


def test_logits_and_scores_go_together_in_a_mean_of_probabilities():
    x = torch.rand(5, 3, dtype=torch.float64)
    model = Ensemble([Linear3(), Scored(0.2, 0.3, 0.5)], combine="probabilities")
    expected = (Linear3()(x).softmax(1) + torch.tensor([0.2, 0.3, 0.5])) / 2
    torch.testing.assert_close(model.scores(x), expected)
    assert torch.equal(model.predict(x), expected.argmax(1))
    assert not hasattr(model, "logits")
    with pytest.raises(TypeError, match="Ensemble, a ScoreClassifier"):
        attacks.FGSM(eps=0.1)(model, x)


def test_votes_are_counted_and_ties_go_to_the_lowest_class(nets, x):
    model = Ensemble([Fixed(2), Fixed(1), Fixed(2), Fixed(0)], combine="vote")
    assert model.predict(x).tolist() == [2] * 8
    assert model.scores(x)[0].tolist() == [0.25, 0.25, 0.5]
    assert Ensemble([Fixed(2), Fixed(1)], combine="vote").predict(x).tolist() == [1] * 8
    vote = Ensemble(nets, combine="vote")
    assert not hasattr(vote, "logits")
    votes = torch.stack([net(x).argmax(1) for net in nets])
    assert torch.equal(vote.predict(x), votes.amin(0))
    assert vote.scores(x).dtype == torch.float32


def test_estimators_modules_and_functions_meet(x):
    rows = x.flatten(1)
    y = convnet()(x).argmax(1)
    knn = KNeighborsClassifier(1).fit(rows, y)
    fn = CallableClassifier(lambda a: knn.predict_proba(a.reshape(len(a), -1)), len(knn.classes_))
    classes = len(knn.classes_)
    net = convnet(classes=classes)
    model = Ensemble([knn, fn, net], combine="probabilities")
    expected = (2 * torch.from_numpy(knn.predict_proba(rows)) + net(x).softmax(1)) / 3
    torch.testing.assert_close(model.scores(x), expected, check_dtype=False)


def test_scores_that_are_no_probabilities_are_refused(x):
    rows = x.flatten(1)
    svc = SVC().fit(rows, torch.arange(8) % 2)
    model = Ensemble([convnet(classes=2), svc], combine="probabilities")
    with pytest.raises(
        ValueError, match=r"`models\[1\]` must return probabilities.*combine='vote'"
    ):
        model.predict(x)
    assert Ensemble([convnet(classes=2), svc], combine="vote").predict(x).shape == (8,)


def test_members_must_offer_what_is_combined():
    with pytest.raises(
        TypeError, match=r"must have logits for combine='logits', got Fixed\(2\) \(member 1\)"
    ):
        Ensemble([Linear3(), Scored(0.1, 0.1, 0.8)])
    with pytest.raises(TypeError, match=r"got Fixed\(1\) \(member 0\)\. Use combine='vote'"):
        Ensemble([Fixed(1), Linear3()], combine="probabilities")


def test_members_must_be_alike(nets, x):
    with pytest.raises(ValueError, match=r"same bounds, got \[\(0.0, 1.0\), \(0.0, 255.0\)\]"):
        Ensemble([nets[0], TorchClassifier(nets[1], bounds=(0, 255))])
    with pytest.raises(ValueError, match=r"same number of classes, got \[3, 4\]"):
        Ensemble([Fixed(1, 3), Fixed(1, 4)], combine="vote")
    late = Ensemble([convnet(3), convnet(4)])  # which the nets know after a pass
    with pytest.raises(ValueError, match=r"same number of classes, got \[3, 4\]"):
        late.predict(x)


def test_bad_arguments(nets):
    with pytest.raises(ValueError, match="`models` must hold at least one model"):
        Ensemble([])
    with pytest.raises(TypeError, match="`models` must be a list of models, got Sequential"):
        Ensemble(nn.Sequential(*nets))
    with pytest.raises(TypeError, match="got int"):
        Ensemble([nets[0], 3])
    with pytest.raises(ValueError, match="`combine` must be one of"):
        Ensemble(nets, combine="mean")
    assert len(Ensemble(nn.ModuleList(nets)).models) == 2


def test_the_number_of_classes_is_that_of_whoever_knows_it(nets):
    with pytest.raises(ValueError, match="`num_classes` must be given to be known"):
        Ensemble(nets).num_classes  # noqa: B018
    assert Ensemble([*nets, TorchClassifier(nets[0], num_classes=3)]).num_classes == 3


def test_nan_logits_have_no_label(x):
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), math.nan)

    for combine in ("logits", "probabilities"):
        model = Ensemble([convnet(), Broken()], combine=combine)
        for ask in (model.predict, model.scores):
            with pytest.raises(ValueError, match=r"got NaN or infinity \(samples 0, 1, 2"):
                ask(x)


def test_half_precision_is_averaged_in_float32(x):
    half = x.to(torch.bfloat16)
    nets = [convnet(dtype=torch.bfloat16), convnet(dtype=torch.bfloat16)]
    for combine in ("logits", "probabilities"):
        model = Ensemble(nets, combine=combine)
        assert model.logits(half).dtype == model.scores(half).dtype == torch.float32
    assert Ensemble(nets, combine="vote").scores(half).dtype == torch.float32


def test_all_members_are_held_and_let_go(nets, x):
    for net in nets:
        net.train()
    model = Ensemble(nets)
    with evaluating(model):
        assert not any(net.training for net in nets)
        model.predict(x)
    assert all(net.training for net in nets)
    assert all(net.calls == 0 for net in nets)


def test_members_held_before_one_fails_are_let_go(nets):
    class Fails(Fixed):
        def evaluating(self):
            raise RuntimeError("no")

    nets[0].train()
    with pytest.raises(RuntimeError, match="no") as caught:
        evaluating(Ensemble([nets[0], Fails(1)], combine="vote"))
    assert nets[0].training
    assert caught.tb  # while the frames are still there, so that no collector did it


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_attacks_fool_the_whole(nets, x, combine):
    model = Ensemble(nets, combine=combine)
    y = model.predict(x)
    for attack in (attacks.PGD(eps=0.3, steps=10), attacks.DeepFool()):
        result = attack.run(model, x, y)
        assert result.success.float().mean() > 0.8
        assert torch.equal(result.success, model.predict(result.x_adv) != y)


def test_a_mean_of_linear_models_is_attacked_in_closed_form():
    rows = torch.rand(40, 3, dtype=torch.float64)
    y = (rows.sum(1) > 1.5).long()
    from sklearn.linear_model import LogisticRegression, RidgeClassifier

    known = [LogisticRegression().fit(rows, y), RidgeClassifier().fit(rows, y)]
    model = Ensemble([SklearnClassifier(k, bounds=(-9, 9)) for k in known])
    z = sum(torch.from_numpy(k.decision_function(rows)) for k in known)
    w = sum(torch.from_numpy(k.coef_.ravel()) for k in known)
    found = attacks.DeepFool().run(model, rows)
    torch.testing.assert_close(found.distance, z.abs() / w.norm(), rtol=1e-3, atol=0)


def test_a_rejection_is_a_vote_for_rejecting(x):
    def labels(*votes):
        return Ensemble([Fixed(vote) for vote in votes], combine="vote").predict(x)[0].item()

    assert [labels(-1, 2, 2), labels(-1, -1, 2), labels(-1, 1), labels(-1, -1)] == [2, -1, -1, -1]
    torch.testing.assert_close(
        Ensemble([Fixed(-1), Fixed(1)], combine="vote").scores(x)[0], torch.tensor([0, 0.5, 0])
    )


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_a_member_whose_logits_are_probabilities_is_noticed(combine):
    class Confused:
        bounds, num_classes = (0.0, 1.0), 3

        def logits(self, x):
            return x.flatten(1)[:, :3].softmax(1)

        def predict(self, x):
            return self.logits(x).argmax(1)

    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double()
    model = Ensemble([TorchClassifier(Linear3()), Confused()], combine)
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        model.scores(x)
