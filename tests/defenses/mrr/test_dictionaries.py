"""Dictionaries of patches: learned from known images, judged by a plain NumPy version."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import orthogonal_mp

from advkit.core.archives import read_npz, write_npz
from advkit.data import digits
from advkit.defenses.mrr.dictionaries import InputDefender, InputDictionaries

UNIT = (0.0, 1.0)
LABELS = (1, 4, 7)
SMALL = InputDefender(patch_size=3, atoms=12, sparsity=2, patches_per_image=4, iterations=3)


def random_dictionaries(shape=(1, 6, 6), labels=LABELS, **given):
    """Of random atoms, for images of `shape` and the classes `labels`."""
    chosen = replace(SMALL, **given)
    rng = np.random.default_rng(0)
    d = chosen.patch_size**2 * (shape[0] if chosen.channels == "joint" else 1)
    atoms = rng.normal(size=(len(labels), chosen.atoms, d))
    arrays = {
        "shape": np.array(shape),
        "classes": np.array(labels),
        "atoms": atoms / np.linalg.norm(atoms, axis=2, keepdims=True),
        "mean": rng.uniform(0.3, 0.6, size=(len(labels), d)),
        "std": rng.uniform(0.2, 0.5, size=(len(labels), d)),
        "peak": rng.uniform(2, 4, size=len(labels)),
    }
    single = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in arrays.items()}
    return InputDictionaries.from_arrays(chosen, single)


def uniform(n=6, shape=(1, 6, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=generator, dtype=torch.float64).to(dtype)


def distance_of_one(fitted, image, label):
    """One tile of one image at a time, with the greedy pursuit of scikit-learn."""
    settings, rest = fitted.settings, []
    i = fitted.classes.tolist().index(label)
    atoms, mean, std = (v[i].double().numpy() for v in (fitted.atoms, fitted.mean, fitted.std))
    side = settings.patch_size
    groups = [image] if settings.channels == "joint" else [plane[None] for plane in image]
    for group in groups:
        for top in range(0, image.shape[1], side):
            for left in range(0, image.shape[2], side):
                top, left = min(top, image.shape[1] - side), min(left, image.shape[2] - side)
                tile = group[:, top : top + side, left : left + side].numpy().ravel()
                tile = (tile - mean) / std
                code = orthogonal_mp(atoms.T, tile, n_nonzero_coefs=settings.sparsity)
                rest.append(tile - atoms.T @ code)
    squares = np.square(rest)
    if settings.score == "residual":
        return math.sqrt(squares.sum())
    return -10 * math.log10(float(fitted.peak[i]) ** 2 / squares.mean())


@pytest.mark.parametrize("score", ["residual", "psnr"])
@pytest.mark.parametrize("channels", ["joint", "separate"])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 7, 5), (2, 3, 8)])
def test_distances_are_those_of_one_tile_at_a_time(shape, channels, score):
    fitted = random_dictionaries(shape, channels=channels, score=score)
    x, labels = uniform(6, shape), torch.tensor([1, 4, 7, 7, 4, 1])
    found = fitted.distances(x, labels)
    expected = [distance_of_one(fitted, *pair) for pair in zip(x, labels.tolist(), strict=True)]
    assert found.shape == (6, InputDictionaries.count)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("score", ["residual", "psnr"])
@pytest.mark.parametrize("channels", ["joint", "separate"])
def test_the_gradient_is_exact_though_the_pursuit_is_not_differentiated(channels, score):
    fitted = random_dictionaries((2, 7, 5), channels=channels, score=score)
    x = uniform(3, (2, 7, 5)).requires_grad_()
    labels = torch.tensor([7, 1, 9])  # of the last there was no image
    assert torch.autograd.gradcheck(lambda x: fitted.distances(x, labels)[:2], x, atol=1e-6)
    (grad,) = torch.autograd.grad(fitted.distances(x, labels).sum(), x)
    assert grad[:2].flatten(1).abs().sum(1).min() > 0.1
    assert torch.equal(grad[2], torch.zeros_like(grad[2]))


def test_both_scores_give_the_same_order():
    x, labels = uniform(60), torch.full((60,), 4)
    residual = random_dictionaries(score="residual").distances(x, labels)[:, 0]
    psnr = random_dictionaries(score="psnr").distances(x, labels)[:, 0]
    assert torch.equal(residual.argsort(), psnr.argsort())
    assert (psnr.diff().sign() == residual.diff().sign()).all()


@pytest.mark.parametrize("score", ["residual", "psnr"])
def test_an_image_that_leaves_nothing_has_a_finite_gradient(score):
    fitted = random_dictionaries((1, 3, 3), score=score)
    x = fitted.mean[1].view(1, 1, 3, 3).requires_grad_()
    found = fitted.distances(x, torch.tensor([4]))
    assert found.isfinite().all()
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.zeros_like(x))


def test_the_label_decides_which_dictionary():
    fitted, x = random_dictionaries(), uniform()
    by_class = {c: fitted.distances(x, torch.full((6,), c)) for c in LABELS}
    for i, c in enumerate(LABELS):
        parts = {
            name: getattr(fitted, name)[i : i + 1]
            for name in ("classes", "atoms", "mean", "std", "peak")
        }
        alone = replace(fitted, **parts).distances(x, torch.full((6,), c))
        assert torch.equal(by_class[c], alone)
    assert not torch.isclose(by_class[1], by_class[4]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_input_does_not_depend_on_its_batch(dtype):
    fitted, x = random_dictionaries(), uniform(dtype=dtype)
    labels = torch.tensor([7, 7, 1, 0, 4, 7])
    whole = fitted.distances(x, labels)
    alone = [fitted.distances(x[i : i + 1], labels[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(alone))
    assert fitted.distances(x[:0], labels[:0]).shape == (0, 1)


@pytest.mark.parametrize("label", [0, 5, 8])
def test_a_label_without_images_is_infinitely_suspicious(label):
    x = uniform().requires_grad_()
    found = random_dictionaries().distances(x, torch.full((6,), label))
    assert (found == math.inf).all()
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.zeros_like(x))


def test_dtypes_and_what_is_left_alone():
    fitted, labels = random_dictionaries(), torch.tensor([1, 4, 7, 7, 4, 1])
    exact = fitted.distances(uniform(), labels)
    for dtype, rtol in ((torch.float32, 1e-4), (torch.float16, 1e-2)):
        x = uniform(dtype=dtype)
        before = x.clone()
        found = fitted.distances(x, labels)
        assert found.dtype == torch.float32
        assert torch.equal(x, before)
        torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=0)
    assert exact.dtype == torch.float64


def test_there_are_no_features():
    features = random_dictionaries().features(uniform(dtype=torch.float16))
    assert features.shape == (6, 0)
    assert features.dtype == torch.float32


def test_to_moves_all_that_was_learned():
    moved = random_dictionaries().to("meta")
    tensors = [v for v in vars(moved).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 5
    assert all(v.is_meta for v in tensors)
    assert moved.settings == SMALL


# Learning


@pytest.fixture(scope="module")
def train():
    """Three digits of eight by eight pixels."""
    data = digits("train")
    rows = torch.isin(data.y, torch.tensor(LABELS))
    return data.x[rows], data.y[rows]


@pytest.fixture(scope="module")
def held_out():
    data = digits("test")
    rows = torch.isin(data.y, torch.tensor(LABELS))
    return data.x[rows], data.y[rows]


@pytest.fixture(scope="module")
def fitted(train):
    return InputDefender(patch_size=4, atoms=24, sparsity=3, iterations=10).fit(*train, UNIT)


def same(one, other):
    first, second = one.arrays(), other.arrays()
    return first.keys() == second.keys() and all(
        v.dtype == second[k].dtype and np.array_equal(v, second[k]) for k, v in first.items()
    )


def test_noise_and_the_wrong_class_leave_more_than_digits_of_the_class(fitted, held_out):
    x, y = held_out
    clean = fitted.distances(x, y)
    sign = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = (x + 0.3 * sign).clamp(*UNIT)
    assert (fitted.distances(noisy, y) > clean).float().mean() > 0.98
    following = torch.tensor(LABELS)[(torch.searchsorted(torch.tensor(LABELS), y) + 1) % 3]
    assert (fitted.distances(x, following) > clean).float().mean() > 0.8


def test_what_is_learned_serves_better_than_patches_or_chance(fitted, held_out):
    x, y = held_out
    generator = torch.Generator().manual_seed(0)
    chance = torch.randn(fitted.atoms.shape, generator=generator)
    others = replace(fitted, atoms=torch.nn.functional.normalize(chance, dim=2))
    assert fitted.distances(x, y).mean() < 0.8 * others.distances(x, y).mean()


def test_atoms_have_length_one_and_classes_are_those_that_occur(fitted):
    lengths = torch.linalg.vector_norm(fitted.atoms, dim=2)
    torch.testing.assert_close(lengths, torch.ones(3, 24))
    assert fitted.classes.tolist() == list(LABELS)
    assert fitted.shape == (1, 8, 8)


def test_fitting_follows_from_images_and_seed_alone(train):
    x, y = train[0][:60], train[1][:60]
    settings = replace(SMALL, atoms=100)  # so many that some are not used, and drawn anew
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = settings.fit(x, y, UNIT)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert same(settings.fit(x, y, UNIT), found)
    assert not same(replace(settings, seed=1).fit(x, y, UNIT), found)
    alone = settings.fit(x[y == 4], y[y == 4], UNIT)
    assert torch.equal(alone.atoms[0], found.atoms[1])


@pytest.mark.parametrize("change", [{"alpha": 0.1}, {"iterations": 4}, {"patch_size": 4}])
def test_each_setting_has_its_effect(train, change):
    x, y = train[0][:40], train[1][:40]
    found, other = SMALL.fit(x, y, UNIT), replace(SMALL, **change).fit(x, y, UNIT)
    assert found.atoms.shape != other.atoms.shape or not torch.allclose(found.atoms, other.atoms)


def test_patches_as_large_as_the_image_have_its_mean_and_deviation():
    x = uniform(5, (2, 3, 3))
    x[:, 0, 1, 2] = 0.5  # always the same
    found = replace(SMALL, patches_per_image=2).fit(x, torch.zeros(5), UNIT)
    spread = x.flatten(1).std(0, correction=0).clamp_min(1 / 255)
    torch.testing.assert_close(found.mean[0], x.flatten(1).mean(0).float())
    torch.testing.assert_close(found.std[0], spread.float())
    assert found.std[0, 5] == torch.tensor(1 / 255)
    torch.testing.assert_close(found.peak[0], (1 / spread.square().mean().sqrt()).float())


def test_channels_of_their_own_share_mean_and_deviation():
    x = uniform(5, (2, 3, 3))
    found = replace(SMALL, patches_per_image=2, channels="separate").fit(x, torch.zeros(5), UNIT)
    torch.testing.assert_close(found.mean[0], x.flatten(2).mean((0, 1)).float())


def test_each_image_gives_as_many_patches_as_said():
    """Were it more than one each, one of the three would count more often than the others."""
    shades = torch.tensor([0.0, 0.1, 1.0]).view(3, 1, 1, 1).expand(3, 1, 5, 5)
    found = replace(SMALL, patches_per_image=1).fit(shades, torch.zeros(3), UNIT)
    torch.testing.assert_close(found.mean[0], shades.mean().expand(9))


def test_patches_come_from_everywhere():
    """A ramp down or across: the first pixel of a patch tells where it was."""
    down = torch.arange(8.0).view(8, 1).expand(8, 6) / 10
    across = torch.arange(6.0).expand(8, 6) / 10
    x = torch.stack([down, across])[None].expand(300, 2, 8, 6)
    found = replace(SMALL, iterations=20).fit(x, torch.zeros(300), UNIT)
    mean, std = found.mean[0].view(2, 3, 3), found.std[0].view(2, 9)
    for ramp, places in enumerate((6, 4)):
        middle, spread = (places - 1) / 20, math.sqrt((places**2 - 1) / 12) / 10
        assert mean[ramp, 0, 0] == pytest.approx(middle, abs=0.02)
        assert std[ramp].tolist() == pytest.approx([spread] * 9, abs=0.02)
    torch.testing.assert_close(mean[0].diff(dim=0), torch.full((2, 3), 0.1))
    torch.testing.assert_close(mean[1].diff(dim=1), torch.full((3, 2), 0.1))


def test_no_more_patches_are_cut_than_steps_can_take():
    """Of 100 images 64 are seen, each once: so many of them are white, and no share of 64."""
    x = (torch.arange(100) < 33).float().view(100, 1, 1, 1).expand(100, 1, 3, 3)
    found = replace(SMALL, iterations=1, patches_per_image=1).fit(x, torch.zeros(100), UNIT)
    white = 64 * found.mean
    torch.testing.assert_close(white, white.round())


def test_classes_draw_patches_of_their_own(train):
    x, y = (part[:20] for part in train)
    found = SMALL.fit(torch.cat([x, x]), torch.cat([0 * y, 0 * y + 1]), UNIT)
    assert not torch.allclose(found.mean[0], found.mean[1])


def test_bounds_give_the_peak_and_the_least_deviation():
    x = torch.full((4, 1, 5, 5), 100.0)
    found = SMALL.fit(x, torch.zeros(4), (0, 255))
    assert torch.equal(found.std, torch.ones(1, 9))
    assert found.peak == 255
    torch.testing.assert_close(torch.linalg.vector_norm(found.atoms, dim=2), torch.ones(1, 12))
    assert found.distances(x, torch.zeros(4)).abs().max() == 0


def test_the_unit_of_the_pixels_does_not_count(train, held_out):
    x, y = train[0][:60].double(), train[1][:60]
    found, other = SMALL.fit(x, y, UNIT), SMALL.fit(20 * x - 10, y, (-10, 10))
    z, labels = held_out[0].double(), held_out[1]
    for score in ("residual", "psnr"):
        settings = replace(SMALL, score=score)
        pair = [replace(v, settings=settings) for v in (found, other)]
        torch.testing.assert_close(
            pair[0].distances(z, labels),
            pair[1].distances(20 * z - 10, labels),
            rtol=1e-3,
            atol=1e-3,
        )


def test_patches_that_are_alike_are_learned_and_scikit_learn_says_so():
    generator = torch.Generator().manual_seed(0)
    shades = torch.rand(30, 1, 1, 1, generator=generator).expand(30, 1, 8, 8)
    settings = InputDefender(patch_size=7, atoms=100, iterations=10)
    with pytest.warns(ConvergenceWarning):
        found = settings.fit(shades, torch.zeros(30), UNIT)
    assert found.atoms.isfinite().all()
    assert found.distances(shades, torch.zeros(30)).max() < 0.05


def test_a_single_image_is_enough(train):
    x, y = (part[:1] for part in train)
    found = InputDefender(patch_size=8, atoms=50, iterations=2).fit(x, y, UNIT)
    assert found.distances(x, y) < 1e-3


def test_what_was_learned_survives_a_file(fitted, held_out, tmp_path):
    arrays = fitted.arrays()
    write_npz(tmp_path / "arrays.npz", arrays)
    again = InputDictionaries.from_arrays(
        fitted.settings, read_npz(tmp_path / "arrays.npz", list(arrays))
    )
    assert same(again, fitted)
    assert again.shape == fitted.shape
    assert torch.equal(again.distances(*held_out), fitted.distances(*held_out))


def test_arrays_are_no_windows_into_what_was_read(fitted):
    arrays = {name: array.copy() for name, array in fitted.arrays().items()}
    again = InputDictionaries.from_arrays(fitted.settings, arrays)
    arrays["atoms"][:] = 0
    assert same(again, fitted)


@pytest.mark.parametrize("name", ["shape", "classes", "atoms", "mean", "std", "peak"])
def test_arrays_that_are_missing_or_do_not_fit_are_refused(fitted, name):
    arrays = fitted.arrays()
    wrong = {**arrays, name: arrays[name].astype(np.float16)}
    with pytest.raises(ValueError, match=f"`arrays\\['{name}'\\]` must be .* got float16"):
        InputDictionaries.from_arrays(fitted.settings, wrong)
    del arrays[name]
    with pytest.raises(ValueError, match=f"`arrays` must hold .*{name}"):
        InputDictionaries.from_arrays(fitted.settings, arrays)


@pytest.mark.parametrize(
    "change",
    [{"atoms": 25}, {"patch_size": 3}],
    ids=repr,
)
def test_arrays_of_other_settings_are_refused(fitted, change):
    with pytest.raises(ValueError, match="atoms.* must be float32 of shape"):
        InputDictionaries.from_arrays(replace(fitted.settings, **change), fitted.arrays())


# The door


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"patch_size": 0}, ValueError, "`patch_size` must be at least 1"),
        ({"atoms": 2.0}, TypeError, "`atoms` must be an int"),
        ({"sparsity": 0}, ValueError, "`sparsity` must be at least 1"),
        ({"sparsity": 226}, ValueError, "`sparsity` must be at most atoms = 225, got 226"),
        ({"patches_per_image": 0}, ValueError, "`patches_per_image` must be at least 1"),
        ({"iterations": 0}, ValueError, "`iterations` must be at least 1"),
        ({"alpha": 0}, ValueError, "`alpha` must be positive"),
        ({"alpha": math.nan}, ValueError, "`alpha` must be positive"),
        ({"score": "ssim"}, ValueError, "`score` must be one of 'residual', 'psnr'"),
        ({"channels": "rgb"}, ValueError, "`channels` must be one of 'joint', 'separate'"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        InputDefender(**given)


@pytest.mark.parametrize(
    ("x", "labels", "error", "words"),
    [
        (torch.rand(4, 36), torch.zeros(4), ValueError, "for InputDefender, got"),
        (np.zeros((4, 1, 6, 6)), torch.zeros(4), TypeError, "`x` must be a torch.Tensor"),
        (
            torch.zeros(4, 1, 6, 6).int(),
            torch.zeros(4),
            TypeError,
            "`x` must have a floating dtype",
        ),
        (torch.rand(4, 1, 6, 6) + 1, torch.zeros(4), ValueError, "`x` must lie in"),
        (torch.rand(4, 1, 6, 6), torch.zeros(3), ValueError, "`labels` must have shape"),
        (torch.rand(4, 1, 6, 6), torch.zeros(4) - 1, ValueError, "`labels` must not be negative"),
        (torch.rand(0, 1, 6, 6), torch.zeros(0), ValueError, "`x` must hold images"),
        (torch.rand(4, 1, 6, 2), torch.zeros(4), ValueError, "at least 3x3 pixels.*got 6x2"),
        (torch.rand(4, 1, 2, 6), torch.zeros(4), ValueError, "at least 3x3 pixels.*got 2x6"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(x, labels, error, words):
    with pytest.raises(error, match=words):
        SMALL.fit(x, labels, UNIT)


def test_bounds_that_are_no_interval_are_refused():
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        SMALL.fit(torch.rand(4, 1, 6, 6), torch.zeros(4), (0.0, math.nan))


def test_so_many_atoms_that_nothing_is_left_are_refused():
    settings = replace(SMALL, sparsity=9)
    with pytest.raises(ValueError, match="`sparsity` must be below the 9 numbers of a patch"):
        settings.fit(torch.rand(4, 1, 6, 6), torch.zeros(4), UNIT)
    colour = torch.rand(4, 2, 6, 6)
    assert settings.fit(colour, torch.zeros(4), UNIT).atoms.shape == (1, 12, 18)
    with pytest.raises(ValueError, match="`sparsity` must be below the 9"):
        replace(settings, channels="separate").fit(colour, torch.zeros(4), UNIT)


@pytest.mark.parametrize(
    ("x", "labels", "error", "words"),
    [
        (np.zeros((2, 1, 6, 6)), torch.zeros(2), TypeError, "`x` must be a torch.Tensor"),
        (
            torch.zeros(2, 1, 6, 6).int(),
            torch.zeros(2),
            TypeError,
            "`x` must have a floating dtype",
        ),
        (torch.zeros(2, 36), torch.zeros(2), ValueError, r"`x` must have shape \(n, 1, 6, 6\)"),
        (
            torch.zeros(2, 1, 6, 7),
            torch.zeros(2),
            ValueError,
            r"`x` must have shape \(n, 1, 6, 6\)",
        ),
        (torch.zeros(2, 1, 6, 6), torch.zeros(3), ValueError, "`labels` must have shape"),
        (torch.zeros(2, 1, 6, 6), torch.zeros(2) - 1, ValueError, "`labels` must not be negative"),
    ],
)
def test_what_cannot_be_judged_is_refused(x, labels, error, words):
    with pytest.raises(error, match=words):
        random_dictionaries().distances(x, labels)
