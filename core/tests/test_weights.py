"""Weights references, files of tensors, and the transfer into a backbone."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.errors import PluginError, UserError
from headstart.plugins import PluginInfo, Registry
from headstart.specs import WeightSourceSpec
from headstart.stages import Backbone, State
from headstart.weights.sources import SourceContext, Weights, resolve_weights
from headstart.weights.tensors import files_sha256
from headstart.weights.transfer import load_weights
from headstart.weights.transfer_report import StageTransfer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def get(reference: object) -> Weights:
    return resolve_weights(str(reference), SourceContext(Registry()))


class Block(nn.Module):
    """A stage: linear layer with batch normalisation, so that it has buffers too."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, state: State) -> State:
        return {**state, "hidden": self.norm(self.dense(state["hidden"]))}


def backbone(stages: int = 3) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        {f"layer{i}": Block() for i in range(stages)},
        features=(),
        upstream={f"stages.layer{i}.": f"encoder.layer.{i}." for i in range(stages)},
        ignored=("cls.*", "*pooler.*"),
    )


def pretrained(stages: int = 3) -> dict[str, Tensor]:
    """Tensors that fit, by the upstream names, written out by hand."""
    generator = torch.Generator().manual_seed(1)
    made: dict[str, Tensor] = {}
    for i in range(stages):
        at = f"encoder.layer.{i}."
        made[at + "dense.weight"] = torch.randn(4, 4, generator=generator)
        for name in ("dense.bias", "norm.weight", "norm.bias", "norm.running_mean"):
            made[at + name] = torch.randn(4, generator=generator)
        made[at + "norm.running_var"] = torch.rand(4, generator=generator)
        made[at + "norm.num_batches_tracked"] = torch.tensor(7 + i)
    return made


def saved(folder: Path, tensors: dict[str, Tensor]) -> Weights:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return get(f"file:{path}")


def content(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# References


def test_references_without_a_known_scheme(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError) as caught:
        get(tmp_path / "model")
    assert f"'file:{tmp_path}/model'" in caught.value.faults[0].fix
    with pytest.raises(UserError, match="'hf:google-bert/bert-base-uncased'"):
        get("google-bert/bert-base-uncased")
    with pytest.raises(UserError, match="did you mean 'asset'"):
        get("assets:minilm-l6")
    with pytest.raises(UserError, match="did you mean 'none:'"):
        get("non")
    with pytest.raises(UserError, match="nothing follows"):
        get("file:")


def test_none_loads_nothing_and_says_so():
    model = backbone()
    before = content(model)
    report = load_weights(model, get("none"))
    assert unchanged(model, before)
    assert report.loaded == 0
    assert len(report.reinitialised) == len(before)
    assert {why for _, why in report.reinitialised} == {
        "the weights are random (weights = 'none')"
    }


def test_a_file_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"did you mean 'model\.safetensors'"):
        get(f"file:{tmp_path}/modle.safetensors")
    (tmp_path / "notes.md").touch()
    with pytest.raises(UserError, match="no file of tensors"):
        get(f"file:{tmp_path}/notes.md")


def test_a_folder_with_no_tensors_and_one_with_too_many(tmp_path):
    with pytest.raises(UserError, match="no file of tensors"):
        get(f"file:{tmp_path}")
    for name in ("a", "b"):
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=re.escape("a.safetensors, b.safetensors")):
        get(f"file:{tmp_path}")


def test_an_asset_of_a_loaded_plugin(tmp_path, cache, monkeypatch):
    package = tmp_path / "site" / "a_plugin_for_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    source = tmp_path / "model.safetensors"
    save_file(pretrained(), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    (package / "assets.toml").write_text(
        "[tiny]\nsummary = 'a model'\nlicence = 'MIT'\n[[tiny.files]]\n"
        f"path = 'model.safetensors'\nsha256 = '{digest}'\n"
        f"size = {source.stat().st_size}\nsources = ['https://127.0.0.1/x']\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry = Registry()
    registry.plugins.append(
        PluginInfo("a", "", "", "loaded", package=package.name),
    )
    folder = cache / "assets" / "tiny"
    folder.mkdir(parents=True)
    source.rename(folder / "model.safetensors")
    weights = resolve_weights("asset:tiny", SourceContext(registry))
    assert weights.reference == "asset:tiny"
    assert (weights.licence, weights.sha256) == ("MIT", digest)
    assert load_weights(backbone(), weights).loaded == 21
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        resolve_weights("asset:tinny", SourceContext(registry))


def brings_nothing(rest: str, context: SourceContext) -> Weights:
    return Weights("", None, ())


def test_a_source_that_brings_nothing_is_no_random_control(monkeypatch):
    registry = Registry()
    registry.weight_sources["void"] = WeightSourceSpec("void", "", "there:brings")
    monkeypatch.setattr(
        "headstart.weights.sources.resolve", lambda target: brings_nothing
    )
    with pytest.raises(PluginError, match="'void:' gave no files"):
        resolve_weights("void:x", SourceContext(registry))


# Files


def sharded(folder: Path, tensors: dict[str, Tensor]) -> tuple[Path, Path]:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        save_file({k: v for k, v in tensors.items() if where[k] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder / names[0], folder / names[1]


def test_sharded_folder(tmp_path):
    expected = pretrained()
    sharded(tmp_path, expected)
    weights = get(f"file:{tmp_path}")
    found = weights.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    assert weights.folder == tmp_path
    model = backbone()
    assert load_weights(model, weights).loaded == len(expected)
    assert torch.equal(
        model.state_dict()["stages.layer2.dense.weight"],
        expected["encoder.layer.2.dense.weight"],
    )


def test_a_missing_shard_is_named(tmp_path):
    _, second = sharded(tmp_path, pretrained())
    second.unlink()
    with pytest.raises(UserError, match=second.name):
        get(f"file:{tmp_path}")


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "outside.safetensors")
    index = {"weight_map": {"x": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        get(f"file:{folder}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda whole: whole[:-1], "truncated: it has {0} of {1} bytes"),
        (lambda whole: whole[:100], "ends in its header"),
        (lambda whole: b"", "ends in its header"),
        (lambda whole: whole + b"\0", "1 bytes after its last tensor"),
        (lambda whole: b"version https://git-lfs", "Git LFS pointer"),
        (lambda whole: b"<!DOCTYPE html><html>..</html>", "not a safetensors file"),
        (lambda whole: whole[:8] + b"}" + whole[9:], "damaged header"),
    ],
)
def test_broken_safetensors_are_refused_by_name(tmp_path, change, told):
    _, second = sharded(tmp_path, pretrained())
    whole = second.read_bytes()
    broken = change(whole)
    second.write_bytes(broken)
    with pytest.raises(UserError) as caught:
        get(f"file:{tmp_path}")
    (fault,) = caught.value.faults
    assert fault.where == str(second)
    assert told.format(len(broken), len(whole)) in fault.what
    assert fault.fix


def test_every_truncated_shard_is_named_at_once(tmp_path):
    for path in sharded(tmp_path, pretrained()):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError) as caught:
        get(f"file:{tmp_path}")
    assert len(caught.value.faults) == 2


def test_the_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "abc.bin").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert files_sha256([tmp_path / "abc.bin"]) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    (tmp_path / "abd.bin").write_bytes(b"abd")
    both = [tmp_path / "abc.bin", tmp_path / "abd.bin"]
    assert files_sha256(both) != files_sha256(both[::-1])
    before = files_sha256(both)
    (tmp_path / "abd.bin").write_bytes(b"abcd")
    assert files_sha256(both) != before


# Pickles


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, cache):
    marker = tmp_path / "executed"
    torch.save({"weight": torch.ones(2), "x": Malicious(marker)}, tmp_path / "m.pth")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    for name in ("m.pth", "old.pt"):
        weights = get(f"file:{tmp_path / name}")
        with pytest.raises(UserError, match="is refused") as caught:
            weights.tensors()
        (fault,) = caught.value.faults
        assert fault.where == str(tmp_path / name)
        assert "getattr" in fault.why
        assert "add_safe_globals" not in fault.why
    assert not marker.exists()
    assert not list(cache.rglob("*.safetensors"))
    # The trap works where nothing guards against it.
    pickle.loads((tmp_path / "old.pt").read_bytes())
    assert marker.exists()


def test_a_small_pickle_cannot_fill_the_memory(tmp_path, cache):
    wide = torch.zeros(1).expand(10**13)
    torch.save({"weight": wide, "other": torch.ones(2)}, tmp_path / "wide.pt")
    torch.save({"weight": torch.zeros(2000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    for name, words in (("wide.pt", "37,252.9 GiB"), ("packed.pt", "compressed")):
        with pytest.raises(UserError, match=words):
            get(f"file:{tmp_path / name}").tensors()
    assert len(get(f"file:{tmp_path / 'plain.pt'}").tensors()["weight"]) == 2000
    assert [path.suffix for path in cache.rglob("*.safetensors")] == [".safetensors"]


def test_a_benign_pickle_is_converted_once(tmp_path, cache, monkeypatch):
    shared = torch.arange(6.0).reshape(2, 3)
    content = {
        "epoch": 3,
        "state_dict": {"a": shared, "b": shared[0], "t": shared.T, "tied": shared},
    }
    torch.save(content, tmp_path / "model.pth")
    weights = get(f"file:{tmp_path / 'model.pth'}")
    loads = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(k) or real(*a, **k))
    for _ in range(2):
        found = weights.tensors()
        assert found.keys() == {"a", "b", "t", "tied"}
        assert found["b"].tolist() == [0.0, 1.0, 2.0]
        assert found["t"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        assert torch.equal(found["tied"], shared)
    assert [call["weights_only"] for call in loads] == [True]
    (kept,) = (cache / "converted").iterdir()
    assert kept.name == f"{weights.sha256}.safetensors"
    # Another content under the same name is another file.
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    assert get(f"file:{tmp_path / 'model.pth'}").tensors().keys() == {"a"}


def test_an_old_torch_reads_no_pickles(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(UserError, match=r"torch >= 2\.10"):
        get(f"file:{tmp_path / 'model.pth'}").tensors()


def test_damaged_and_tensorless_pickles(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        get(f"file:{tmp_path / 'cut.pth'}").tensors()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no named tensors"):
        get(f"file:{tmp_path / 'list.pth'}").tensors()


def test_a_cache_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="HEADSTART_CACHE"):
        get(f"file:{tmp_path / 'model.pth'}").tensors()


def test_a_conversion_that_fails_half_way_leaves_nothing(tmp_path, cache, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        get(f"file:{tmp_path / 'model.pth'}").tensors()
    assert not list((cache / "converted").iterdir())


# Transfer


def test_parameters_and_buffers_are_copied_and_cast(tmp_path):
    expected = pretrained()
    half = {
        k: v.to(torch.bfloat16 if "bias" in k else torch.float16)
        if v.is_floating_point()
        else v
        for k, v in expected.items()
    }
    model = backbone()
    report = load_weights(model, saved(tmp_path, half))
    for name, tensor in model.state_dict().items():
        upstream = name.replace("stages.layer", "encoder.layer.")
        assert tensor.dtype == expected[upstream].dtype
        assert torch.equal(tensor, half[upstream].to(tensor.dtype)), name
    assert model.state_dict()["stages.layer1.norm.num_batches_tracked"] == 8
    assert all(p.requires_grad for p in model.parameters())
    assert report.loaded == 21
    # Three times a matrix of 16 and three vectors of 4; buffers are not parameters.
    assert report.loaded_parameters == 3 * (16 + 3 * 4)
    assert report.skipped == report.reinitialised == ()


def test_all_faults_at_once_and_nothing_is_half_loaded(tmp_path):
    tensors = pretrained()
    tensors["encoder.layer.0.dens.weight"] = tensors.pop("encoder.layer.0.dense.weight")
    tensors["encoder.layer.1.dense.bias"] = torch.zeros(5)
    tensors["encoder.layer.2.norm.bias"][1] = math.nan
    tensors["encoder.layer.2.norm.weight"][2] = math.inf
    tensors["classifier.weight"] = torch.ones(2, 4)
    model = backbone()
    before = content(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, saved(tmp_path, tensors))
    assert unchanged(model, before)
    faults = {f.what.split("'")[1]: f for f in caught.value.faults}
    assert faults.keys() == {
        "encoder.layer.0.dense.weight",
        "encoder.layer.0.dens.weight",
        "encoder.layer.1.dense.bias",
        "encoder.layer.2.norm.bias",
        "encoder.layer.2.norm.weight",
        "classifier.weight",
    }
    missing = faults["encoder.layer.0.dense.weight"]
    assert missing.what.endswith("is not in the weights")
    assert missing.fix == "is it 'encoder.layer.0.dens.weight'?"
    assert "(5,) in the weights, (4,) in the model" in (
        faults["encoder.layer.1.dense.bias"].what
    )
    assert "1 values of 4" in faults["encoder.layer.2.norm.bias"].what
    assert all(f.where.startswith("file:") for f in caught.value.faults)


def test_the_line_that_is_offered_makes_it_load(tmp_path):
    tensors = pretrained()
    del tensors["encoder.layer.0.dense.weight"]
    tensors["encoder.layer.1.dense.bias"] = torch.zeros(5)
    tensors["classifier.weight"] = torch.ones(2, 4)
    weights = saved(tmp_path, tensors)
    model = backbone()
    before = content(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, weights)
    line = re.search(r"backbone\.allow = (\[.*\])", str(caught.value))
    assert line
    report = load_weights(model, weights, allow=json.loads(line[1]))
    again = dict(report.reinitialised)
    assert again.keys() == {
        "encoder.layer.0.dense.weight",
        "encoder.layer.1.dense.bias",
    }
    assert "(5,) in the weights" in again["encoder.layer.1.dense.bias"]
    assert report.skipped == (("classifier.weight", "allowed by 'classifier.weight'"),)
    after = model.state_dict()
    for ours in ("stages.layer0.dense.weight", "stages.layer1.dense.bias"):
        assert torch.equal(after[ours], before[ours])
    assert report.loaded == 19


def test_allow_takes_globs_but_never_damaged_values(tmp_path):
    tensors = {k: v for k, v in pretrained().items() if "layer.2" not in k}
    model = backbone()
    weights = saved(tmp_path, tensors)
    report = load_weights(model, weights, allow=["encoder.layer.2.*"])
    assert len(report.reinitialised) == 7
    tensors["encoder.layer.0.dense.bias"][0] = math.nan
    with pytest.raises(UserError, match="NaN"):
        load_weights(model, saved(tmp_path, tensors), allow=["*"])


def test_many_faults_are_offered_as_few_globs(tmp_path):
    tensors = {k: v for k, v in pretrained(3).items() if "dense" in k}
    with pytest.raises(UserError) as caught:
        load_weights(backbone(), saved(tmp_path, tensors))
    line = re.search(r"backbone\.allow = (\[.*\])", str(caught.value))
    assert line
    patterns = json.loads(line[1])
    assert patterns == [
        f"encoder.layer.*.norm.{name}"
        for name in ("weight", "bias", "running_mean", "running_var")
    ] + ["encoder.layer.*.norm.num_batches_tracked"]
    assert len(caught.value.faults) == 12 + 1


def test_weights_of_another_model_are_one_fault(tmp_path):
    tensors = {f"conv{i}.weight": torch.ones(2) for i in range(40)}
    with pytest.raises(UserError, match="no tensor of the weights fits") as caught:
        load_weights(backbone(), saved(tmp_path, tensors))
    assert len(caught.value.faults) == 1
    assert "conv0.weight" in str(caught.value)
    assert "encoder.layer.0.dense.weight" in str(caught.value)


def test_heads_and_dropped_stages_are_skipped_with_the_reason(tmp_path):
    tensors = pretrained(12)
    tensors["cls.predictions.bias"] = torch.ones(3)
    tensors["pooler.dense.weight"] = torch.ones(4, 4)
    model = backbone(12)
    model.keep(2)
    report = load_weights(model, saved(tmp_path, tensors))
    assert report.loaded == 14
    why: dict[str, list[str]] = {}
    for name, reason in report.skipped:
        why.setdefault(reason, []).append(name)
    assert sorted(why["pretraining head"]) == [
        "cls.predictions.bias",
        "pooler.dense.weight",
    ]
    assert len(why["stage dropped by backbone.keep"]) == 70
    # `encoder.layer.1.` stays though `encoder.layer.10.` goes.
    assert "encoder.layer.10.dense.bias" in why["stage dropped by backbone.keep"]
    tensors["encoder.layer.1.extra"] = torch.ones(1)
    with pytest.raises(UserError, match=r"'encoder\.layer\.1\.extra' has no place"):
        load_weights(model, saved(tmp_path, tensors))


def test_a_stage_that_stays_is_not_taken_for_a_dropped_one(tmp_path):
    model = backbone(12)
    model.trailing = ("layer10",)
    model.keep(1)
    assert model.stage_names == ("layer0", "layer10")
    tensors = pretrained(12)
    tensors["encoder.layer.10.extra"] = torch.ones(1)
    with pytest.raises(UserError, match=r"'encoder\.layer\.10\.extra' has no place"):
        load_weights(model, saved(tmp_path, tensors))


def test_wrappers_and_renames(tmp_path):
    expected = pretrained()
    wrapped = {
        "bert."
        + k.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"): v
        for k, v in expected.items()
    }
    wrapped["bert.pooler.dense.weight"] = torch.ones(4, 4)
    weights = saved(tmp_path, wrapped)
    model = backbone()
    with pytest.raises(UserError):
        load_weights(model, weights)
    model.wrappers = ("bert.",)
    model.renames = ((".gamma", ".weight"), (".beta", ".bias"))
    report = load_weights(model, weights)
    assert report.loaded == 21
    assert report.skipped == (("bert.pooler.dense.weight", "pretraining head"),)
    assert torch.equal(
        model.state_dict()["stages.layer1.norm.weight"],
        expected["encoder.layer.1.norm.weight"],
    )


def test_two_names_for_one_tensor_are_a_fault(tmp_path):
    tensors = pretrained()
    tensors["bert.encoder.layer.0.dense.bias"] = torch.zeros(4)
    model = backbone()
    model.wrappers = ("bert.",)
    with pytest.raises(UserError, match=r"are both 'encoder\.layer\.0\.dense\.bias'"):
        load_weights(model, saved(tmp_path, tensors))


def test_a_tied_tensor_is_stored_once(tmp_path):
    model = backbone(2)
    model.stages["layer1"].dense = model.stages["layer0"].dense
    tensors = {
        k: v for k, v in pretrained(2).items() if not k.startswith("encoder.layer.1.de")
    }
    report = load_weights(model, saved(tmp_path, tensors))
    assert report.loaded == 12
    assert report.loaded_parameters == 16 + 4 + 2 * 8


def test_quantised_weights_are_refused(tmp_path):
    tensors = pretrained()
    name = "encoder.layer.0.dense.weight"
    tensors[name] = torch.zeros(4, 4, dtype=torch.int8)
    with pytest.raises(UserError, match="is int8 in the weights, float32"):
        load_weights(backbone(), saved(tmp_path, tensors))


# The report


def test_report_as_a_table_and_as_json(tmp_path):
    tensors = pretrained()
    tensors["cls.bias"] = torch.ones(1)
    tensors["cls.weight"] = torch.ones(1)
    report = load_weights(backbone(), saved(tmp_path, tensors))
    from dataclasses import replace

    report = replace(
        report,
        new=("head.weight", "head.bias"),
        stages=(
            StageTransfer("layer0", 28, False, 0.25),
            StageTransfer("layer1", 28, True, 0.5),
            StageTransfer("head", 10, True, 1.0),
        ),
    )
    table = report.to_dict()
    assert json.loads(json.dumps(table)) == table
    assert table["parameters"] == {"total": 66, "frozen": 28, "trainable": 38}
    assert table["skipped"][0] == {"name": "cls.bias", "why": "pretraining head"}
    assert table["stages"][0] == {
        "name": "layer0",
        "parameters": 28,
        "trainable_at_start": False,
        "learning_rate_factor": 0.25,
        "fixed": 0,
    }
    assert table["new"] == ["head.weight", "head.bias"]
    text = "\n".join(report.lines())
    assert "skipped        2 tensors: pretraining head" in text
    assert "loaded         21 tensors, 84 parameters" in text
    assert "38 of 66" in text
    assert report.sha256[:12] in text


@pytest.mark.parametrize(
    ("reference", "advised"),
    [("hf:org/m", True), ("hf:org/m@main", True), ("hf:org/m@" + "ab" * 20, False)],
)
def test_report_says_how_to_pin_what_moves(tmp_path, reference, advised):
    weights = saved(tmp_path, pretrained())
    moved = Weights(reference, None, weights.files, revision="ab" * 20)
    lines = "\n".join(load_weights(backbone(), moved).lines())
    assert ("pin it with hf:org/m@" + "ab" * 20 in lines) is advised


def test_a_backbone_may_make_a_tensor_fit(tmp_path: Path) -> None:
    """Of another shape is an error, unless the backbone knows what to make of it."""
    tensors = dict(backbone().upstream_state_dict())
    name = next(n for n, value in tensors.items() if value.ndim == 2)
    wide = torch.cat([tensors[name], tensors[name]], dim=1)
    source = saved(tmp_path, {**tensors, name: wide})
    with pytest.raises(UserError, match="another shape"):
        load_weights(backbone(), source)

    def fit(which: str, theirs: torch.Tensor, ours: torch.Tensor) -> object:
        return theirs[:, : ours.shape[1]] * 3, "the first half, three times as large"

    network = backbone()
    network.fit_tensor = fit  # type: ignore[method-assign, assignment]
    report = load_weights(network, source)
    assert report.fitted == ((name, "the first half, three times as large"),)
    loaded = network.upstream_state_dict()[name]
    assert torch.equal(loaded, 3 * tensors[name])
    assert "fitted         1 tensor: the first half" in "\n".join(report.lines())
    assert report.to_dict()["fitted"] == [{"name": name, "why": report.fitted[0][1]}]


def test_a_file_without_the_wrapper_fits_names_that_have_it(tmp_path: Path) -> None:
    """GPT-2 is published with bare names; ours are those of the model with its head."""
    torch.manual_seed(0)
    network = Backbone(
        {"layer0": nn.Linear(3, 3)},
        features=[],
        upstream={"stages.layer0.": "transformer.h.0."},
        wrappers=("transformer.",),
    )
    weight = torch.ones(3, 3)
    for prefix in ("", "transformer."):
        tensors = {f"{prefix}h.0.weight": weight, f"{prefix}h.0.bias": torch.ones(3)}
        load_weights(network, saved(tmp_path, tensors))
        assert torch.equal(network.state_dict()["stages.layer0.weight"], weight)


def test_a_copy_starts_as_what_it_is_a_copy_of(tmp_path: Path) -> None:
    network = Backbone(
        {"table": nn.Embedding(5, 3), "output": nn.Linear(3, 5, bias=False)},
        features=[],
        upstream={"stages.table.": "embed.", "stages.output.": "lm_head."},
        copies={"lm_head.weight": "embed.weight"},
    )
    table = torch.arange(15.0).reshape(5, 3)
    report = load_weights(network, saved(tmp_path, {"embed.weight": table}))
    assert report.loaded == 2
    assert torch.equal(network.stages["output"].weight, table)
    assert network.stages["output"].weight is not network.stages["table"].weight
    own = {"embed.weight": table, "lm_head.weight": table + 1}
    load_weights(network, saved(tmp_path, own))
    assert torch.equal(network.stages["output"].weight, table + 1)
