"""CallableClassifier: any function, asked as often as is paid for and no more."""

import copy
import pickle

import examples.studies.serve_over_http as serve_over_http
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier

import advkit
from advkit import CallableClassifier, QueryBudgetExceeded, ServiceError
from advkit.models import REJECTED
from advkit.models import callable as module

WEIGHT = np.array([[2.0, -1.0], [-0.5, 1.5], [0.3, 0.2]])


def logits(rows):
    """Three logits of two features."""
    return rows @ WEIGHT.T


def probabilities(rows):
    z = np.exp(logits(rows))
    return z / z.sum(1, keepdims=True)


def labels(rows):
    return logits(rows).argmax(1)


FUNCTIONS = {"logits": logits, "probabilities": probabilities, "labels": labels}


@pytest.fixture
def x():
    return torch.rand(7, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def slept(monkeypatch):
    """The seconds that were slept, without sleeping."""
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


class Flaky:
    """Fails at the attempts whose numbers are given, from 1."""

    def __init__(self, fails, fn=probabilities):
        self.fails, self.fn, self.attempts = fails, fn, 0

    def __call__(self, rows):
        self.attempts += 1
        if self.attempts in self.fails:
            raise ConnectionError(f"attempt {self.attempts}")
        return self.fn(rows)


@pytest.mark.parametrize("output", FUNCTIONS)
def test_it_answers_like_the_function(x, output):
    model = CallableClassifier(FUNCTIONS[output], 3, output=output)
    assert model.predict(x).tolist() == labels(x.double().numpy()).tolist()
    assert model.predict(x).dtype == torch.int64
    assert model.bounds == (0, 1)
    assert model.num_classes == 3
    assert not hasattr(model, "logits")


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_scores_are_probabilities_in_float64(x, output):
    scores = CallableClassifier(FUNCTIONS[output], 3, output=output).scores(x.double())
    torch.testing.assert_close(scores, torch.from_numpy(probabilities(x.double().numpy())))
    assert not scores.requires_grad


def test_labels_alone_give_no_scores():
    model = CallableClassifier(labels, 3, output="labels")
    assert not hasattr(model, "scores")
    with pytest.raises(AttributeError, match="returns labels only, so it has no scores"):
        model.scores  # noqa: B018


def test_a_function_of_tensors_gets_tensors_without_a_graph(x):
    seen = []

    def fn(batch):
        seen.append(batch)
        return batch.mul_(2)

    before = x.clone().requires_grad_()
    model = CallableClassifier(fn, 2, output="logits", input_type="tensor")
    torch.testing.assert_close(model.scores(before), (2 * x).softmax(1).double())
    assert torch.equal(before, x)
    assert seen[0].dtype == x.dtype
    assert not seen[0].requires_grad


def test_a_function_that_writes_to_its_array_hurts_nobody(x):
    def fn(rows):
        rows *= 0
        return np.full((len(rows), 2), 0.5)

    before = x.clone()
    CallableClassifier(fn, 2).predict(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_reach_numpy_as_float32(x, dtype):
    seen = []
    CallableClassifier(lambda rows: seen.append(rows) or logits(rows), 3, output="logits").predict(
        x.to(dtype)
    )
    assert seen[0].dtype == np.float32
    np.testing.assert_array_equal(seen[0], x.to(dtype).float().numpy())


@pytest.mark.parametrize(
    "answer",
    [
        lambda p: p.tolist(),
        lambda p: p.astype(np.float16),
        lambda p: p[::-1][::-1],
        lambda p: torch.from_numpy(p),
    ],
)
def test_whatever_reads_as_numbers_is_an_answer(x, answer):
    model = CallableClassifier(lambda rows: answer(probabilities(rows)), 3)
    torch.testing.assert_close(
        model.scores(x), torch.from_numpy(probabilities(x.double().numpy())), atol=1e-3, rtol=0
    )


def test_calls_are_split_at_max_batch_and_put_together_in_order(x):
    sizes = []
    model = CallableClassifier(lambda r: sizes.append(len(r)) or probabilities(r), 3, max_batch=3)
    whole = CallableClassifier(probabilities, 3)
    torch.testing.assert_close(model.scores(x), whole.scores(x))
    assert sizes == [3, 3, 1]
    assert model.queries == 7


def test_an_empty_batch_asks_nothing():
    model = CallableClassifier(Flaky({1}), 3, log=True)
    assert model.scores(torch.zeros(0, 2)).shape == (0, 3)
    assert model.predict(torch.zeros(0, 2)).dtype == torch.int64
    assert CallableClassifier(labels, 3, output="labels").predict(torch.zeros(0, 2)).shape == (0,)
    assert model.log == []


def test_the_budget_is_used_up_and_never_exceeded(x):
    sent = []
    model = CallableClassifier(lambda r: sent.append(len(r)) or probabilities(r), 3, max_queries=10)
    assert (model.queries, model.queries_left, model.max_queries) == (0, 10, 10)
    model.predict(x)
    assert model.queries_left == 3
    with pytest.raises(QueryBudgetExceeded, match="4 more queries, got 3 of 10 left") as caught:
        model.scores(x[:4])
    assert (caught.value.max_queries, caught.value.spent, caught.value.requested) == (10, 7, 4)
    assert caught.value.result is None
    assert sent == [7]  # nothing of the call that does not fit
    model.predict(x[:3])
    assert (model.queries, model.queries_left) == (10, 0)
    assert sum(sent) == 10


def test_without_a_budget_there_is_no_end(x):
    model = CallableClassifier(probabilities, 3)
    model.predict(x)
    assert (model.max_queries, model.queries_left, model.queries) == (None, None, 7)


def test_failures_are_tried_again_after_waits_that_double(x, slept):
    fn = Flaky({1, 2, 3})
    model = CallableClassifier(fn, 3, retries=3, backoff=0.25, log=True)
    torch.testing.assert_close(model.scores(x), CallableClassifier(probabilities, 3).scores(x))
    assert slept == [0.25, 0.5, 1.0]
    assert fn.attempts == 4
    assert model.queries == 7  # failed attempts are none
    assert [(c.samples, c.attempts) for c in model.log] == [(7, 4)]


def test_the_last_error_is_the_cause_and_what_was_answered_before_counts(x, slept):
    fn = Flaky({2, 3, 4})
    model = CallableClassifier(fn, 3, max_batch=3, retries=2, max_queries=7, log=True)
    with pytest.raises(ServiceError, match="ConnectionError in attempt 3, the last: .*4") as caught:
        model.predict(x)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert (caught.value.attempts, caught.value.result) == (3, None)
    torch.testing.assert_close(
        caught.value.answers, torch.from_numpy(probabilities(x[:3].numpy())).double()
    )
    assert (model.queries, model.queries_left) == (3, 4)
    assert len(slept) == 2
    assert [(c.samples, c.attempts, c.labels is None) for c in model.log] == [
        (3, 1, False),
        (3, 3, True),
    ]


def test_without_retries_the_first_error_is_the_last(x, slept):
    with pytest.raises(ServiceError, match="in attempt 1, the last: .*1") as caught:
        CallableClassifier(Flaky({1}), 3).predict(x)
    assert caught.value.answers is None
    assert slept == []


def test_a_keyboard_interrupt_is_not_tried_again(x, slept):
    def fn(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CallableClassifier(fn, 3, retries=5).predict(x)
    assert slept == []


def test_an_answer_of_the_wrong_shape_is_an_error_at_once_and_was_paid_for(x, slept):
    fn = Flaky({}, fn=lambda rows: np.zeros((len(rows), 4)))
    model = CallableClassifier(fn, 3, retries=5)
    with pytest.raises(ServiceError, match=r"probabilities of shape \(7, 3\).*got shape \(7, 4\)"):
        model.predict(x)
    assert (fn.attempts, model.queries, slept) == (1, 7, [])


def test_the_log_says_what_was_asked_and_answered(x):
    model = CallableClassifier(probabilities, 3, max_batch=4, log=True)
    y = model.predict(x)
    model.scores(x[:2])
    assert [c.samples for c in model.log] == [4, 3, 2]
    assert torch.equal(torch.cat([c.labels for c in model.log[:2]]), y)
    assert torch.equal(model.log[2].labels, y[:2])
    assert all(c.seconds >= 0 and c.attempts == 1 for c in model.log)
    assert CallableClassifier(probabilities, 3).log is None


@pytest.mark.parametrize(
    "row", [[0.5, 0.6, 0.0], [1.2, -0.1, -0.1], [-0.2, 0.6, 0.6], [0.5, np.nan, 0.5], [0, 0, 0]]
)
def test_what_are_no_probabilities(row):
    rows = np.array([[0.5, 0.5, 0.0], [0.505, 0.5, 0.0], row])
    model = CallableClassifier(lambda x: rows[x[:, 0].astype(int)], 3, max_batch=2)
    with pytest.raises(ServiceError, match=r".* \(sample 2\)\. Use output='logits' if"):
        model.predict(torch.tensor([[0.0], [1.0], [2.0]]))
    model.predict(torch.tensor([[0.0], [1.0]]))


def test_errors_name_the_sample_of_the_whole_batch():
    model = CallableClassifier(lambda rows: rows, 2, output="logits", max_batch=2)
    x = torch.zeros(5, 2)
    x[3, 1] = torch.inf
    with pytest.raises(ServiceError, match=r"finite logits, got NaN or infinity \(sample 3\)"):
        model.predict(x)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ([0, 3], ValueError, r"labels.* must be below 3.*got 3 \(sample 1\)"),
        ([0, -2], ValueError, r"must not be negative, got -2 \(sample 1\)"),
        ([0, 0.5], ValueError, r"must be integers, got 0.5 \(sample 1\)"),
        ([[1, 0], [0, 1]], ValueError, r"labels of shape \(2,\).*got shape \(2, 2\)"),
        (["cat", "dog"], TypeError, "must return numbers, got <U3"),
    ],
)
def test_what_are_no_labels(answer, error, said):
    with pytest.raises(ServiceError, match=said) as caught:
        CallableClassifier(lambda rows: answer, 3, output="labels").predict(torch.zeros(2, 1))
    assert type(caught.value.__cause__) is error


def test_a_spent_budget_inside_the_function_is_not_tried_again(x, slept):
    inner = CallableClassifier(probabilities, 3, max_queries=7)
    model = CallableClassifier(lambda rows: inner.scores(rows), 3, input_type="tensor", retries=5)
    model.predict(x)
    with pytest.raises(QueryBudgetExceeded, match="got 0 of 7 left"):
        model.predict(x)
    assert (model.queries, slept) == (7, [])


def test_a_function_may_reject():
    model = CallableClassifier(lambda rows: [1, -1], 3, output="labels")
    assert model.predict(torch.zeros(2, 1)).tolist() == [1, REJECTED]


def test_whole_floats_are_labels():
    model = CallableClassifier(lambda rows: [1.0, 2.0], 3, output="labels")
    assert model.predict(torch.zeros(2, 1)).tolist() == [1, 2]


def test_a_service_over_http():
    rows, y = load_digits(return_X_y=True)
    tree = DecisionTreeClassifier(random_state=0).fit(rows[:500] / 16, y[:500])
    x = torch.from_numpy(rows[500:580]).view(-1, 1, 8, 8) / 16
    with serve_over_http.serve(tree) as url:
        model = serve_over_http.remote(url, budget=100)
        scores = model.scores(x)
        with pytest.raises(QueryBudgetExceeded):
            model.predict(x)
        attempts = sum(call.attempts for call in model.log)
        with pytest.raises(ConnectionError, match="413"):  # more rows than it takes at once
            serve_over_http.ask(url, x.numpy())
        with pytest.raises(ConnectionError, match="400"):
            serve_over_http.ask(url, rows[:2, :5])
    np.testing.assert_allclose(scores, tree.predict_proba(rows[500:580] / 16))
    assert (model.queries, len(model.log), attempts) == (80, 8, 9)  # the seventh failed
    with pytest.raises(OSError, match="refused"):
        serve_over_http.ask(url, rows[:1])


def test_bad_arguments():
    for wrong, error, said in (
        ({"num_classes": 1}, ValueError, "`num_classes` must be at least 2, got 1"),
        ({"bounds": (1, 0)}, ValueError, "`bounds` must be two finite numbers"),
        ({"output": "label"}, ValueError, "`output` must be one of"),
        ({"input_type": "list"}, ValueError, "`input_type` must be one of 'numpy', 'tensor'"),
        ({"max_batch": 0}, ValueError, "`max_batch` must be at least 1"),
        ({"retries": -1}, ValueError, "`retries` must be at least 0"),
        ({"retries": 1.0}, TypeError, "`retries` must be an int"),
        ({"backoff": float("nan")}, ValueError, "`backoff` must be at least 0"),
        ({"max_queries": -1}, ValueError, "`max_queries` must be at least 0"),
        ({"max_queries": 1e3}, TypeError, "`max_queries` must be an int"),
        ({"log": 1}, TypeError, "`log` must be True or False"),
    ):
        with pytest.raises(error, match=said):
            CallableClassifier(probabilities, **{"num_classes": 3, **wrong})
    with pytest.raises(TypeError, match="`fn` must be callable, got str"):
        CallableClassifier("http://127.0.0.1", 3)


def test_it_is_copied_pickled_and_printed(x):
    model = CallableClassifier(probabilities, 3, max_queries=30)
    model.predict(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.queries_left == 23
        torch.testing.assert_close(twin.scores(x), model.scores(x))
    assert repr(model) == "CallableClassifier(probabilities, num_classes=3)"
    assert repr(CallableClassifier(Flaky({}), 3)) == "CallableClassifier(Flaky, num_classes=3)"


def test_an_attack_with_gradients_says_that_there_are_none(x):
    with pytest.raises(
        TypeError, match="got CallableClassifier, a ScoreClassifier, which has none"
    ):
        advkit.attacks.FGSM(eps=0.1)(CallableClassifier(probabilities, 3), x)
    with pytest.raises(TypeError, match="got CallableClassifier, a Classifier, which has none"):
        advkit.attacks.FGSM(eps=0.1)(CallableClassifier(labels, 3, output="labels"), x)


def test_masked_answers_are_refused(x):
    def hidden(rows):
        return np.ma.array(np.full((len(rows), 3), 1 / 3), mask=np.eye(len(rows), 3, dtype=bool))

    model = CallableClassifier(hidden, num_classes=3)
    with pytest.raises(ServiceError, match="must not hold masked values"):
        model.predict(x)


def halved(rows):
    return probabilities(rows).astype(np.float16)


@pytest.mark.parametrize("fn", [probabilities, halved])
@pytest.mark.parametrize("takes", ["numpy", "tensor"])
def test_probabilities_that_are_taken_for_logits_are_noticed(x, fn, takes):
    x = torch.cat([x, 1 - x])

    def given(rows):
        return torch.from_numpy(fn(rows.numpy())) if takes == "tensor" else fn(rows)

    model = CallableClassifier(given, 3, output="logits", input_type=takes)
    with pytest.warns(UserWarning, match="seems to return probabilities .* output='probabilities'"):
        model.scores(x)
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        model.predict(x)
    CallableClassifier(given, 3, input_type=takes).scores(x)
    CallableClassifier(logits, 3, output="logits").scores(x)
