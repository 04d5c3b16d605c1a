import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advkit.defenses.mrr.taps import Tap, Tapped, count_runs, last_hidden
from tests.toys import convnet, images


def mlp():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Dropout(0.9), nn.Linear(8, 3)]
    return nn.Sequential(*layers).eval()


class Convolutional(nn.Module):
    """No linear layer at all, and one layer that never runs."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.first = nn.Conv2d(1, 4, 3)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.last(F.relu(self.first(x))).mean((2, 3))


class TestTapped:
    def test_a_dense_layer_gives_its_output_at_unit_length_and_the_rest_goes_on_from_there(self):
        net, x = mlp(), images()
        tapped = Tapped(mlp(), Tap(layer="1", side="output"))
        expected = F.normalize(net[1](x.flatten(1)))
        features, out = tapped.features_and_outputs(x)
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(tapped(x), expected)
        torch.testing.assert_close(out, net[4](expected.relu()))

    def test_a_convolutional_layer_is_averaged_over_space_and_scaled_as_a_whole(self):
        net, x = Convolutional().eval(), images()
        z = net.first(x)
        pooled = z.mean((2, 3))
        length = pooled.norm(dim=1)
        tapped = Tapped(net, Tap(layer="first", side="output"))
        features, out = tapped.features_and_outputs(x)
        torch.testing.assert_close(features, pooled / length[:, None])
        torch.testing.assert_close(
            out, net.last((z / length[:, None, None, None]).relu()).mean((2, 3))
        )

    def test_the_input_of_a_layer(self):
        net, x = mlp(), images()
        tapped = Tapped(mlp(), Tap(layer="4", side="input"))
        expected = F.normalize(net[1](x.flatten(1)).relu())
        torch.testing.assert_close(tapped(x), expected)
        torch.testing.assert_close(tapped.features_and_outputs(x)[1], net[4](expected))

    def test_nothing_behind_the_tap_is_computed_for_features_alone(self):
        net = mlp()
        tapped, seen = Tapped(net, Tap(layer="1", side="output")), []
        net[2].register_forward_hook(lambda *_: seen.append(1))
        tapped(images())
        assert not seen
        tapped.features_and_outputs(images())
        assert seen

    def test_it_stays_in_evaluation_mode(self):
        tapped = Tapped(mlp(), Tap(layer="1", side="output")).train()
        assert not any(module.training for module in tapped.modules())

    def test_a_layer_that_gives_nothing_stays_at_zero(self):
        tapped = Tapped(mlp(), Tap(layer="4", side="input"))
        nn.init.constant_(tapped.net[1].bias, -1e3)
        assert (tapped(images()) == 0).all()

    def test_a_layer_that_is_not_run_is_an_error(self):
        tapped = Tapped(Convolutional(), Tap(layer="unused", side="output"))
        with pytest.raises(
            RuntimeError, match="layer 'unused' must run in a forward pass, but did not run"
        ):
            tapped(images())
        with pytest.raises(
            RuntimeError, match="layer 'unused' must run in a forward pass, but did not run"
        ):
            tapped.features_and_outputs(images())


class TestLastHidden:
    def test_the_last_hidden_linear_layer_before_its_activation(self):
        assert last_hidden(mlp(), images()) == Tap(layer="1", side="output")

    def test_with_one_linear_layer_its_input(self):
        assert last_hidden(convnet().eval(), images()) == Tap(layer="head", side="input")

    def test_where_another_layer_is_last_the_input_of_the_last_linear_one(self):
        net = nn.Sequential(mlp(), nn.BatchNorm1d(3)).eval()
        assert last_hidden(net, images()) == Tap(layer="0.4", side="input")

    def test_without_any_the_input_of_the_last_layer_that_runs(self):
        assert last_hidden(Convolutional(), images()) == Tap(layer="last", side="input")

    def test_no_hook_is_left(self):
        net = mlp()
        last_hidden(net, images())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_how_often_a_layer_runs(self):
        net = mlp()
        twice = nn.Sequential(net[0], net[1], nn.Linear(8, 36), net[1])
        assert count_runs(net, "1", images()) == 1
        assert count_runs(twice, "1", images()) == 2
        assert count_runs(Convolutional(), "unused", images()) == 0


@pytest.mark.parametrize(
    ("layer", "side", "said"),
    [("", "output", "layer"), (None, "output", "layer"), ("1", "middle", "side")],
)
def test_places_that_are_none(layer, side, said):
    with pytest.raises(ValueError, match=f"`{said}` must be"):
        Tap(layer=layer, side=side)
