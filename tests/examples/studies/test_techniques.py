"""What the cross-technique study trains and runs."""

import torch

from advkit import attacks
from advkit.data import Dataset, digits


def test_six_techniques_each_with_images_of_its_own(study, monkeypatch):
    """scikit-learn's digits, blown up to the size that the LeNet takes."""
    train = digits("train")
    large = Dataset(torch.nn.functional.interpolate(train.x, (28, 28)), train.y, train.name)
    seen = []
    fitted = study.fitted
    monkeypatch.setattr(study, "fitted", lambda e, x, y: (seen.append(x), fitted(e, x, y))[1])
    monkeypatch.setattr(study, "deep_net", lambda x, y: (seen.append(x), net_of(study))[1])
    models = study.techniques(large, 200)
    assert [len(x) for x in seen] == [200] * 5
    assert torch.equal(torch.cat(seen), large.x[:1000])
    kinds = {name: type(attack) for name, attack in study.attack_of_each(models, 50).items()}
    with_gradients = {name for name, kind in kinds.items() if kind is attacks.FGSM}
    assert with_gradients == {"deep net", "logistic regression"}
    assert kinds["ensemble"] is attacks.Square
    assert len(models) == 6
    x, y = large.x[1000:], large.y[1000:]
    alone = [models[name].predict(x) for name in list(models)[:5]]
    votes = torch.nn.functional.one_hot(torch.stack(alone), 10).sum(0)
    assert torch.equal(models["ensemble"].predict(x), votes.argmax(1))
    assert (models["k-NN"].predict(x) == y).float().mean() > 0.7


def net_of(study):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return study.TorchClassifier(study.MnistLeNet())


def test_the_deep_net_learns_the_same_whatever_was_drawn_before(study):
    x, y = torch.rand(10, 1, 28, 28), torch.arange(10)
    first = study.deep_net(x, y).logits(x)
    torch.rand(3)
    assert torch.equal(study.deep_net(x, y).logits(x), first)
