"""Published figures on real nets."""

import json
from pathlib import Path

import examples.studies.nets
import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit import eval as rob
from advkit.cli import main
from advkit.data import load_npz

pytestmark = pytest.mark.slow("whole test sets, and nets of full size")
ROOT = Path(__file__).parents[1]
FGSM_ON_LENET = {0.10: 0.8510, 0.15: 0.6826, 0.20: 0.4301, 0.25: 0.2082, 0.30: 0.0869}


def test_fgsm_on_the_lenet_of_the_pytorch_tutorial(real_net, mnist_test):
    """The figures of its notebook, all 10,000 test images, equal to four digits."""
    lenet = real_net("mnist_lenet", "mnist_lenet.pt")
    made = [attacks.FGSM(eps=eps) for eps in FGSM_ON_LENET]
    report = rob.evaluate(lenet, mnist_test.x, mnist_test.y, attacks=made, batch_size=500)
    found = {o.eps: round(float(o.robust_accuracy), 4) for o in report.outcomes}
    assert found == FGSM_ON_LENET
    assert float(report.clean_accuracy) == 0.9810


def test_the_same_from_the_command_line(real, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    budgets = [word for eps in FGSM_ON_LENET for word in ("--eps", str(eps))]
    arguments = [
        "--model", "examples/studies/nets.py:mnist_lenet", "--weights", str(real("mnist_lenet.pt")),
        "--data", str(real("mnist_test.npz")), "--attack", "FGSM", *budgets,
        "--batch-size", "500", "--out", str(tmp_path), "--quiet",
    ]  # fmt: skip
    assert main(["evaluate", *arguments]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    found = {a["eps"]: round(a["robust_accuracy"]["value"], 4) for a in report["attacks"]}
    assert found == FGSM_ON_LENET


def test_pgd_leaves_nothing_of_resnet20(real_net, cifar10_test):
    resnet = real_net("cifar10_resnet20", "cifar10_resnet20.pt")
    report = rob.evaluate(
        resnet, cifar10_test.x, cifar10_test.y, attacks=[attacks.PGD(eps=8 / 255)]
    )
    assert report.clean_accuracy == rob.Rate(455, 500)
    assert report.worst_case.count == 0


@pytest.mark.parametrize(
    ("factory", "weights", "images", "eps", "published", "within"),
    [
        # by seed this one leaves 0.906 to 0.916
        ("mnist_lenet5", "mnist_lenet5_robust.pt", "mnist_test", 0.3, 0.908, 0.008),
        ("mnist_cnn_certified", "mnist_cnn_certified.pt", "mnist_test", 0.1, 0.956, 0.005),
        ("cifar10_resnet4b", "cifar10_resnet4b_robust.pt", "cifar10_test", 2 / 255, 0.612, 0.005),
    ],
)
def test_pgd_on_robust_nets(request, real_net, factory, weights, images, eps, published, within):
    """With the paper's constant steps the known figure of 40 steps; the default leaves no more."""
    net, data = real_net(factory, weights), request.getfixturevalue(images).head(500)
    paper = attacks.PGD(eps=eps, step_size=2.5 * eps / 40, restarts=2)
    ours = attacks.PGD(eps=eps, restarts=2)
    report = rob.evaluate(net, data.x, data.y, attacks=[paper, ours], batch_size=250)
    constant, shrinking = (float(o.robust_accuracy) for o in report.outcomes)
    assert constant == pytest.approx(published, abs=within)
    assert shrinking <= constant


@pytest.mark.parametrize(
    ("factory", "weights", "right"),
    [
        ("imagenet_mobilenet_v2", "imagenet_mobilenet_v2.pt", 85),
        ("imagenet_mobilenet_v1", "imagenet_mobilenet_v1_050.pt", 75),
        ("imagenet_squeezenet", "imagenet_squeezenet11.pt", 62),
    ],
)
def test_imagenet_nets(real, real_net, factory, weights, right):
    """The known accuracy on 100 images: the architectures are those of the weights."""
    net, data = real_net(factory, weights), load_npz(real("imagenet_sample_224.npz"))
    assert (TorchClassifier(net).predict(data.x) == data.y).sum() == right


@pytest.mark.parametrize(
    "attack",
    [attacks.FAB(), attacks.LBFGS(), attacks.CarliniWagnerL2()],
    ids=repr,
)
def test_a_net_with_misleading_gradients_is_fooled_at_last(attack, real_net, mnist_test):
    """Trained against linf, its first layer nearly a threshold: steps must get longer."""
    net, data = real_net("mnist_lenet5", "mnist_lenet5_robust.pt"), mnist_test.head(30)
    correct = net(data.x).argmax(1) == data.y
    result = attack.run(net, data.x[correct], data.y[correct])
    assert result.success.all()


def test_the_net_trained_here_withstands_what_it_was_trained_against(mnist_test):
    """`examples/studies/weights/mnist_pgd.pt`, as `examples/studies/mnist_defenses.py` made it."""
    net = examples.studies.nets.mnist_cnn_certified()
    net.load_state_dict(
        torch.load(ROOT / "examples/studies/weights/mnist_pgd.pt", weights_only=True)
    )
    assert sum(p.numel() for p in net.parameters()) < 700_000
    part = mnist_test.head(200)
    report = rob.evaluate(net, part.x, part.y, attacks=[attacks.PGD(eps=0.3, steps=100)])
    assert float(rob.accuracy(net, mnist_test.x, mnist_test.y)) >= 0.97
    assert float(report.worst_case) >= 0.88
