"""Defaults that the help of the command names; importing them imports no torch."""

SUITES = {  # values of `advkit evaluate --suite`, and the attacks that they run
    "fast": "Suite",
    "thorough": "Suite:effort=thorough",
}
EVALUATE_DIGITS_EPS = (0.05, 0.1, 0.15, 0.2)  # budgets of `advkit evaluate` for the digits
CHUNK_SIZE = 256  # inputs of a unit of work of `advkit evaluate --store`, as in `eval.evaluate`
BENCH_LIMIT = 128  # number of images of `advkit bench`: one batch
BENCH_DIGITS_LINF = 0.15  # budget of `advkit bench` for the digits in linf
BENCH_DIGITS_L2 = 0.75  # and in l2
NORMS = ("l0", "l1", "l2", "linf")  # values of `advkit bench --norm`
DIAGNOSE_DIGITS_EPS = 0.1  # budget of `advkit diagnose` for the digits in linf
# roles of `attacks.probes` that `advkit diagnose --without` takes
ROLES = ("one_step", "more_steps", "restarts", "scores", "labels", "unbounded")
