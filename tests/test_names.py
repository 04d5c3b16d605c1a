"""Old names of advkit, each with the module where the standard name has replaced it.

A name may be fine elsewhere: `queries` is not the limit of an attack, but the count in a result.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

import advkit

SOURCE = Path(advkit.__file__).parent


class Old(NamedTuple):
    name: str
    where: str  # a module or a package inside advkit; empty for everywhere
    new: str

    def covers(self, module):
        return module == self.where or module.startswith(f"{self.where}/") or not self.where


def table(text):
    """Return the rows of a table: where, then pairs of an old and a new name."""
    for line in text.strip().splitlines():
        where, pairs = line.split(":")
        for pair in pairs.split(","):
            old, new = pair.split(" -> ")
            yield Old(old.strip(), where.strip().strip("*"), new.strip())


# One line for each place: a file or a package, or `*` for all of advkit. A dotted name is a module.
OLD = list(
    table(
        """
        *: Judged -> Iterate, Ledger -> RunStatistics, shortfall -> violation
        *: pull -> input_gradient, usable -> mask_invalid, narrow -> select_for_backward
        *: nothing_yet -> Best.empty, none_near -> Nearest.empty, unjudged -> Best.unevaluated
        *: first_look -> evaluate_clean, _last_look -> _verify, put -> update_rows
        *: _rescued -> _partial_result, _nothing -> _empty_record, _conclude -> _result
        *: polish -> refine_to_boundary, approach -> bisect_to_boundary
        *: along_walls -> drop_active_bounds, _Pace -> AscentState, shrinking -> linear_decay
        *: _FURTHER -> OUTWARD_FACTORS, _PAST -> BOUNDARY_MARGIN, Weight -> PenaltyState
        *: _ample -> initial_factor, watched -> update_progress
        attacks: judge -> forward, _view -> _adapt_model, rival -> candidate, rivals -> candidates
        attacks: blind -> no_gradient, held -> active, onward -> warm_start, lengths -> step_sizes
        attacks/carlini_wagner.py: published -> schedule
        attacks/deepfool.py: keep -> rows, lost -> no_gradient
        attacks/engine: take -> select, pace -> step_schedule, _approach -> _search_nearest
        attacks/engine: mean -> exp_avg, square -> exp_avg_sq
        attacks/engine/box_adam.py: closed -> finished
        attacks/engine/constant_search.py: least -> min_const, reach -> expected_distance
        attacks/engine/goal.py: ascent -> objective
        attacks/engine/problem.py: gradient -> ascent_direction, lost -> invalid, keep -> rows
        attacks/engine/rows.py: keep -> rows
        attacks/fab.py: over -> overshoot, _MOST_OVER -> MAX_OVERSHOOT, foot -> projection
        attacks/fab.py: pace -> step_schedule, _pace -> step_schedule, closed -> finished
        attacks/fab.py: _watched -> update_progress, lost -> no_gradient
        attacks/hopskipjump.py: directions -> init_gradient_queries, tries -> init_trials
        attacks/hopskipjump.py: starts -> init_points, queries -> max_queries
        attacks/lbfgs.py: course -> direction, _course -> direction, moves -> s, turns -> y
        attacks/lbfgs.py: crossed -> sy, turned -> yy, weight -> rho, stretch -> gamma
        attacks/lbfgs.py: share -> step_length, promised -> expected_decrease, closed -> finished
        attacks/square.py: share -> p_init, queries -> max_queries
        attacks/adaptive: natural -> start_images, room -> detector_confidence
        attacks/adaptive: published -> schedule, reach -> expected_distance, unmet -> residual
        attacks/adaptive: excess -> margin_over_threshold, heading -> target_class
        attacks/adaptive: _heading -> target_class
        attacks/adaptive/joint_problem.py: towards -> with_target, both -> gradients, keep -> rows
        attacks/adaptive/joint_problem.py: take -> select, gradient -> ascent_direction
        attacks/adaptive/losses.py: alarm -> detector_score
        *: Joint -> JointProblem, TwoGoals -> TwoObjectives, recast -> cast_problem
        *: suspicion -> anomaly_score, Judgement -> Verdict, Surrogate -> DetectorSurrogate
        core/protocols.py: risk -> anomaly_score, excess -> margin_over_threshold
        detectors: risk -> anomaly_score, judge -> inspect
        detectors/surrogate.py: alarm -> anomaly_score
        core/results.py: wanted -> requested
        defenses/feature_squeezing.py: search -> search_size, patch -> patch_size
        defenses/input_validator.py: false_rejections -> fpr, passes -> max_iterations
        defenses/logit_squeezing.py: noise -> sigma
        defenses/mrr/dictionaries.py: patch -> patch_size, per_image -> patches_per_image
        defenses/mrr/latent_settings.py: step -> step_size, clean -> clean_fraction
        defenses/mrr/latent_settings.py: explained -> explained_variance
        models/callable.py: takes -> input_type, back_off -> backoff
        training: evaluated -> metrics
        defenses/mrr: security -> fpr, jointly -> joint_threshold, held_out -> calibration_fraction
        defenses/mrr: excess -> margin_over_threshold
        *: Floor -> the cost in passes, Tally -> AttackRecorder, thrifty -> cheapest_near_best
        *: merit -> sort_key, guests -> minimum_norm_rows, given_fooled -> transfer_rate
        *: _Told -> _BinaryScores, _Sorted -> _MulticlassScores
        eval: floor -> passes, floors -> passes, turned -> misclassified
        eval/accuracy.py: right -> correct
        eval/benchmarking: front -> pareto_front, verdict -> summary
        eval/detection/binary.py: wrong -> is_adversarial
        eval/detection/bootstrap.py: drawn -> bootstrap
        eval/robustness/attack_recorder.py: add -> update, outcome -> compute, found -> columns
        eval/transfer: over_all -> error_rate
        eval/transfer/transfer_matrix.py: right -> correct
        *: eval.fronts -> pareto_plot, eval.rates -> accuracy, eval.tally -> attack_recorder
        *: undisturbed -> preserve_state, undrawn -> preserve_rng, _Around -> ClassifierWrapper
        *: Ask -> Forward, own_and_others -> split_label_logit, replacing -> atomic_write
        *: blamed_on -> error_context, counted_from -> offset_sample_numbers
        *: Several -> NamedOrList, budget_words -> format_budget, stopping -> with_stop
        *: part_of -> for_samples, _cut -> _cut_option, besides -> overhead
        *: _insist -> _call_with_retries
        core/checks.py: whole -> integer, share -> fraction, flag -> boolean, budget -> radii
        core/hyperparameters.py: settings -> non_default_fields, call -> format_call
        core/naming.py: named -> assign_names
        core/tensors.py: wide -> at_least_float32
        models: hold -> evaluating, instead -> straight_through, leaves -> is_misclassified
        models: _given -> _to_fn_input, budget -> max_queries
        models/callable.py: _asked -> _outputs, _found -> _scores
        """
    )
)


class Definition(NamedTuple):
    name: str
    module: str  # attacks/fab.py
    line: int


def names_in(tree):
    """Yield what a module defines: functions, classes, arguments, variables, fields, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname, node.lineno) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name, node.lineno


def definitions(module, text):
    """Yield the definitions of one module, its own dotted name among them."""
    yield Definition(module.removesuffix(".py").replace("/", "."), module, 1)
    for name, line in names_in(ast.parse(text)):
        yield Definition(name, module, line)


def old_names(found, old):
    """Return a line for each definition that has an old name in a place where it is old."""
    rows = {}
    for row in old:
        rows.setdefault(row.name, []).append(row)
    return [
        f"src/advkit/{module}:{line}: {name} is now {row.new} in {row.where or 'all of advkit'}"
        for name, module, line in found
        for row in rows.get(name, ())
        if row.covers(module)
    ]


ALL = [
    definition
    for path in sorted(SOURCE.rglob("*.py"))
    for definition in definitions(
        path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8")
    )
]


def test_no_old_name_is_defined_where_it_was_replaced():
    found = old_names(ALL, OLD)
    assert not found, "\n".join([f"{len(found)} old names", *found])


class TestTheseTestsThemselves:
    @pytest.mark.parametrize("row", OLD, ids=lambda row: f"{row.name} in {row.where or 'advkit'}")
    def test_an_old_name_that_comes_back_is_found(self, row):
        inside = row.where if row.where.endswith(".py") else f"{row.where}/a.py".lstrip("/")
        module, text = inside, f"def f({row.name}): ..."
        if "." in row.name:
            module, text = f"{row.name.replace('.', '/')}.py", ""
        (line,) = set(old_names(definitions(module, text), [row]))
        assert line.startswith(f"src/advkit/{module}:1: {row.name} is now {row.new} in ")

    @pytest.mark.parametrize(
        "text",
        [
            "def rival(): ...",
            "class rival: ...",
            "def f(*, rival): ...",
            "def f(*rival): ...",
            "f = lambda rival: 0",
            "rival = 1",
            "rival: int = 1",
            "class A:\n    rival: int",
            "self.rival = 1",
            "a, (b, *rival) = c",
            "for rival in a: ...",
            "with a as rival: ...",
            "[0 for rival in a]",
            "(rival := 1)",
            "import a as rival",
            "try: ...\nexcept E as rival: ...",
        ],
    )
    def test_every_kind_of_definition_is_read(self, text):
        assert len(old_names(definitions("attacks/a.py", text), OLD)) == 1
        assert not old_names(definitions("defenses/a.py", text), OLD)

    def test_a_use_is_not_a_definition(self):
        assert not old_names(definitions("attacks/a.py", "f(rival, other.rival, rival=1)"), OLD)

    def test_a_place_is_a_file_or_a_package(self):
        def found(module):
            return old_names(definitions(module, "lost = 1"), OLD)

        assert found("attacks/fab.py")
        assert found("attacks/engine/problem.py")
        assert not found("attacks/engine/problem_of.py")
        assert not found("attacks/square.py")

    def test_every_place_exists(self):
        for row in OLD:
            assert (SOURCE / row.where).exists(), f"{row.where} is not in src/advkit"
