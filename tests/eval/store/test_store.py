"""Stores: units that are found, refused, damaged and written."""

import errno
import json
import os
import shutil
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import advkit
from advkit import attacks, eval
from advkit.eval.store import store as stores
from advkit.eval.store import unit_files
from advkit.eval.store.store import Store, read_manifest, unit_names
from advkit.eval.store.unit_files import UnitName, read_unit, write_unit
from advkit.eval.units.unit_result import UnitResult
from tests.eval.evaluated import CALLS, Net, data, plain, several, with_second_inputs

SETTINGS = {"attacks": several(), "batch_size": 10, "chunk_size": 20}


def evaluate(folder, net=None, inputs=None, **changed):
    return eval.evaluate(net or Net(), *(inputs or data()), **{**SETTINGS, **changed}, store=folder)


@pytest.fixture
def store(tmp_path):
    """A store of 60 inputs in 3 chunks, under 3 attacks."""
    evaluate(tmp_path / "store")
    return tmp_path / "store"


def files(store):
    return sorted(path for path in (store / "units").iterdir())


def stamps(store):
    return {path.name: path.stat().st_mtime_ns for path in files(store)}


class TestUnits:
    def test_each_unit_is_a_file(self, store):
        names = [UnitName.parse(path.name) for path in files(store)]
        assert [(name.chunk, name.attack) for name in names] == [
            (chunk, attack) for chunk in range(3) for attack in (0, 1, 2, None)
        ]
        assert unit_names(store) == names
        assert len({name.key for name in names}) == 12

    def test_a_second_run_computes_nothing(self, store):
        before = stamps(store), (store / "store.json").stat().st_mtime_ns
        CALLS.clear()
        again = evaluate(store)
        assert CALLS == []
        assert plain(again) == plain(evaluate(None))
        assert (stamps(store), (store / "store.json").stat().st_mtime_ns) == before

    @pytest.mark.parametrize("removed", [0, 3, 5])
    def test_what_is_missing_is_computed(self, store, removed):
        wanted, before = plain(evaluate(store)), stamps(store)
        files(store)[removed].unlink()
        CALLS.clear()
        assert plain(evaluate(store)) == wanted
        assert sum(CALLS) > 0
        assert max(CALLS) <= 10
        after = stamps(store)
        assert {name for name in after if after[name] != before[name]} == {list(before)[removed]}

    def test_clean_passes_are_not_made_again_for_a_missing_attack(self, store):
        for path in files(store):
            if "-000-" in path.name:
                path.unlink()
        CALLS.clear()
        evaluate(store)
        assert CALLS
        assert max(CALLS) == 9  # the attacked inputs of a batch of 10

    def test_inputs_of_any_kind_share_units(self, store):
        x, y = data()
        CALLS.clear()
        loader = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)]
        for inputs in ((TensorDataset(x, y),), (loader,), (x.clone(), y.clone())):
            evaluate(store, inputs=inputs)
        assert CALLS == []
        manifest = read_manifest(store)
        assert (manifest.inputs, manifest.chunks) == (60, 3)

    def test_the_end_of_a_stream_is_noted(self, tmp_path):
        x, y = data()
        loader = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)]
        reports = eval.evaluate_stream(Net(), loader, **SETTINGS, store=tmp_path)
        next(reports)
        assert read_manifest(tmp_path).chunks is None
        for _ in reports:
            pass
        assert read_manifest(tmp_path).chunks == 3

    @pytest.mark.parametrize("size", [40, 80])
    def test_a_stream_with_another_end_is_refused(self, tmp_path, size):
        x, y = data(80)
        loader = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 80, 10)]
        settings = {"attacks": several()[::2]}
        evaluate(tmp_path, inputs=(loader[:6],), **settings)
        with pytest.raises(ValueError, match="whose inputs are 3 chunks, here [24]") as caught:
            evaluate(tmp_path, inputs=(loader[: size // 10],), **settings)
        assert len(caught.value.report.clean) == min(size, 60)
        assert read_manifest(tmp_path).chunks == 3

    def test_an_empty_stream_leaves_the_store_open(self, tmp_path):
        with pytest.raises(ValueError, match="`x` must hold at least one sample, got none"):
            evaluate(tmp_path, inputs=([],))
        x, y = data()
        evaluate(tmp_path, inputs=([(x, y)],), batch_size=10)
        assert len(eval.merge(tmp_path).clean) == 60

    def test_given_rows_belong_to_the_inputs(self, tmp_path):
        net, x, y = with_second_inputs(60)
        x, y = x[:20], y[:20]
        settings = {"attacks": several()[::2], "batch_size": 10, "chunk_size": 20}
        with advkit.given_rows(range(20)):
            eval.evaluate(net, x, y, **settings, store=tmp_path)
            assert plain(eval.evaluate(net, x, y, **settings, store=tmp_path))
        for rows in (range(20, 40), [*range(19), 0]):
            with (
                advkit.given_rows(rows),
                pytest.raises(ValueError, match="whose inputs or labels 0 to 19 are others"),
            ):
                eval.evaluate(net, x, y, **settings, store=tmp_path)

    def test_hidden_files_are_ignored(self, store):
        (store / "units" / ".DS_Store").touch()
        (store / ".notes").touch()
        (store / "units" / f".{files(store)[0].name}.0123456789abcdef.tmp").touch()
        CALLS.clear()
        evaluate(store)
        assert CALLS == []


class Surrogates:
    """Attacks with a surrogate, and attacks whose tensors differ."""

    @staticmethod
    def transfer(seed):
        return attacks.Transfer(surrogate=Net(seed), attack=attacks.FGSM(eps=0.1))


def changed_net():
    net = Net()
    with torch.no_grad():
        net.first[2, 3] = net.first[2, 3].nextafter(torch.tensor(9.0))
    return net


class OtherCode(Net):
    def forward(self, x):
        return super().forward(x)


def eps(value):
    found = torch.full((60,), 0.1)
    found[17] = value
    return found


class TestOtherEvaluations:
    @pytest.mark.parametrize("net", [changed_net(), OtherCode(), nn.Linear(6, 3)])
    def test_another_model(self, store, net):
        before = stamps(store)
        with pytest.raises(
            ValueError,
            match=r"same evaluation, got .*store, whose model has other weights, settings or code "
            r"\(hash \w{12}, here \w{12}\)\. If a forward pass changes an attribute",
        ):
            evaluate(store, net)
        assert stamps(store) == before

    @pytest.mark.parametrize("kind", ["tensor", "data set", "loader"])
    @pytest.mark.parametrize("part", ["input", "label"])
    def test_other_data(self, store, kind, part):
        x, y = data()
        if part == "input":
            x[25, 3] += 0.001
        else:
            y[25] = (y[25] + 1) % 3
        inputs = {
            "tensor": (x, y),
            "data set": (TensorDataset(x, y),),
            "loader": ([(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)],),
        }[kind]
        before = stamps(store)
        with pytest.raises(
            ValueError,
            match="same inputs, got .*, whose inputs or labels 20 to 39 are others, or in other",
        ) as caught:
            evaluate(store, inputs=inputs)
        assert len(caught.value.report.clean) == 20
        assert stamps(store) == before

    def test_another_order(self, store):
        x, y = data()
        with pytest.raises(ValueError, match="whose inputs or labels 0 to 19 are others"):
            evaluate(store, inputs=(x.flip(0), y.flip(0)))

    def test_another_number_of_inputs(self, tmp_path):
        x, y = data()
        tried = several()[::2]
        evaluate(tmp_path, attacks=tried)
        with pytest.raises(ValueError, match="whose number of inputs is 60, here 40. Use"):
            evaluate(tmp_path, inputs=(x[:40], y[:40]), attacks=tried)

    @pytest.mark.parametrize(
        ("name", "old", "new"), [("batch_size", 10, 20), ("chunk_size", 20, 40)]
    )
    def test_other_sizes(self, store, name, old, new):
        text = name.replace("_", " ")
        with pytest.raises(ValueError, match=f"whose {text} is {old}, here {new}"):
            evaluate(store, **{name: new})

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                attacks.PGD(eps=0.1, steps=3), attacks.PGD(eps=0.1, steps=4),
                r"attack 2 is PGD\(.*steps=3.*\), here PGD\(.*steps=4.*\)",
            ),
            (attacks.FGSM(eps=eps(0.1)), attacks.FGSM(eps=eps(0.2)),
             "attack 2, FGSM.*, has other tensors, functions or models"),
            (Surrogates.transfer(0), Surrogates.transfer(1),
             "attack 2, Transfer.*, has other tensors, functions or models"),
            (attacks.FGSM(eps=0.1), attacks.FGM(eps=0.1), r"attack 2 is FGSM\(.*, here FGM\("),
        ],
    )  # fmt: skip
    def test_other_attacks(self, tmp_path, old, new, message):
        first = attacks.FGSM(eps=0.01)
        evaluate(tmp_path, attacks=[first, old])
        before = stamps(tmp_path)
        with pytest.raises(ValueError, match=message):
            evaluate(tmp_path, attacks=[first, new])
        CALLS.clear()
        evaluate(tmp_path, attacks=[first, old])
        assert CALLS == []
        assert stamps(tmp_path) == before

    def test_another_number_of_attacks(self, store):
        with pytest.raises(ValueError, match="whose number of attacks is 3, here 2"):
            evaluate(store, attacks=several()[:2])

    def test_another_number_of_threads(self, store):
        before = torch.get_num_threads()
        torch.set_num_threads(before + 1)
        try:
            with pytest.raises(
                ValueError, match=rf"number of threads is {before}, here {before + 1}, .* OMP_NUM_T"
            ):
                evaluate(store)
        finally:
            torch.set_num_threads(before)

    def test_another_version(self, store):
        path = store / "store.json"
        values = json.loads(path.read_text())
        values["surroundings"]["versions"]["torch"] = "1.0"
        path.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"versions are torch 1\.0, here tor"):
            evaluate(store)

    @pytest.mark.parametrize("name", ["notes.txt", "000000-clean-0.npz", "units"])
    def test_foreign_files(self, store, name):
        before = stamps(store)
        (store / "units" / name).touch()
        with pytest.raises(
            ValueError, match=f"nothing but units in .*, got {name}. Move that file"
        ):
            evaluate(store)
        (store / "units" / name).unlink()
        CALLS.clear()
        evaluate(store)
        assert CALLS == []
        assert stamps(store) == before

    def test_a_folder_of_other_files(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("text")
        with pytest.raises(ValueError, match=r"new or empty folder, or a store, got .*thesis\.tex"):
            evaluate(tmp_path)
        assert os.listdir(tmp_path) == ["thesis.tex"]

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "file").write_text("text")
        with pytest.raises(
            OSError, match="`store` must be a folder that can be written, got an err"
        ):
            evaluate(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "text"

    def test_a_damaged_manifest(self, store):
        (store / "store.json").write_text('{"format": "adv')
        with pytest.raises(ValueError, match="must have a valid store.json, got .* is damaged"):
            evaluate(store)

    def test_a_model_that_cannot_be_hashed(self, tmp_path):
        class Service:
            """A connection."""

            __slots__ = ("handle",)

        net = Net()
        net.service = Service()
        with pytest.raises(TypeError, match=r"`model.*service` must have .* Pass identity='...'"):
            evaluate(tmp_path, net)
        evaluate(tmp_path, net, identity="version 1")
        with pytest.raises(ValueError, match="whose model has other weights"):
            evaluate(tmp_path, net, identity="version 2")


class TestDamagedUnits:
    def check(self, store, path, wanted):
        with pytest.warns(UserWarning, match=f"computed again: .*{path.name}"):
            assert plain(evaluate(store)) == wanted
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plain(evaluate(store)) == wanted

    @pytest.mark.parametrize("number", [0, 3])
    @pytest.mark.parametrize("length", [0, 1, 100, -100, -1])
    def test_truncated(self, store, number, length):
        wanted, path = plain(evaluate(store)), files(store)[number]
        content = path.read_bytes()
        path.write_bytes(content[:length])
        self.check(store, path, wanted)

    def test_the_file_of_another_unit(self, store):
        wanted, (first, *_, last) = plain(evaluate(store)), files(store)
        shutil.copy(last, first)
        self.check(store, first, wanted)

    @pytest.mark.parametrize(("number", "step"), [(0, 5), (3, 1)])
    def test_a_flipped_byte_anywhere(self, store, number, step):
        """It is noticed, or it changes nothing that is read, such as the date of a member."""
        path = files(store)[number]
        name, content = UnitName.parse(path.name), path.read_bytes()
        wanted, noticed = read_unit(path, name), []
        places = range(0, len(content), step)
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 0xFF if place % 2 else 1 << place % 8
            path.write_bytes(changed)
            try:
                found = read_unit(path, name)
            except ValueError as error:
                noticed.append(str(error))
            else:
                same_result(found, wanted)
        assert all(path.name in text for text in noticed)
        assert len(noticed) > len(places) / 2

    def test_an_archive_without_columns(self, store):
        wanted, path = plain(evaluate(store)), files(store)[0]
        name = UnitName.parse(path.name)
        write_unit(path, name, UnitResult(columns={}))
        self.check(store, path, wanted)

    def test_columns_of_several_lengths(self, store):
        path = files(store)[0]
        name = UnitName.parse(path.name)
        write_unit(path, name, UnitResult(columns={"a": torch.zeros(2), "b": torch.zeros(3)}))
        with pytest.raises(ValueError, match="is damaged"):
            read_unit(path, name)


def same_result(found, wanted):
    assert found.facts == wanted.facts
    assert found.columns.keys() == wanted.columns.keys()
    for key, column in wanted.columns.items():
        torch.testing.assert_close(found.columns[key], column, rtol=0, atol=0, equal_nan=True)
    assert (found.examples is None) == (wanted.examples is None)
    if wanted.examples is not None:
        assert torch.equal(found.examples.x_adv, wanted.examples.x_adv)
        assert torch.equal(found.examples.y, wanted.examples.y)


class TestUnitFiles:
    @pytest.mark.parametrize(
        "name", [UnitName(0, None, "ab" * 16), UnitName(1234567, 1000, "0" * 32)]
    )
    def test_names(self, name):
        assert UnitName.parse(name.file) == name

    @pytest.mark.parametrize(
        "file", ["", "000000-clean-.npz", "0-clean-" + "0" * 32 + ".npz", "store.json",
                 "000000-clean-" + "0" * 32 + ".npz.tmp", "000000-clean-" + "G" * 32 + ".npz"],
    )  # fmt: skip
    def test_other_names(self, file):
        assert UnitName.parse(file) is None

    def test_a_round_trip(self, store):
        for path in files(store):
            name = UnitName.parse(path.name)
            result = read_unit(path, name)
            write_unit(path, name, result)
            same_result(read_unit(path, name), result)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_unit(tmp_path / "none", UnitName(0, None, "0" * 32))


class TestWriting:
    def test_an_error_of_the_disk_keeps_the_units(self, tmp_path, monkeypatch):
        wanted = evaluate(None)
        real, written = unit_files.write_npz, []

        def write(path, arrays):
            if len(written) == 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(path.name)
            real(path, arrays)

        message = (
            r"`store` must be a folder that can be written, got an error for .*: No space left on "
            r"device\. Units that it holds are kept\. Free space, or pass another folder"
        )
        monkeypatch.setattr(unit_files, "write_npz", write)
        with pytest.raises(OSError, match=message) as caught:
            evaluate(tmp_path)
        monkeypatch.undo()
        assert caught.value.errno == errno.ENOSPC
        assert len(caught.value.report.clean) == 20
        assert sorted(written) == [path.name for path in files(tmp_path)]
        before = stamps(tmp_path)
        assert plain(evaluate(tmp_path)) == plain(wanted)
        assert before.items() <= stamps(tmp_path).items()

    def test_units_whose_folder_was_removed(self, store):
        shutil.rmtree(store / "units")
        CALLS.clear()
        assert plain(evaluate(store)) == plain(evaluate(None))
        assert len(files(store)) == 12

    def test_a_manifest_that_was_removed(self, store):
        (store / "store.json").unlink()
        CALLS.clear()
        evaluate(store)
        assert CALLS == []
        assert len(eval.merge(store).clean) == 60


def a_manifest(store, **changed):
    values = read_manifest(store).to_plain()
    return stores.Manifest.from_plain({**values, **changed})


class TestSeveralProcesses:
    def test_they_open_a_new_store_at_once(self, store, tmp_path, monkeypatch):
        manifest, other = a_manifest(store), tmp_path / "other"
        real, barrier, errors = stores._check_new, threading.Barrier(4, timeout=10), []

        def check(folder):
            barrier.wait()
            real(folder)

        monkeypatch.setattr(stores, "_check_new", check)

        def begin():
            try:
                Store(other, manifest).finish(3)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sorted(os.listdir(other)) == ["store.json", "units"]

    def test_the_second_of_two_evaluations_is_refused(self, store, tmp_path, monkeypatch):
        one, two = a_manifest(store), a_manifest(store, batch_size=20)
        other = tmp_path / "other"
        real = stores._check_new

        def check(folder):
            monkeypatch.setattr(stores, "_check_new", real)
            Store(folder, one).finish(3)  # another process is first
            real(folder)

        monkeypatch.setattr(stores, "_check_new", check)
        with pytest.raises(ValueError, match="whose batch size is 10, here 20"):
            Store(other, two).finish(3)
        assert read_manifest(other) == one

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
    def test_a_file_system_without_links(self, store, tmp_path, monkeypatch, number):
        def link(*_):
            raise OSError(number, "no links")

        monkeypatch.setattr(os, "link", link)
        Store(tmp_path / "other", a_manifest(store)).finish(3)
        assert sorted(os.listdir(tmp_path / "other")) == ["store.json", "units"]

    def test_other_errors_of_a_link(self, store, tmp_path, monkeypatch):
        def link(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(OSError, match="got an error for .*: Input/output error"):
            Store(tmp_path / "other", a_manifest(store)).finish(3)
        assert os.listdir(tmp_path / "other") == ["units"]


class TestRunsThatDoNotBegin:
    def test_a_run_without_a_unit_leaves_the_folder_free(self, tmp_path):
        x, y = data()
        with pytest.raises(ValueError, match="bounds"):
            evaluate(tmp_path / "store", inputs=(x * 3, y))
        assert not (tmp_path / "store" / "store.json").exists()
        wider = advkit.TorchClassifier(Net(), bounds=(0, 3))
        evaluate(tmp_path / "store", net=wider, inputs=(x * 3, y))
        assert len(files(tmp_path / "store")) == 12

    def test_no_inputs_leave_the_folder_free(self, tmp_path):
        x, y = data()
        with pytest.raises(ValueError, match="at least one sample"):
            evaluate(tmp_path / "store", inputs=(x[:0], y[:0]), attacks=[attacks.FGSM(eps=0.1)])
        with pytest.raises(FileNotFoundError, match=r"store\.json"):
            eval.merge(tmp_path / "store")
        evaluate(tmp_path / "store")

    @pytest.mark.parametrize("wrong", ["", 5])
    def test_the_store_is_a_path(self, wrong):
        with pytest.raises(TypeError, match="`store` must be the path of a folder, got"):
            evaluate(wrong)

    def test_a_budget_of_queries_is_for_one_process(self, tmp_path):
        def limited(limit):
            return advkit.QueryCounter(advkit.TorchClassifier(Net()), max_queries=limit)

        with pytest.raises(ValueError, match="`model` must have no query budget with a `shard`"):
            evaluate(tmp_path / "store", net=limited(100), shard=(0, 2))
        assert not (tmp_path / "store").exists()
        with pytest.raises(advkit.QueryBudgetExceeded):
            evaluate(tmp_path / "store", net=limited(400))
        kept = len(files(tmp_path / "store"))
        assert 0 < kept < 12
        with pytest.raises(advkit.QueryBudgetExceeded):
            evaluate(tmp_path / "store", net=limited(400))
        assert len(files(tmp_path / "store")) > kept

    def test_a_chunk_size_is_compared_as_it_is_given(self, tmp_path):
        x, y = data()
        loader = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)]
        evaluate(tmp_path / "store", chunk_size=15)
        CALLS.clear()
        evaluate(tmp_path / "store", inputs=(loader,), chunk_size=15)
        assert CALLS == []


def test_a_relative_path_is_that_of_the_call(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    stream = eval.evaluate_stream(Net(), *data(), **SETTINGS, store="store")
    monkeypatch.chdir(tmp_path / "there")
    assert len(list(stream)) == 3
    assert len(files(tmp_path / "here" / "store")) == 12
    assert list((tmp_path / "there").iterdir()) == []


class TestStreamsOfOtherLengths:
    @pytest.mark.parametrize("n", [20, 80])
    def test_another_length_is_refused_and_the_store_stays_whole(self, tmp_path, n):
        x, y = data(80)
        batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 80, 10)]
        one = {"attacks": [attacks.FGSM(eps=0.05)]}
        evaluate(tmp_path / "store", inputs=(batches[:6],), **one)
        before = stamps(tmp_path / "store")
        with pytest.raises(ValueError, match="are 3 chunks, here"):
            evaluate(tmp_path / "store", inputs=(batches[: n // 10],), **one)
        assert stamps(tmp_path / "store") == before
        assert len(eval.merge(tmp_path / "store").clean) == 60


def test_labels_of_another_integer_type_are_the_same(store):
    x, y = data()
    CALLS.clear()
    evaluate(store, inputs=(x, y.int()))
    evaluate(store, inputs=(TensorDataset(x, y.int()),))
    assert CALLS == []


class TestSettingsOfTorch:
    def test_autocast_is_another_evaluation(self, store):
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.raises(ValueError, match=r"settings of torch are autocast \{\}, here autocast"),
        ):
            evaluate(store)

    def test_another_precision_is_named_alone(self, store):
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            with pytest.raises(
                ValueError, match="are precision of CUDA matmul ieee, precision of CPU"
            ):
                evaluate(store)
        finally:
            torch.set_float32_matmul_precision(before)

    def test_another_version_of_python_is_named_before_the_model(self, store):
        known = json.loads((store / "store.json").read_text())
        known["surroundings"]["versions"]["python"] = "3.0.0"
        known["surroundings"]["model"] = "other"
        (store / "store.json").write_text(json.dumps(known))
        with pytest.raises(ValueError, match=r"versions are python 3\.0\.0, here python"):
            evaluate(store)
