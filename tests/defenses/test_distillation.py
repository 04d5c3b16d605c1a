"""Distillation: soft labels, their loss and gradient, what is asked, and what is hidden."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F

from advkit import (
    CallableClassifier,
    QueryBudgetExceeded,
    ServiceError,
    TorchClassifier,
    attacks,
)
from advkit.core.results import InconclusiveWarning
from advkit.data import digits
from advkit.defenses import Distillation, DistillationLoss, TemperedCrossEntropy
from advkit.training import fit as training_loop
from tests.toys import Linear3, convnet, images


def linear(scale=1.0, classes=3, features=4, seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Linear(features, classes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    return net.to(dtype)


def inputs(n=6, features=4, seed=0, dtype=torch.float32):
    return torch.rand(n, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def service(net, **options):
    """`net` behind an interface that gives the probabilities of its softmax."""

    def answer(rows):
        return net(torch.from_numpy(rows)).double().softmax(1).detach()

    return CallableClassifier(answer, num_classes=3, **options)


def numpy_softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_logits(net, x):
    w, b = (p.detach().double().numpy() for p in net.parameters())
    return x.double().numpy() @ w.T + b


def numpy_loss(net, x, soft, temperature):
    """Value, and gradients of weight and bias, in float64 and written out."""
    p = numpy_softmax(numpy_logits(net, x) / temperature)
    residual = (p - soft) / (temperature * len(x))
    value = -(soft * np.log(p)).sum(1).mean()
    return value, residual.T @ x.double().numpy(), residual.sum(0)


# Ordinary logits, and those of nets that were trained at the temperature.
@pytest.mark.parametrize("of_teacher", [1.0, 300.0])
@pytest.mark.parametrize("of_student", [1.0, 300.0])
@pytest.mark.parametrize("temperature", [1.0, 20.0, 100.0])
def test_loss_and_gradient_are_those_of_float64(of_teacher, of_student, temperature):
    teacher, student, x = linear(of_teacher), linear(of_student, seed=1), inputs()
    soft = numpy_softmax(numpy_logits(teacher, x) / temperature)
    value = DistillationLoss(teacher=teacher, temperature=temperature)(student, x, torch.zeros(6))
    value.backward()
    expected = numpy_loss(student, x, soft, temperature)
    found = (value.item(), student.weight.grad.numpy(), student.bias.grad.numpy())
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max())


def test_labels_that_there_is_no_logit_of():
    with pytest.raises(ValueError, match="`y` must be below 3"):
        TemperedCrossEntropy(temperature=2.0)(linear(), inputs(), torch.arange(6))


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_the_tempered_cross_entropy_is_that_of_float64(temperature):
    net, x, y = linear(300.0), inputs(), torch.tensor([0, 1, 2, 0, 1, 2])
    value = TemperedCrossEntropy(temperature=temperature)(net, x, y)
    value.backward()
    expected = numpy_loss(net, x, np.eye(3)[y.numpy()], temperature)
    found = (value.item(), net.weight.grad.numpy(), net.bias.grad.numpy())
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-6)


def test_where_the_usual_gradient_is_zero_the_tempered_one_is_not():
    """What is hidden: at 300-fold logits float32 has no gradient left but at the temperature."""
    net, x = linear(2000.0), inputs()
    y = net(x).argmax(1)
    slopes = {}
    for temperature in (1.0, 100.0):
        leaf = x.clone().requires_grad_()
        value = TemperedCrossEntropy(temperature=temperature)(net, leaf, y)
        slopes[temperature] = torch.autograd.grad(value, leaf)[0].abs().amax(1)
    assert (slopes[1.0] == 0).sum() >= 4
    assert (slopes[100.0] > 0).all()


def test_losses_compose_and_leave_the_teacher_alone():
    teacher, student, x, y = linear(), linear(seed=1), inputs(), torch.arange(6) % 3
    soft = DistillationLoss(teacher=teacher, temperature=5.0)
    hard = TemperedCrossEntropy(temperature=1.0)
    both = 25.0 * soft + 0.5 * hard
    expected = 25 * soft(student, x, y) + 0.5 * F.cross_entropy(student(x), y)
    torch.testing.assert_close(both(student, x, y), expected)
    expected.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_the_loss_asks_at_every_call_and_the_teacher_in_evaluation():
    teacher, x = convnet().train(), images(4)
    counted = CallableClassifier(
        lambda rows: convnet()(torch.from_numpy(rows)).softmax(1).detach(), num_classes=3
    )
    student = convnet().eval()
    y = torch.zeros(4)
    loss = DistillationLoss(teacher=counted, temperature=3.0)
    values = [loss(student, x, y) for _ in range(2)]
    assert counted.queries == 8
    white = DistillationLoss(teacher=teacher, temperature=3.0)(student, x, y)
    torch.testing.assert_close(values[0], white)
    assert torch.equal(values[0], values[1])
    assert teacher.training
    assert teacher.calls == 0


@pytest.mark.parametrize("temperature", [1.0, 7.0, 100.0])
def test_probabilities_say_what_logits_say(temperature):
    teacher, x, y = linear(3.0), inputs(), torch.zeros(6)
    white, black = (
        DistillationLoss(teacher=model, temperature=temperature)(linear(seed=1), x, y)
        for model in (teacher, service(teacher))
    )
    torch.testing.assert_close(white, black)


@pytest.mark.parametrize("floor", [1e-6, 1e-3])
def test_zeros_count_as_the_floor(floor):
    """A student of constant logits zero, whose gradient is 1/3 minus the soft label."""
    answered = np.array([[1.0, 0.0, -0.001]])
    teacher = CallableClassifier(lambda rows: answered, num_classes=3)
    student = nn.Linear(4, 3, bias=True)
    nn.init.zeros_(student.weight)
    nn.init.zeros_(student.bias)
    loss = DistillationLoss(teacher=teacher, temperature=100.0, min_probability=floor)
    loss(student, inputs(1), torch.zeros(1)).backward()
    weights = np.array([1.0, floor, floor]) ** 0.01
    expected = (1 / 3 - weights / weights.sum()) / 100
    np.testing.assert_allclose(student.bias.grad.numpy(), expected, rtol=1e-4)


def test_the_floor_decides_how_far_a_student_goes():
    """All weights on class 0: in the end the logits of the others are log(floor) below."""
    teacher = CallableClassifier(lambda rows: np.eye(3)[[0] * len(rows)], num_classes=3)
    for floor in (1e-2, 1e-4):
        distillation = Distillation(temperature=10.0, epochs=120, lr=0.3, min_probability=floor)
        student = distillation.fit(teacher, linear(seed=1), [inputs(8)])
        gap = (student(inputs(8))[:, 0] - student(inputs(8))[:, 1]).mean().item()
        assert gap == pytest.approx(-math.log(floor), rel=0.05)


def test_the_student_learns_in_float32_where_fit_would_take_16_bits(monkeypatch):
    monkeypatch.setattr(training_loop, "_has_bfloat16", lambda device: True)
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x)

    Distillation(temperature=100.0, epochs=1).fit(linear(), Watched(4, 3), [inputs()])
    assert seen
    assert not any(seen)


def test_inputs_that_are_wider_than_the_student():
    class Narrow(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    student = Narrow(4, 3)
    loss = DistillationLoss(teacher=linear(dtype=torch.float64), temperature=9.0)
    value = loss(student, inputs(dtype=torch.float64), torch.zeros(6))
    assert value.dtype == torch.float32
    value.backward()
    assert student.weight.grad.isfinite().all()


def test_a_linear_student_becomes_its_linear_teacher():
    """At any temperature the only minimum is at the teacher's own logits, up to a constant."""
    teacher, x = linear(2.0), inputs(64)
    for temperature in (1.0, 100.0):
        student = linear(seed=1)
        distillation = Distillation(temperature=temperature, epochs=200, lr=0.1, batch_size=64)
        assert distillation.fit(teacher, student, [x]) is student
        ours, theirs = student(x).log_softmax(1), teacher(x).log_softmax(1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


def test_a_black_box_is_asked_once_for_each_input():
    teacher, x = service(linear(3.0), max_queries=20), inputs(20)
    white, black = (
        Distillation(temperature=2.0, epochs=5, batch_size=8).fit(model, linear(seed=1), x.split(6))
        for model in (linear(3.0), teacher)
    )
    assert teacher.queries == 20
    torch.testing.assert_close(white.weight, black.weight)

    poor, student = service(linear(3.0), max_queries=19), linear(seed=1)
    with pytest.raises(QueryBudgetExceeded):
        Distillation(temperature=2.0).fit(poor, student, x.split(6))
    assert torch.equal(student.weight, linear(seed=1).weight)


def test_whatever_a_loader_gives():
    x, y = inputs(20), torch.arange(20)
    pairs = [(x[:12], y[:12]), (x[12:], y[12:])]
    loaders = [
        list(x.split(12)),
        pairs,
        [[part] for part, _ in pairs],
        ((part, label) for part, label in pairs),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=12),
    ]
    found = [
        Distillation(temperature=2.0, epochs=2).fit(linear(3.0), linear(seed=1), loader).weight
        for loader in loaders
    ]
    for weight in found[1:]:
        assert torch.equal(weight, found[0])
    assert not torch.equal(found[0], linear(seed=1).weight)


def test_steps_follow_from_epochs_and_batch_size_and_their_length_from_lr():
    student = convnet().train()
    Distillation(temperature=2.0, epochs=3, batch_size=5).fit(convnet(), student, [images(8)])
    assert student.calls == 6
    assert not student.training
    other = linear(seed=1)
    Distillation(temperature=2.0, epochs=1, lr=0.01, batch_size=20).fit(
        linear(3.0), other, [inputs(20)]
    )
    moved = (other.weight - linear(seed=1).weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-2, atol=0)


def test_the_seed_decides_and_nothing_else_is_drawn_from():
    def run(seed):
        student = convnet()
        Distillation(temperature=2.0, epochs=2, batch_size=3, seed=seed).fit(
            convnet(), student, [images(8)]
        )
        return student.conv.weight

    before = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)

    plain = [  # without dropout the seed decides on the order alone
        Distillation(temperature=2.0, epochs=1, batch_size=3, seed=seed)
        .fit(linear(3.0), linear(seed=1), [inputs(8)])
        .weight
        for seed in (0, 1)
    ]
    assert not torch.equal(*plain)


def test_a_random_teacher_goes_on_drawing_from_batch_to_batch():
    heard = []

    class Loud(TorchClassifier):
        def logits(self, x):
            heard.append(super().logits(x))
            return heard[-1]

    teacher = Loud(convnet().train(), mode="keep")
    Distillation(temperature=2.0, epochs=1).fit(teacher, convnet(), [images(8), images(8)])
    assert not torch.equal(*heard)


def test_progress_is_written_line_by_line(capfd):
    for progress, epochs in ((False, []), (True, ["1/2", "2/2"])):
        distillation = Distillation(temperature=2.0, epochs=2, progress=progress)
        distillation.fit(linear(3.0), linear(seed=1), [inputs(8)])
        first = [line.split()[0] for line in capfd.readouterr().err.splitlines()]
        assert first == ["epoch", *epochs] if progress else not first


def test_the_teacher_is_left_as_it_was():
    teacher = convnet().train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        student = Distillation(temperature=2.0, epochs=1).fit(teacher, convnet(), [images(8)])
    assert teacher.training
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(student.conv.weight, teacher.conv.weight)


def test_teachers_without_gradients_and_in_other_bounds():
    x = 255 * inputs(60)
    labels = (x[:, 0] > 128).long()
    model = service(lambda rows: linear(3.0)(rows / 255), bounds=(0, 255))
    student = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    Distillation(temperature=1.0, epochs=2).fit(model, student, [(x, labels)])
    neighbours = KNeighborsClassifier(5).fit(inputs(60).numpy(), labels.numpy())
    student = linear(classes=2)
    Distillation(temperature=1.0, epochs=300, lr=0.05).fit(neighbours, student, [inputs(60)])
    agreed = student(inputs(60)).argmax(1) == torch.from_numpy(
        neighbours.predict(inputs(60).numpy())
    )
    assert agreed.float().mean() > 0.85


def test_soft_labels_are_not_narrower_than_float32():
    """In bfloat16 the labels of ordinary logits at T = 100 would all be alike."""
    teacher = linear(3.0).bfloat16()
    x = inputs().bfloat16()
    student = linear(3.0)
    loss = DistillationLoss(teacher=teacher, temperature=100.0)
    module = nn.Sequential(Widen(), student)
    loss(module, x, torch.zeros(6)).backward()
    soft = numpy_softmax(teacher(x).detach().double().numpy() / 100)
    _, _, expected = numpy_loss(student, x, soft, 100.0)
    found = student.bias.grad.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


class Widen(nn.Module):
    def forward(self, x):
        return x.float()


@pytest.fixture(scope="module")
def distilled():
    """Papernot's protocol on the digits of scikit-learn at T = 100: the student."""
    data = digits("train")
    loader = list(zip(data.x.split(100), data.y.split(100), strict=True))

    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher, student = net(), net()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.02)
    for _ in range(25):
        for x, y in loader:
            optimizer.zero_grad()
            TemperedCrossEntropy(temperature=100.0)(teacher, x, y).backward()
            optimizer.step()
    return Distillation(temperature=100.0, epochs=25, lr=0.02).fit(teacher, student, loader)


def test_distillation_hides_the_gradient_and_nothing_else(distilled):
    """The usual cross-entropy stands still; at logits / T, and by default, the net falls."""
    test = digits("test").head(200)

    def usual(logits, y):
        return F.cross_entropy(logits, y, reduction="none")

    def tempered(logits, y):
        return F.cross_entropy(logits / 100, y, reduction="none")

    clean = (distilled(test.x).argmax(1) == test.y).double().mean()
    assert clean > 0.85
    attack = attacks.PGD(eps=0.3, steps=20, random_start=False, loss=usual)
    with pytest.warns(InconclusiveWarning, match="gradient"):
        still = attack.run(distilled, test.x, test.y)
    assert (~still.success).double().mean() > 0.8
    for loss in (tempered, "ce", "margin"):
        found = attacks.PGD(eps=0.3, steps=20, loss=loss).run(distilled, test.x, test.y)
        assert (~found.success).double().mean() < 0.05


def test_the_students_own_teacher_decides_how_large_its_logits_are(distilled):
    """From a teacher with ordinary logits they are ordinary, whatever the temperature."""
    data = digits("train").head(400)
    ordinary = linear(3.0, classes=10, features=64)
    teacher = nn.Sequential(nn.Flatten(), ordinary)
    student = nn.Sequential(nn.Flatten(), linear(1.0, classes=10, features=64, seed=1))
    Distillation(temperature=100.0, epochs=60, lr=0.02).fit(teacher, student, [data.x])

    def spread(net):
        return float((net(data.x) - net(data.x).mean(1, keepdim=True)).detach().std())

    assert spread(student) == pytest.approx(spread(teacher), rel=0.1)
    assert spread(distilled) > 100


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"temperature": 0.0}, ValueError, "`temperature` must be positive"),
        ({"temperature": math.nan}, ValueError, "`temperature` must be positive"),
        ({"temperature": "100"}, TypeError, "`temperature` must be a number"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1"),
        ({"lr": -1.0}, ValueError, "`lr` must be positive"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        (
            {"min_probability": 0.0},
            ValueError,
            "`min_probability` must lie in .0, 1., got 0.0",
        ),
        ({"min_probability": 1.0}, ValueError, "`min_probability` must lie in .0, 1."),
        ({"min_probability": math.nan}, ValueError, "`min_probability` must lie in .0, 1."),
        ({"min_probability": None}, TypeError, "`min_probability` must be a number"),
        ({"seed": 0.5}, TypeError, "`seed` must be an int"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
    ],
)
def test_arguments(options, error, said):
    with pytest.raises(error, match=said):
        Distillation(**{"temperature": 2.0, **options})
    for other in (DistillationLoss, TemperedCrossEntropy):
        if options.keys() <= other.__dataclass_fields__.keys():
            given = {"temperature": 2.0, "teacher": linear(), **options}
            known = {name: given[name] for name in other.__dataclass_fields__ if name in given}
            with pytest.raises(error, match=said):
                other(**known)


def test_teachers_that_are_none():
    student, x = linear(), inputs()
    by_labels = CallableClassifier(lambda rows: [0] * len(rows), 3, output="labels")
    with pytest.raises(TypeError, match="got CallableClassifier, which returns labels only"):
        Distillation(temperature=2.0).fit(by_labels, student, [x])
    with pytest.raises(TypeError, match="got CallableClassifier, which returns labels only"):
        DistillationLoss(teacher=by_labels, temperature=2.0)
    assert by_labels.queries == 0
    with pytest.raises(TypeError, match="`model` must be a torch.nn.Module"):
        Distillation(temperature=2.0).fit(3, student, [x])
    svm = SVC(decision_function_shape="ovr").fit(inputs(30).numpy(), torch.arange(30) % 3)
    with pytest.raises(ValueError, match="`teacher` must return probabilities"):
        Distillation(temperature=2.0).fit(svm, student, [x])
    broken = linear()
    nn.init.constant_(broken.bias, math.inf)
    with pytest.raises(ValueError, match=r"finite logits, got NaN or infinity \(samples 0, 1"):
        Distillation(temperature=2.0).fit(broken, student, [x])


def test_a_teacher_that_takes_its_probabilities_for_logits():
    confused = nn.Sequential(linear(), nn.Softmax(dim=1))
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        Distillation(temperature=2.0, epochs=1).fit(confused, linear(seed=1), [inputs()])
    told = TorchClassifier(confused, output="probabilities")
    y = torch.zeros(6)
    one, two = (
        DistillationLoss(teacher=teacher, temperature=20.0)(linear(seed=1), inputs(), y)
        for teacher in (told, linear())
    )
    torch.testing.assert_close(one, two)


def test_students_that_do_not_fit():
    teacher = service(linear())
    with pytest.raises(TypeError, match=r"`student` must be a torch.nn.Module, got SVC"):
        Distillation(temperature=2.0).fit(teacher, SVC(), [inputs()])
    assert teacher.queries == 0
    with pytest.raises(ValueError, match="`student` must return 3 logits.*got 2"):
        Distillation(temperature=2.0).fit(teacher, linear(classes=2), inputs(20).split(5))
    assert teacher.queries == 5
    with pytest.raises(ValueError, match="empty parameter list"):
        Distillation(temperature=2.0).fit(teacher, nn.Flatten(), inputs(20).split(5))
    assert teacher.queries == 5
    with pytest.raises(ValueError, match="`student` must return 3 logits.*got 2"):
        DistillationLoss(teacher=teacher, temperature=2.0)(
            linear(classes=2), inputs(), torch.zeros(6)
        )


def test_loaders_that_do_not_fit():
    fit = Distillation(temperature=2.0).fit
    with pytest.raises(TypeError, match="`loader` must be an iterable of batches.*got Tensor"):
        fit(linear(), linear(), inputs())
    with pytest.raises(TypeError, match="`loader` must be an iterable of batches.*got int"):
        fit(linear(), linear(), 3)
    with pytest.raises(ValueError, match="`loader` must give at least one batch"):
        fit(linear(), linear(), [])
    with pytest.raises(
        TypeError, match="the inputs in `loader` must be a torch.Tensor, got a NumPy array"
    ):
        fit(linear(), linear(), [(inputs().numpy(), None)])
    with pytest.raises(ValueError, match="the inputs in `loader` must lie in the model's bounds"):
        fit(linear(), linear(), [2 * inputs() + 1])
    with pytest.raises(ValueError, match="`x` must lie in the model's bounds"):
        DistillationLoss(teacher=linear(), temperature=2.0)(
            linear(), 2 * inputs() + 1, torch.zeros(6)
        )


def test_float64_stays_float64():
    x = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = linear(features=3, dtype=torch.float64)
    DistillationLoss(teacher=Linear3(), temperature=9.0)(student, x, torch.zeros(5)).backward()
    w = np.array(Linear3.W)
    _, expected, _ = numpy_loss(student, x, numpy_softmax(x.numpy() @ w.T / 9), 9.0)
    np.testing.assert_allclose(student.weight.grad.numpy(), expected, rtol=1e-12)


def normed(features=4, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(features, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


@pytest.mark.parametrize("n", [8, 9, 13])
def test_a_last_batch_of_one_is_no_batch_for_a_batch_norm(n):
    student = normed()
    fitting = Distillation(temperature=2.0, epochs=2, batch_size=4)
    assert fitting.fit(linear(3.0), student, [inputs(n)]) is student


class Failing(nn.Module):
    """A student that fails in its second step of training, once."""

    def __init__(self, error):
        super().__init__()
        self.net, self.error, self.steps = linear(seed=1), error, 0

    def forward(self, x):
        self.steps += self.training
        if self.steps == 2 and self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.net(x)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_answers_outlive_an_error_of_the_training(error):
    teacher, x = service(linear(3.0), max_queries=20), inputs(20)
    fitting = Distillation(temperature=2.0, epochs=2, batch_size=8)
    with pytest.raises(type(error)) as caught:
        fitting.fit(teacher, Failing(error), x.split(6))
    assert teacher.queries_left == 0
    assert torch.equal(caught.value.answers.inputs, x)
    student = fitting.fit(teacher, linear(seed=1), x.split(6), answers=caught.value.answers)
    expected = fitting.fit(service(linear(3.0)), linear(seed=1), x.split(6))
    assert torch.equal(student.weight, expected.weight)


def test_only_what_a_spent_budget_left_is_asked_for():
    x = inputs(20)
    fitting = Distillation(temperature=2.0, epochs=2, batch_size=8)
    with pytest.raises(QueryBudgetExceeded) as caught:
        fitting.fit(service(linear(3.0), max_queries=13), linear(seed=1), x.split(6))
    assert len(caught.value.answers.inputs) == 12
    rest = service(linear(3.0), max_queries=8)
    student = fitting.fit(rest, linear(seed=1), x.flip(0).split(7), answers=caught.value.answers)
    assert rest.queries == 8
    warmer = Distillation(temperature=5.0, epochs=2, batch_size=8)
    other = warmer.fit(
        service(linear(3.0), max_queries=8),
        linear(seed=1),
        x.split(6),
        answers=caught.value.answers,
    )
    plain = warmer.fit(service(linear(3.0)), linear(seed=1), x.split(6))
    torch.testing.assert_close(other.weight, plain.weight)
    expected = fitting.fit(service(linear(3.0)), linear(seed=1), x.flip(0).split(7))
    torch.testing.assert_close(student.weight, expected.weight)


def test_a_call_that_fails_within_a_batch_keeps_the_calls_before_it():
    calls = []

    def flaky(rows):
        calls.append(len(rows))
        if len(calls) == 4:
            raise ConnectionError("down")
        return np.full((len(rows), 3), 1 / 3)

    teacher = CallableClassifier(flaky, num_classes=3, max_batch=2)
    with pytest.raises(ServiceError) as caught:
        Distillation(temperature=2.0).fit(teacher, linear(seed=1), [inputs(20)])
    assert torch.equal(caught.value.answers.inputs, inputs(20)[:6])
    assert teacher.queries == 6
