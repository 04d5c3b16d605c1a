"""Modules of several processes: an attack runs in one of them and waits for no other."""

import copy
import datetime

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from advkit import TorchClassifier, attacks, eval
from advkit.core.distributed import local, unwrapped
from advkit.defenses import MRR, TRADES, AdversarialTraining, Distillation, LabelSmoothing, fit
from advkit.defenses.mrr import LatentDefenders
from tests.toys import ConvNet, convnet, images

pytestmark = [
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
    ),
    pytest.mark.slow("starts processes that wait for each other"),
]

PGD = attacks.PGD(eps=0.1, steps=3)
LOSSES = {
    "evaluation mode": AdversarialTraining(attack=PGD, clean_weight=0.5),
    "its own mode": AdversarialTraining(attack=PGD, mode="keep"),
    "TRADES": TRADES(attack=PGD),
    "sum": LabelSmoothing() + AdversarialTraining(attack=attacks.DeepFool(steps=2)),
}


def data(rank):
    """Other inputs and labels in each process."""
    return images(8, seed=rank), torch.arange(8) % 3


def spread(net):
    return DistributedDataParallel(net)


def attacked(rank):
    """What attacks of another length in each process find, on the wrapper and on the bare net."""
    (x, _), net = data(rank), convnet()
    y = net(x).argmax(1)
    attack = attacks.PGD(eps=0.03 if rank else 0.5, steps=20)
    one = spread(copy.deepcopy(net))
    found = {"bare": attack.run(net, x, y).x_adv}
    for name, model in {
        "wrapper": one,
        "twice": spread(spread(copy.deepcopy(net))),
        "keep": TorchClassifier(one.eval(), mode="keep"),
        "preprocess": TorchClassifier(one, preprocess=spread(Shift())),
    }.items():
        found[name] = attack.run(model, x, y).x_adv
    if rank:
        found["accuracy"] = float(eval.accuracy(one, x, y))
        found["compiled"] = unwrapped(Compiled(one)) is one.module
    return found


def trained(rank):
    """The weights of a net that learns other data in each process, by training loss."""
    x, y = data(rank)
    found = {}
    for name, loss in LOSSES.items():
        torch.manual_seed(rank)
        net = spread(ConvNet())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        evaluated = []

        def evaluate(model, evaluated=evaluated):
            if rank:  # alone
                evaluated.append(model(x).argmax(1))
            return {"kind": float(isinstance(model, ConvNet))}

        history = fit(
            *(net, [(x, y)] * 2),
            loss=loss,
            optimizer=optimizer,
            epochs=1,
            ema=0.5 if name == "TRADES" else None,
            evaluate=evaluate,
            progress=False,
        )
        assert history.epochs[-1].metrics["kind"] == 1
        found[name] = [p.detach().clone() for p in net.parameters()]
    return found


def learnt(rank):
    """The weights of students that are spread, and a defender of a spread victim."""
    x, y = images(40), torch.arange(40) % 3
    student = Distillation(temperature=2.0, epochs=1).fit(convnet(), spread(convnet()), [x])
    net = spread(convnet())
    attacks.Substitute(max_queries=16, rounds=1, epochs=1, batch_size=8).fit(convnet(), net, x[:8])
    if rank:
        MRR(latent=(LatentDefenders(epochs=1),), inputs=None).fit(spread_alone(), x, y)
    return [p.detach().clone() for p in (*student.parameters(), *net.parameters())]


def spread_alone():
    """A net of a group that this process is in by itself."""
    return DistributedDataParallel(convnet(), process_group=OWN[0])


OWN = []


class Shift(nn.Module):
    """The identity, with a parameter, and a buffer that its wrapper would send at each pass."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.register_buffer("zero", torch.zeros(()))

    def forward(self, x):
        return x + self.shift


class Compiled(nn.Module):
    """What `torch.compile` makes, without the seconds that it takes to import the compiler."""

    def __init__(self, net):
        super().__init__()
        self._orig_mod = net


class Around(nn.Module):
    """A net inside another module."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def refused(rank):
    """Messages about modules that cannot run in one process alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    x, y = data(rank)
    mesh = init_device_mesh("cpu", (2,))
    sharded = fully_shard(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), mesh=mesh)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(convnet())
    found = {
        "inside": said(TypeError, lambda: PGD.run(Around(spread(convnet())), x, y)),
        "sharded": said(TypeError, lambda: PGD.run(sharded, x, y)),
        "sharded inside": said(TypeError, lambda: TorchClassifier(Around(sharded))),
        "trained": said(TypeError, lambda: LOSSES["TRADES"](sharded, x, y)),
    }
    for mode in ("eval", "keep"):
        TorchClassifier(synchronized.eval(), mode=mode).predict(x)
    TorchClassifier(synchronized.train()).predict(x)
    keeping = TorchClassifier(synchronized, mode="keep")
    found["synchronized"] = said(ValueError, lambda: PGD.run(keeping, x, y))
    found["trained in its own mode"] = said(
        ValueError, lambda: LOSSES["its own mode"](synchronized, x, y)
    )
    return found


def said(error, call):
    try:
        call()
    except error as raised:
        return str(raised)
    return "nothing was raised"


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=1),
    )
    OWN.append([distributed.new_group([r]) for r in range(2)][rank])
    found = {job.__name__: job(rank) for job in (attacked, trained, learnt, refused)}
    torch.save(found, f"{folder}/{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes have found; they fail where one waits for the other."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / str(rank)) for rank in range(2)]


def test_an_attack_runs_the_module_inside_and_waits_for_no_other_process(found):
    for rank in range(2):
        attacked = found[rank]["attacked"]
        for name in ("wrapper", "twice", "keep", "preprocess"):
            assert torch.equal(attacked[name], attacked["bare"]), name
    assert found[1]["attacked"]["compiled"]
    assert found[1]["attacked"]["accuracy"] == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_training_losses_average_the_gradients(found, loss):
    first, second = (each["trained"][loss] for each in found)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_students_of_several_processes_learn_together(found):
    first, second = (each["learnt"] for each in found)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_what_waits_for_other_processes_is_refused(found):
    for each in found:
        said = each["refused"]
        assert "DistributedDataParallel at 'net', which waits" in said["inside"]
        assert "`net.module`, in its place" in said["inside"]
        assert said["sharded"].startswith("`module` must have its parameters in one process, got")
        assert "full_state_dict=True" in said["sharded"]
        assert "FSDPSequential at 'net', which shards them" in said["sharded inside"]
        assert "which shards them" in said["trained"]
        for name in ("synchronized", "trained in its own mode"):
            assert "no SyncBatchNorm in training mode" in said[name]
            assert "got one at 'norm', which waits" in said[name]


def test_modules_of_one_process_are_taken_as_they_are():
    net = convnet()
    assert local(net) is net
    parallel = DataParallel(net)
    assert TorchClassifier(parallel).module is parallel
    assert torch.equal(TorchClassifier(parallel).predict(images()), net(images()).argmax(1))


def test_a_sharded_module_of_the_first_kind_is_known_by_its_name(monkeypatch):
    kind = type("FullyShardedDataParallel", (nn.Module,), {})
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    with pytest.raises(TypeError, match="got FullyShardedDataParallel, which shards them"):
        TorchClassifier(kind())
    with pytest.raises(TypeError, match="got FullyShardedDataParallel at '0', which"):
        TorchClassifier(nn.Sequential(kind()))
