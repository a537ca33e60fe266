"""MONAI bundles as weights: what real ones hold is read, what is hostile is refused."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from monai.networks import nets

from headstart import assets
from headstart.assets import Asset, AssetFile
from headstart.errors import UserError
from headstart.plugins import Registry
from headstart.testing.hub import HubServer
from headstart.weights.sources import SourceContext
from headstart.weights.transfer import load_weights
from headstart_medical import bundle_files, catalogue
from headstart_medical.bundles import channel_names, resolve_bundle
from headstart_medical.definitions import NETWORKS, RefusedError, read_definition
from headstart_medical.settings import SegResNetSettings
from headstart_medical.unets import build_segresnet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headstart.weights.sources import Weights

SEGRESNET = {
    "_target_": "SegResNet",
    "spatial_dims": 3,
    "init_filters": 8,
    "in_channels": 1,
    "out_channels": 2,
    "blocks_down": [1, 1],
    "blocks_up": [1],
}
UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
}
SWIN = {"in_channels": 1, "out_channels": 2}
METADATA = {
    "version": "0.1.0",
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "channel_def": {"0": "CT"}}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen"}}},
    },
}
# What every bundle of the model zoo has beside its network.
AROUND = {
    "imports": ["$import glob", "$import os"],
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "network": "$@network_def.to(@device)",
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96]},
}


def segresnet(seed: int = 0) -> nets.SegResNet:
    torch.manual_seed(seed)
    arguments: Any = {k: v for k, v in SEGRESNET.items() if k != "_target_"}
    return nets.SegResNet(**arguments).eval()


def write_bundle(
    folder: Path,
    network: Any = SEGRESNET,
    *,
    model: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "configs/metadata.json").write_text(json.dumps(METADATA))
    whole = {**AROUND, "network_def": network, **config}
    (folder / "configs/inference.json").write_text(json.dumps(whole))
    (folder / "scripts/__init__.py").write_text(f"open({str(MARK)!r}, 'w')")
    torch.save(model or segresnet().state_dict(), folder / "models/model.pt")
    (folder / "LICENSE").write_text("\n    Apache License\n    Version 2.0\n")
    return folder


def zipped(folder: Path, path: Path, top: str = "bundle/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, top + file.relative_to(folder).as_posix())
    return path


MARK = Path("run-by-a-bundle")
"""What hostile code of these tests would write, in the working folder."""


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh cache and working folder; no test may run what a bundle brings."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    assert list(work.iterdir()) == []


def get(reference: object) -> Weights:
    return resolve_bundle(str(reference), SourceContext(Registry()))


def read(definition: Any, **config: Any) -> dict[str, Any]:
    return read_definition({**config, "network_def": definition}, "x.json").config


def config_of(weights: Weights) -> dict[str, Any]:
    assert weights.folder is not None
    found: dict[str, Any] = json.loads((weights.folder / "config.json").read_text())
    return found


def test_a_bundle_gives_the_network_it_was_made_of(tmp_path):
    original = segresnet()
    weights = get(write_bundle(tmp_path / "spleen"))
    assert weights.classes == ("background", "spleen")
    assert weights.licence == "Apache License"
    config = config_of(weights)
    assert config.pop("network") == "SegResNet"
    assert config.pop("channel_names") == ["CT"]
    tensors = weights.tensors()
    assert {n for n in tensors if n.startswith("output.")} == {
        "output.weight",
        "output.bias",
    }
    assert not any(name.startswith("conv_final.2.conv") for name in tensors)
    again = nets.SegResNet(**config).eval()
    again.load_state_dict(
        {n.replace("output.", "conv_final.2.conv."): t for n, t in tensors.items()}
    )
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(again(image), original(image))


def test_the_backbone_that_its_folder_describes_takes_every_tensor(tmp_path):
    original = segresnet()
    weights = get(write_bundle(tmp_path / "spleen"))
    settings = SegResNetSettings(name="medical/segresnet", weights="monai:spleen")
    task = {"channels": ["CT"], "dimensions": 3, "patch": [8, 8, 8]}
    backbone = build_segresnet(settings, weights.folder, task).eval()
    report = load_weights(backbone, weights)
    assert not report.reinitialised
    original.conv_final[2] = torch.nn.Identity()
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = backbone.run({"image": image}, 0, len(backbone.stages))
        assert torch.equal(found["decoded"], original(image))


def test_a_zip_gives_the_same_and_keeps_no_pickle(tmp_path, untouched):
    folder = write_bundle(tmp_path / "spleen")
    expected = get(folder)
    for top in ("", "spleen/"):
        found = get(zipped(folder, tmp_path / f"b{len(top)}.zip", top))
        assert config_of(found) == config_of(expected)
        assert found.sha256 == expected.sha256
        assert found.classes == expected.classes
    assert {p.suffix for p in untouched.rglob("*") if p.is_file()} == {
        ".safetensors",
        ".json",
    }


def test_a_bundle_is_converted_once_and_anew_when_it_changes(tmp_path):
    folder = write_bundle(tmp_path / "spleen")
    first = get(folder)
    before = first.files[0].stat().st_mtime_ns
    assert get(folder).files == first.files
    assert first.files[0].stat().st_mtime_ns == before
    write_bundle(folder, model=segresnet(1).state_dict())
    assert get(folder).sha256 != first.sha256
    write_bundle(folder, {**SEGRESNET, "dropout_prob": 0.1})
    assert config_of(get(folder))["dropout_prob"] == 0.1


def test_a_bundle_of_an_asset(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "spleen")
    expected = get(folder)
    digest = "0" * 64
    files = {
        "zip": (AssetFile("spleen.zip", digest, 1, ("pypi:x==1#x",)),),
        "folder": (AssetFile("configs/metadata.json", digest, 1, ("pypi:x==1#x",)),),
    }
    zipped(folder, tmp_path / "spleen.zip").rename(folder / "spleen.zip")
    monkeypatch.setattr(
        assets,
        "find_asset",
        lambda name, _: Asset(name, "headstart_medical", "A", "MIT", files[name]),
    )
    monkeypatch.setattr(assets, "fetch", lambda asset, progress: folder)
    for name in files:
        weights = get(f"asset:{name}")
        assert weights.licence == "MIT"
        assert weights.sha256 == expected.sha256


def test_the_model_zoo_on_the_hub(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "spleen")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "models/model.ts").write_bytes(b"a program")
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        for name in ("HF_HUB_CACHE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        commit = hub.publish("MONAI/spleen_ct_segmentation", folder)
        weights = get("spleen_ct_segmentation")
        assert weights.revision == commit
        assert weights.licence == "apache-2.0"
        assert config_of(weights)["network"] == "SegResNet"
        assert weights.tensors().keys() == get(folder).tensors().keys()
        # Neither programs nor scripts are asked for.
        assert hub.downloads("model.pt")
        assert not hub.downloads("model.ts") and not hub.downloads("__init__.py")
        with pytest.raises(UserError, match="MONAI/spleen_mr"):
            get("spleen_mr")


def test_yaml_and_references_are_read(tmp_path):
    folder = write_bundle(tmp_path / "b")
    (folder / "configs/inference.json").unlink()
    (folder / "configs/inference.yaml").write_text(
        "imports: ['$import glob']\n"
        "labels: {background: 0, spleen: 1}\n"
        "sizes: {channels: [1, 2], filters: 4}\n"
        "network_def: '@net'\n"
        "net:\n"
        "  _target_: monai.networks.nets.SegResNet\n"
        "  spatial_dims: 3\n"
        "  init_filters: '$@sizes::filters * 2'\n"
        "  in_channels: '@sizes#channels#0'\n"
        "  out_channels: '$len(@labels)'\n"
        "  blocks_down: [1, '$@sizes::channels::1 - 1']\n"
        "  blocks_up: [1]\n"
    )
    expected = {k: v for k, v in SEGRESNET.items() if k != "_target_"}
    assert config_of(get(folder)) == {
        "network": "SegResNet",
        "channel_names": ["CT"],
        **expected,
    }


def test_definitions_of_the_model_zoo():
    deepedit = {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": "$len(@label_names) + @number_intensity_ch",
        "out_channels": "$len(@label_names)",
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, [2, 2, 1]],
        "upsample_kernel_size": [2, [2, 2, 1]],
        "norm_name": "instance",
        "deep_supervision": False,
        "res_block": True,
    }
    labels = {"spleen": 1, "background": 0}
    found = read(deepedit, label_names=labels, number_intensity_ch=1, **AROUND)
    assert found["in_channels"] == 3 and found["out_channels"] == 2
    btcv = {
        "_target_": "SwinUNETR",
        "spatial_dims": 3,
        "img_size": 96,
        "in_channels": 1,
        "out_channels": 14,
        "feature_size": 48,
        "use_checkpoint": True,
    }
    # MONAI before 1.5 wanted the size, which no parameter depends on.
    assert "img_size" not in read(btcv)
    dense = {
        "_target_": "monai.networks.nets.densenet.DenseNet121",
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 4,
        "pretrained": True,
    }
    found = read(dense)
    assert found["network"] == "DenseNet"
    assert found["block_config"] == [6, 12, 24, 16]
    assert "pretrained" not in found


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_by_its_depth_is_the_class_with_its_layers(depth):
    spec = {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 3}
    config = read({"_target_": f"resnet{depth}", **spec})
    assert config.pop("network") == "ResNet"
    whole = getattr(nets, f"resnet{depth}")(pretrained=False, **spec)
    shapes = {name: t.shape for name, t in nets.ResNet(**config).state_dict().items()}
    assert shapes == {name: t.shape for name, t in whole.state_dict().items()}


def test_every_network_is_one_of_monais_with_a_backbone():
    for network in NETWORKS.values():
        assert callable(getattr(nets, network.name))
        assert catalogue.NETWORKS[network.backbone].upstream == network.kind


def test_a_dynunets_second_names_are_left_out(tmp_path):
    spec = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [2, 2, 2],
    }
    network: Any = nets.DynUNet(**spec)
    folder = write_bundle(
        tmp_path / "b", {"_target_": "DynUNet", **spec}, model=network.state_dict()
    )
    names = get(folder).tensors().keys()
    assert {"output.weight", "input_block.conv1.conv.weight"} <= names
    assert not any("skip_layers" in name for name in names)


def test_names_that_training_on_several_gpus_made_are_undone(tmp_path):
    plain = get(write_bundle(tmp_path / "b"))
    parallel = {f"module.{n}": t for n, t in segresnet().state_dict().items()}
    found = get(write_bundle(tmp_path / "c", model=parallel))
    assert found.tensors().keys() == plain.tensors().keys()


def test_channel_names_are_taken_only_when_every_channel_has_its_own():
    def names(channels: Any, outputs: int | None = 2) -> tuple[str, ...]:
        output = {"pred": {"channel_def": channels}}
        return channel_names(
            {"network_data_format": {"outputs": output}}, "outputs", outputs
        )

    assert names({"1": "b", "0": "a"}) == ("a", "b")
    assert names({"0": "a", "1": "b"}, 3) == ()
    assert names({"0": "a", "1": "b"}, None) == ()
    assert names({"0": "a", "2": "b"}) == ()
    assert names({"0": "a", "1": "a"}) == ()
    assert names({"0": "a", "1": 7}) == ()
    assert names({"0": "a", "1": "\x1b[2J"}) == ()
    assert names(["a", "b"]) == ()
    assert channel_names({"network_data_format": []}, "outputs", 2) == ()
    assert channel_names({}, "outputs", 2) == ()


SHELL = f"os.system('touch {MARK}')"
EXPRESSIONS = {
    "import statement": "$import os",
    "several statements": f"$import os; {SHELL}",
    "import by its function": f"$__import__('os').system('touch {MARK}')",
    "call of a name": f"$open('{MARK}', 'w')",
    "call of a lambda": "$(lambda: 1)()",
    "attribute": "$().__class__.__bases__[0].__subclasses__()",
    "attribute of a reference": "$@other.__class__",
    "subscript": "$@other['a']",
    "comprehension": "$[x for x in (1,)]",
    "conditional": "$1 if True else 2",
    "assignment": "$(x := 1)",
    "formatted text": "$f'{1}'",
    "power": "$9**9**9",
    "long text": "$'a' * 99999999",
    "large number": "$4096 * 4096",
    "division by zero": "$1 // 0",
    "deep nesting": "$" + "(" * 150 + "1" + ")" * 40,
    "long expression": "$" + "1 + " * 200 + "1",
    "length of a call": "$len(open('x'))",
    "reference that runs on": f"@other.{SHELL}",
    "macro of another file": "%/etc/passwd::root",
    "reference to nothing": "@nothing",
    "reference to itself": "@circle",
    "reference to an expression": "@hostile",
    "object in a shell": "@shell",
    "too large": 10**6,
    "too large for a float": 10**400,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "long list": [1] * 100,
    "deep list": json.loads("[" * 60 + "]" * 60),
    "object": {"_target_": "subprocess.run", "args": ["touch", str(MARK)]},
    "nested object": ["relu", {"_target_": "os.system", "command": f"touch {MARK}"}],
    "control characters": "\x1b]0;x\x07",
}
CONFIG = {
    "other": {"a": 1},
    "circle": "$@round",
    "round": "@circle",
    "hostile": f"$__import__('os').system('touch {MARK}')",
    "shell": {"_target_": "os.system", "command": f"touch {MARK}"},
}


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_an_argument_that_is_more_than_data_is_refused(tmp_path, untouched, kind):
    folder = write_bundle(tmp_path / "b", {**UNET, "act": EXPRESSIONS[kind]}, **CONFIG)
    with pytest.raises(RefusedError, match=r"act|too many entries") as caught:
        get(folder)
    assert str(folder / "configs/inference.json") in str(caught.value)
    assert not list(untouched.rglob("*"))


DEFINITIONS = {
    "shell": {"_target_": "os.system", "command": f"touch {MARK}"},
    "python": {"_target_": "builtins.eval", "source": SHELL},
    "the bundle's own code": {"_target_": "scripts.network.Network"},
    "beside MONAI's networks": {"_target_": "monai.networks.nets.evil.x.UNet"},
    "another package's": {"_target_": "evil.UNet"},
    "part of MONAI": {"_target_": "monai.bundle.run"},
    "expression as a target": {"_target_": "$@shell"},
    "no text as a target": {"_target_": ["UNet"]},
    "MONAI's network without a backbone": {"_target_": "FlexibleUNet"},
    "required imports": {**UNET, "_requires_": "$import os"},
    "debugger": {**UNET, "_mode_": "debug"},
    "callable": {**UNET, "_mode_": "callable"},
    "unknown argument": {**UNET, "weights_file": "/etc/passwd"},
    "argument of the wrong kind": {**UNET, "channels": "many"},
    "expression": f"$eval({SHELL!r})",
    "reference to itself": "@network_def",
    "list": [UNET],
    "gigantic": {**UNET, "channels": [4096] * 8, "strides": [1] * 7},
    "endless": {**SEGRESNET, "blocks_down": [4096, 4096]},
    "many layers": {
        "_target_": "DenseNet121",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "block_config": [64] * 5,
    },
    "wide": {"_target_": "SwinUNETR", **SWIN, "feature_size": 4092},
    "wide windows": {"_target_": "SwinUNETR", **SWIN, "window_size": 40},
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_network_that_is_not_plainly_monais_is_refused(tmp_path, untouched, kind):
    folder = write_bundle(tmp_path / "b", DEFINITIONS[kind], **CONFIG)
    with pytest.raises(RefusedError, match="network_def"):
        get(folder)
    assert not list(untouched.rglob("*"))


def test_a_network_far_larger_than_its_parameters_is_refused(tmp_path, untouched):
    # A few lines of text.
    vast = {"_target_": "UNETR", **SWIN, "img_size": [256, 256, 256]}
    folder = write_bundle(tmp_path / "b", vast)
    said = r"95,\d{3},\d{3} numbers(.|\n)*model\.pt has 24,698"
    with pytest.raises(RefusedError, match=said):
        get(folder)
    assert not [p for p in untouched.rglob("config.json") if p.is_file()]


def test_a_network_of_a_later_release_may_have_more_than_its_file(tmp_path):
    known = segresnet().state_dict()
    del known["up_layers.0.0.norm1.weight"]
    assert get(write_bundle(tmp_path / "b", model=known)).tensors()


def test_what_is_said_of_a_value_is_short_however_large_it_is():
    class Counted(str):
        shown = 0

        def __repr__(self) -> str:
            Counted.shown += 1
            return "x"

    many: Any = [Counted("x")] * 9
    for _ in range(4):
        # As YAML's aliases make them.
        many = [many] * 9
    for definition in (
        many,
        {"_target_": many},
        {**UNET, "_mode_": many},
        {**UNET, "act": {"_x_": many}},
        {**UNET, "act": 16**9000},
        {**UNET, 16**9000: 1},
    ):
        with pytest.raises(RefusedError) as caught:
            read(definition)
        assert len(str(caught.value)) < 1000
    assert Counted.shown < 100


def test_a_reference_that_leads_to_itself_is_told():
    with pytest.raises(RefusedError, match="act refers to itself: '@round'"):
        read({**UNET, "act": "@round"}, **CONFIG)


def test_the_nearest_known_network_is_offered():
    with pytest.raises(RefusedError, match="did you mean 'SegResNet'"):
        read({"_target_": "SegResNetDS"})


class _Shell:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARK}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_that_runs_code_is_refused(tmp_path, untouched, packed):
    folder = write_bundle(tmp_path / "b", model={"x": _Shell()})
    source = zipped(folder, tmp_path / "b.zip") if packed else folder
    with pytest.raises(UserError, match="refused: it is not a plain pickle"):
        get(source)
    (folder / "models/model.pt").write_bytes(pickle.dumps(_Shell()))
    source = zipped(folder, tmp_path / "c.zip") if packed else folder
    with pytest.raises(UserError, match="refused: it is not a plain pickle"):
        get(source)
    assert not [p for p in untouched.rglob("*") if p.is_file()]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_a_program_and_not_loaded(tmp_path):
    folder = write_bundle(tmp_path / "b")
    script = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(script, str(folder / "models/model.pt"))
    with pytest.raises(UserError, match="refused"):
        get(folder)
    (folder / "models/model.pt").rename(folder / "models/model.ts")
    with pytest.raises(UserError, match="TorchScript model, which is a program"):
        get(folder)


MEMBERS = {
    "parent": "../evil.py",
    "parent further in": "bundle/configs/../../../evil.py",
    "absolute": "/tmp/evil.py",
    "backslashes": "..\\evil.py",
    "drive": "C:/evil.py",
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_zip_whose_members_leave_its_folder_is_refused(tmp_path, untouched, kind):
    path = zipped(write_bundle(tmp_path / "b"), tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(MEMBERS[kind], "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="leaves the archive's folder"):
        get(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = zipped(write_bundle(tmp_path / "b"), tmp_path / "b.zip")
    link = zipfile.ZipInfo("bundle/models/other.pt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        get(path)


def test_a_zip_that_unpacks_to_far_more_is_refused(tmp_path):
    path = zipped(write_bundle(tmp_path / "b"), tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle/docs/zeros", bytes(8 * 1024**2))
    with pytest.raises(UserError, match="unpacks to 8,388,608 bytes"):
        get(path)


def test_a_zip_that_is_not_one_plain_bundle_is_refused(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "b")
    path = zipped(folder, tmp_path / "two.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/configs/metadata.json", "{}")
    with pytest.raises(UserError, match="it has several bundles"):
        get(path)
    path = zipped(folder, tmp_path / "secret.zip")
    content = bytearray(path.read_bytes())
    # In the list of members: its flags.
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the member .* is encrypted"):
        get(path)
    (folder / "configs/inference.json").write_bytes(os.urandom(4 * 1024**2 + 1))
    with pytest.raises(UserError, match="more than 4,194,304 bytes"):
        get(zipped(folder, tmp_path / "long.zip"))
    monkeypatch.setattr(bundle_files, "MEMBER_LIMIT", 4)
    with pytest.raises(UserError, match="has 5 members"):
        get(zipped(folder, tmp_path / "many.zip"))


def test_a_zip_that_states_more_bytes_than_it_has_is_refused(tmp_path):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(8 * 1024**2))
    content = bytearray(path.read_bytes())
    # In the list of members: compressed size.
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 20, 2**30)
    path.write_bytes(content)
    with pytest.raises(UserError, match="unpacks to 8,388,608 bytes"):
        get(path)


def test_a_damaged_zip_is_refused(tmp_path, untouched):
    path = zipped(write_bundle(tmp_path / "b"), tmp_path / "b.zip")
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="no zip, or damaged"):
        get(path)
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in (tmp_path / "b").rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(tmp_path / "b").as_posix())
        offset = archive.getinfo("models/model.pt").header_offset + 2000
    content = bytearray((tmp_path / "c.zip").read_bytes())
    content[offset] ^= 255
    (tmp_path / "c.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pt: is damaged"):
        get(tmp_path / "c.zip")
    content[offset - 2000] ^= 255
    (tmp_path / "c.zip").write_bytes(content)
    with pytest.raises(UserError, match="Bad magic number for file header"):
        get(tmp_path / "c.zip")
    assert not [p for p in untouched.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("inference.json", "{'network_def': 1}"),
        ("inference.json", "[" * 100_000),
        ("inference.json", "[1, 2]"),
        ("inference.yaml", f"a: !!python/object/apply:os.system ['touch {MARK}']"),
        ("inference.yaml", f"a: !!python/name:os.system '{MARK}'"),
        ("inference.yaml", "a: [unclosed"),
    ],
)
def test_a_configuration_that_is_no_plain_table_is_refused(tmp_path, name, text):
    folder = write_bundle(tmp_path / "b")
    (folder / "configs/inference.json").unlink()
    (folder / "configs" / name).write_text(text)
    with pytest.raises(UserError, match=r"no plain JSON or YAML|a table is expected"):
        get(folder)


def test_aliases_that_multiply_are_refused(tmp_path):
    folder = write_bundle(tmp_path / "b")
    (folder / "configs/inference.json").unlink()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    lines += ["network_def: {_target_: UNet, spatial_dims: 3, act: '@a11'}"]
    (folder / "configs/inference.yaml").write_text("\n".join(lines))
    with pytest.raises(RefusedError, match="too many entries"):
        get(folder)


def test_what_is_no_bundle_is_said(tmp_path):
    folder = write_bundle(tmp_path / "zoo" / "spleen")
    with pytest.raises(UserError, match="no MONAI bundle") as caught:
        get(folder.parent)
    assert f"did you mean {str(folder)!r}" in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'spleen'"):
        get(folder.parent / "splen")
    (folder / "models/model.pt").unlink()
    with pytest.raises(UserError, match=r"0 files of parameters"):
        get(folder)
    (folder / "configs/inference.json").write_text("{}")
    with pytest.raises(UserError, match="no configuration of the bundle"):
        get(folder)
    (folder / "configs/inference.json").write_bytes(b" " * (4 * 1024**2 + 1))
    with pytest.raises(UserError, match="more than 4,194,304 bytes"):
        get(folder)
