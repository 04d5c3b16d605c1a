"""A module of two inputs: each sample meets its own second input, whoever sends it."""

import dataclasses

import pytest
import torch

import advkit
from advkit import CallableClassifier, Ensemble, Expectation, QueryCounter, StraightThrough, attacks
from advkit import eval as rob
from advkit.defenses import (
    MRR,
    Distillation,
    FeatureSqueezing,
    InputValidator,
    RandomizedSmoothing,
)
from advkit.defenses.mrr.victim import predict_labels
from advkit.detectors import Guard, collect
from advkit.eval.noise import noisy
from tests.attack_cases import ATTACKS
from tests.second_inputs import TwoInputs, data, one_by_one

pytestmark = pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


class Asking:
    """A detector of inputs that reads the numbers, whose risk is one for every third sample."""

    reads_inputs = True

    def anomaly_score(self, x, labels=None):
        return (advkit.current_rows() % 3 == 0).double() + 0 * x[:, 0]

    def margin_over_threshold(self, x, labels, threshold):
        return self.anomaly_score(x)[:, None] - threshold

    def features(self, x):
        return x * advkit.current_rows()[:, None]


def through_two_inputs(attack, samples):
    """`attack`, or if it goes through a surrogate, through one of two inputs."""
    if not hasattr(attack, "surrogate"):
        return attack
    return dataclasses.replace(attack, surrogate=TwoInputs(samples, seed=5))


def service(module):
    return lambda rows: module(torch.from_numpy(rows)).softmax(1).detach().numpy()


WRAPPERS = {
    "module": advkit.as_classifier,
    "preprocess": lambda m: advkit.TorchClassifier(
        m, preprocess=lambda x: x + 0.01 * advkit.current_rows()[:, None]
    ),
    "Ensemble": lambda m: Ensemble([m, m], "probabilities"),
    "Expectation": lambda m: Expectation(m, draws=3),
    "StraightThrough": lambda m: StraightThrough(m, lambda x: (64 * x).round() / 64),
    "FeatureSqueezing": lambda m: FeatureSqueezing(m, bits=5),
    "QueryCounter": QueryCounter,
    "RandomizedSmoothing": lambda m: RandomizedSmoothing(
        m, sigma=0.05, n0=30, draws=7, batch_size=20
    ),
    "InputValidator": lambda m: InputValidator(m, grid=None),
    "Guard": lambda m: Guard(m, Asking(), threshold=0.5),
    "Guard in the model's place": lambda m: Guard(
        m, Asking(), threshold=0.5, on_alarm=lambda alarm: advkit.current_rows() % 3
    ),
    "CallableClassifier": lambda m: CallableClassifier(service(m), 3, max_batch=3),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@pytest.mark.slow("every attack for each sample")
@every_attack
@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_an_attack_finds_what_it_finds_for_each_sample_alone(attack):
    module, x, y = data(5)
    attack = through_two_inputs(attack, 5)
    result = attack.run(module, x, y)
    alone = one_by_one(lambda *part: attack.run(module, *part).x_adv, x, y)
    torch.testing.assert_close(result.x_adv, alone, atol=1e-9, rtol=0)
    assert result.success.any()


@pytest.mark.slow("every attack in an evaluation")
@every_attack
@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_an_evaluation_counts_over_the_batches(attack):
    module, x, y = data(11)
    attack = through_two_inputs(attack, 11)
    report = rob.evaluate(module, x, y, attacks=[attack], batch_size=5)
    rows = report.clean.nonzero().flatten()
    assert rows.tolist() == [i for i in range(11) if i % 4]
    with advkit.given_rows(rows):
        result = attack.run(module, x[rows], y[rows])
    assert torch.equal(report.outcomes[0].robust[rows], ~result.success)
    found = report.outcomes[0].distance[rows]
    expected = torch.where(result.success, result.distance.float(), torch.nan)
    torch.testing.assert_close(found, expected, equal_nan=True)


@every_wrapper
def test_every_wrapper_passes_on_the_numbers(wrap):
    module, x, _ = data(11)
    model = wrap(module)
    with advkit.given_rows(range(11)):
        labels = model.predict(x)
    assert torch.equal(labels, one_by_one(model.predict, x))
    assert int(rob.accuracy(model, x, labels.clamp_min(0), batch_size=4).count) == int(
        (labels >= 0).sum()
    )


@every_wrapper
@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_an_attack_goes_through_every_wrapper(wrap):
    module, x, y = data(6)
    model, attack = wrap(module), attacks.RandomNoise(eps=0.5, restarts=4)
    alone = one_by_one(lambda *part: attack.run(model, *part).x_adv, x, y)
    assert torch.equal(attack.run(model, x, y).x_adv, alone)


@pytest.mark.parametrize("attack", [attacks.PGD(eps=0.3), attacks.FAB(), attacks.Square(eps=0.3)])
def test_a_module_that_fails_on_a_part_of_its_batch_is_told_of_the_numbers(attack):
    module, x, y = data(12)

    class Bound(torch.nn.Module):
        def forward(self, x):
            return x[:, :3] + module.meta  # one row for each sample, whichever are sent

    with pytest.raises(RuntimeError, match=r"of the 12 samples of the batch: .*current_rows\(\)"):
        attack.run(Bound(), x, y)


def test_an_error_on_the_whole_batch_stays_as_it_is():
    def fails(x):
        raise RuntimeError("out of order")

    model = advkit.TorchClassifier(torch.nn.Linear(4, 3), preprocess=fails)
    with pytest.raises(RuntimeError, match="^out of order$"):
        attacks.FGSM(eps=0.1).run(model, torch.rand(4, 4), torch.zeros(4))


def test_without_numbers_a_wrapper_has_none_either():
    module, x, _ = data(4)
    for wrap in WRAPPERS.values():
        with pytest.raises((RuntimeError, advkit.ServiceError), match="given_rows"):
            wrap(module).predict(x)


def test_a_wrapper_of_ones_own_that_repeats_samples_must_say_so():
    module, x, y = data(4)

    class Twice:
        bounds, num_classes = (0.0, 1.0), 3

        def __init__(self, says):
            self.inner, self.says = advkit.TorchClassifier(module), says

        def predict(self, x):
            if not self.says:
                return self.inner.predict(torch.cat([x, x]))[: len(x)]
            with advkit.given_rows(advkit.current_rows().repeat(2)):
                return self.inner.predict(torch.cat([x, x]))[: len(x)]

    with pytest.raises(RuntimeError, match="for the 8 samples that the model gets, got 4 current"):
        rob.accuracy(Twice(says=False), x, y)
    assert rob.accuracy(Twice(says=True), x, y).count == 3


def test_a_model_that_repeats_samples_and_reads_no_numbers_is_left_alone():
    net = advkit.TorchClassifier(torch.nn.Linear(6, 3).double())

    class Twice:
        bounds, num_classes = (0.0, 1.0), 3

        def predict(self, x):
            return net.predict(torch.cat([x, x]))[: len(x)]

    assert rob.accuracy(Twice(), torch.rand(3, 6).double(), torch.zeros(3).long()).total == 3


def test_numbers_within_other_functions_that_take_data():
    module, x, y = data(11)
    with advkit.given_rows(range(11)):
        labels = module(x).argmax(1)
    loader = list(zip(x.split(4), y.split(4), strict=True))
    assert rob.accuracy(module, loader).count == 8
    matrix = rob.transfer_matrix({"net": module}, None, attacks.FGSM(eps=0.0), x, y, batch_size=4)
    assert matrix.error_rate["net"]["net"].count == 3
    table = collect([module], [attacks.FGSM(eps=0.0)], x, y, batch_size=4)
    assert table.predicted.tolist() == [*labels.tolist(), *labels.tolist()]
    found = rob.benchmark(module, x, y, attacks=[attacks.FGSM(eps=0.0)], batch_size=4, rounds=1)
    assert found.groups[0].best.success_rate.count == 0
    guard = Guard(module, Asking(), fpr=0.5).calibrate(x, batch_size=4)
    assert guard.threshold == 0
    smooth = RandomizedSmoothing(module, sigma=0.01, n=200, batch_size=300)
    certain = smooth.certify(x).labels
    assert torch.equal(certain[certain >= 0], labels[certain >= 0])
    assert (certain >= 0).sum() > 5


def test_the_start_images_of_an_attack_have_no_numbers():
    module, x, y = data(5)
    guard = Guard(module, Asking(), threshold=2.0)
    attack = attacks.FeatureMatching(eps=0.1, start_images=torch.rand(5, 6).double(), steps=2)
    with pytest.raises(RuntimeError, match="no numbers for the images in start_images"):
        attack.run(guard, x, y)


def test_a_substitute_counts_within_the_inputs_it_begins_with():
    _, x, _ = data(7)
    asked = []

    def fn(rows):
        asked.append(advkit.current_rows().tolist())
        return (rows.sum(1) > 3).astype(int)

    victim = CallableClassifier(fn, 2, output="labels")
    net = torch.nn.Linear(6, 2).double()
    attacks.Substitute(max_queries=14, rounds=1, epochs=1, batch_size=5).fit(victim, net, x)
    first, second, *moved = asked
    assert (first, second) == ([0, 1, 2, 3, 4], [5, 6])
    assert sorted(row for rows in moved for row in rows) == list(range(7))
    with pytest.raises(advkit.ServiceError, match="no numbers for x_test"):
        attacks.Substitute(max_queries=7, epochs=1).fit(victim, net, x, x)


def test_a_checkpointed_module_reads_the_numbers_again_in_the_backward_pass():
    module, x, y = data(6)

    class Checkpointed(torch.nn.Module):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)

    pgd = attacks.PGD(eps=0.1, steps=5)
    assert torch.equal(pgd(Checkpointed(), x, y), pgd(module, x, y))


def test_a_loss_reads_the_numbers_of_its_logits():
    module, x, y = data(9)
    pgd = attacks.PGD(eps=0.02, steps=5, loss=lambda z, _: z[:, 0] + 0 * advkit.current_rows())
    assert pgd.run(module, x, y).success.any()


def test_noise_and_examples_of_an_evaluation_are_labelled_with_their_own_second_input():
    module, x, y = data(11)
    model, asked = advkit.TorchClassifier(module), []

    class Noting(torch.nn.Module):
        def forward(self, x):
            asked.append((x.detach(), advkit.current_rows()))
            return module(x)

    attack = attacks.PGD(eps=0.4, steps=5)
    report = rob.evaluate(Noting(), x, y, attacks=[attack], batch_size=5)
    for inputs, rows in asked:
        assert ((inputs - x[rows]).abs() <= 0.4 + 1e-9).all()
    attacked = report.clean.nonzero().flatten()
    with advkit.given_rows(attacked):
        answer = model.predict(noisy(x[attacked], (0, 1), "linf", 0.4))
    assert torch.equal(report.noise[0].robust[attacked], answer == y[attacked])
    found = report.outcomes[0].examples
    assert len(found.y)
    for clean, x_adv, label in zip(found.x, found.x_adv, found.predicted, strict=True):
        row = (x == clean).all(1).nonzero().flatten()
        with advkit.given_rows(row):
            assert model.predict(x_adv[None]) == label


def test_a_teacher_and_a_victim_of_two_inputs():
    module, x, _ = data(130)
    with advkit.given_rows(range(130)):
        labels = module(x).argmax(1)
        assert torch.equal(predict_labels(advkit.TorchClassifier(module), x), labels)
    asked = []

    class Noting(torch.nn.Module):
        def forward(self, x):
            asked.extend(advkit.current_rows().tolist())
            return module(x)

    student = torch.nn.Linear(6, 3).double()
    Distillation(temperature=1.0, epochs=1).fit(Noting(), student, x.split(50))
    assert asked == list(range(130))
    with pytest.raises(RuntimeError, match="no numbers for the inputs that MRR is fitted on"):
        MRR().fit(module, x, labels)


@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_a_detector_reads_the_numbers_of_what_an_attack_shows_it():
    module, x, y = data(6)
    guard = Guard(module, Asking(), threshold=0.5)
    attack = attacks.SelectivePGD(eps=0.3, steps=6)
    alone = one_by_one(lambda *part: attack.run(guard, *part).x_adv, x, y)
    torch.testing.assert_close(attack.run(guard, x, y).x_adv, alone, atol=1e-9, rtol=0)


class Labelled(torch.nn.Module):
    """Its answer is the entry of `LABELS` that belongs to the sample."""

    LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2, 0, 0, 1, 2])

    def forward(self, x):
        return 5 * torch.nn.functional.one_hot(self.LABELS[advkit.current_rows()], 3) + 0 * x[:, :3]


ROWS = torch.tensor([11, 3, 5, 7, 1, 0])
NOISE = attacks.RandomNoise(eps=0.0)


def test_a_stream_reads_the_numbers_of_where_it_was_made():
    x = torch.rand(6, 4)
    with advkit.given_rows(ROWS):
        stream = rob.evaluate_stream(
            Labelled(), x, Labelled.LABELS[ROWS], attacks=[NOISE], batch_size=4
        )
    assert float(list(stream)[-1].clean_accuracy) == 1


@pytest.mark.parametrize(
    "evaluated",
    [
        rob.accuracy,
        lambda *given: rob.evaluate(*given, attacks=[NOISE]),
        lambda model, x, y: rob.transfer_matrix([model], None, NOISE, x, y),
        lambda model, x, y: collect([model], [], x, y),
        attacks.PGD(eps=0.1),
    ],
    ids=["accuracy", "evaluate", "transfer_matrix", "collect", "attack"],
)
def test_numbers_for_more_samples_than_there_are_are_refused(evaluated):
    with advkit.given_rows(ROWS), pytest.raises(RuntimeError, match="got 6 for 3 samples"):
        evaluated(Labelled(), torch.rand(3, 4), Labelled.LABELS[ROWS[:3]])
