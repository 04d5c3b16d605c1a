"""Descriptions and examples that the help of the command shows."""

from __future__ import annotations

from advkit.cli.defaults import BENCH_DIGITS_L2, BENCH_DIGITS_LINF

EVALUATE_EXAMPLES = """\
examples:
  advkit evaluate
      train a small net on scikit-learn's digits, attack it in all ways, write advkit-report/
  advkit evaluate --model nets.py:make_net --weights net.pt --data test.npz --suite --eps 8/255
      the recommended evaluation of your own net; --suite thorough is the one for a paper
  advkit evaluate --model nets.py:make_net --data test.npz --attack Suite:norm=l2,eps=0.5
      the same in l2; `advkit attacks` lists all attacks and parameters
  advkit evaluate --model nets.py:make_net --data test.npz --suite --attack FGSM --eps 2/255
      the recommended evaluation next to a weaker attack
  advkit evaluate --model nets.py:make_net --data test.npz --attack DeepFool --attack FAB:norm=linf
      the distance of the nearest adversarial examples; minimum-norm attacks take no --eps
  advkit evaluate --model nets.py:make_net --data test.npz --attack all --eps 8/255 --limit 100
      every attack on the first 100 images
  advkit evaluate --model nets.py:make_net --data images/ --suite --eps 4/255 --store store
      a long evaluation that resumes when the same command is run again
  advkit evaluate --model nets.py:make_net --data test.npz --eps 8/255 --fail-under 0.45
      end with status 1 if less than 45 % of the images withstand the attacks; --against old-report/
      compares with an older report
  torchrun --nproc-per-node 8 -m advkit evaluate --device cuda --store store ...
      eight processes, each with a GPU and a share of the images; advkit merge store ends it
"""

MERGE_DESCRIPTION = """\
Make the report of `advkit evaluate --store DIR` from its store, without the net and the images.
The report is the one of a single process, whatever the number of processes that filled the store.
"""

COMPARE_DESCRIPTION = """\
Compare two reports on the same images, image by image: which ones are no longer robust, and whether
they are more than chance explains (exact one-sided test of McNemar at 5 %, adjusted by Holm for
several budgets). The exit status is then 1. Reports on other images are refused.
"""

BENCH_DESCRIPTION = """\
Compare attacks on a net by attack success rate and by cost in passes. Each attack is run on the
images that the net labels correctly. One pass is a forward and backward pass of the same batch,
timed in the same run, just before and after the attack: a slow machine affects both. Attacks are
ranked in groups with the same goal: within a norm and a budget, or the nearest adversarial example
in a norm. A * marks the Pareto front: no other attack of the group is as good for fewer passes.
"""

BENCH_EXAMPLES = f"""\
examples:
  advkit bench
      attacks of many kinds on a small net for scikit-learn's digits, in about a minute; budgets are
      {BENCH_DIGITS_LINF} in linf and {BENCH_DIGITS_L2} in l2
  advkit bench --model nets.py:make_net --weights net.pt --data test.npz --eps 8/255
      your own net with the default attacks FGSM, BIM, PGD, DeepFool and FAB in linf
  advkit bench --model nets.py:make_net --data test.npz --eps 0.1 --attack PGD --attack BIM:steps=99
      two selected attacks; `advkit attacks` lists all attacks
  advkit bench --model nets.py:make_net --data test.npz --attack DeepFool --attack FAB --limit 500
      minimum-norm attacks need no --eps
  advkit bench --model nets.py:make_net --data test.npz --norm l0
      every minimum-norm attack in l0
  advkit bench --model nets.py:make_net --data test.npz --eps 8/255 --rounds 9 --out bench.json
      more precise times, also saved as JSON
"""


DIAGNOSE_DESCRIPTION = """\
Find reasons to doubt the robust accuracy of a net. Probes attack it in different ways: one step,
more steps, restarts, scores, labels, a ball that holds every image. Where an attack that should be
weaker fools the net and one that should be stronger does not, the figure is too high. Each finding
comes with its evidence and the code to type. With --suite or --attack, the figure of these attacks
is diagnosed, otherwise that of PGD with 20 steps.
"""

DIAGNOSE_EXAMPLES = """\
examples:
  advkit diagnose
      a small net for scikit-learn's digits, in about a minute
  advkit diagnose --model nets.py:make_net --weights net.pt --data test.npz --eps 8/255
      your own net
  advkit diagnose --model nets.py:make_net --data test.npz --norm l2 --eps 0.5 --suite
      whether to believe the figure of the recommended evaluation
  advkit diagnose --model nets.py:make_net --data test.npz --eps 0.1 --without labels
      without HopSkipJump, which takes most of the time
"""
