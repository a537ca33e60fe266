"""deepbrain's graph as weights: read without TensorFlow, checked byte by byte."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from headstart import assets
from headstart.assets import load_manifest
from headstart.errors import UserError
from headstart.plugins import PluginInfo, Registry
from headstart.weights.sources import SourceContext
from headstart_medical import graph
from headstart_medical.deepbrain import deepbrain_tensors, resolve_deepbrain
from headstart_medical.graph import read_constants

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FLOAT, INT = 1, 3
WIDTHS = (8, 16, 32)


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; negative numbers as 64 bits."""
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(shape: tuple[int, ...], content: bytes, kind: int = FLOAT) -> bytes:
    axes = b"".join(field(2, field(1, size)) for size in shape)
    return field(1, kind) + field(2, axes) + content


def packed(*values: float) -> bytes:
    return field(5, struct.pack(f"<{len(values)}f", *values))


def node(name: str, value: bytes, kind: str = "Const") -> bytes:
    attribute = field(1, b"value") + field(2, field(8, value))
    inner = field(1, name.encode()) + field(2, kind.encode()) + field(5, attribute)
    return field(1, inner)


def constant(name: str, array: np.ndarray) -> bytes:
    return node(name, tensor(array.shape, field(4, array.astype("<f4").tobytes())))


def kernels(seed: int = 0) -> dict[str, np.ndarray]:
    """The graph's constants, with deepbrain's shapes and random values."""
    generator = np.random.default_rng(seed)
    a, b, c = WIDTHS
    wide = [(1, a), (a, a), (a, b), (b, b), (b, c), (c, c), (2 * c, c), (c, b), (b, a)]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (into, out) in enumerate(wide):
        name = f"conv3d_{i}" if i else "conv3d"
        shapes |= {f"{name}/kernel": (3, 3, 3, into, out), f"{name}/bias": (out,)}
    for i, (into, out) in enumerate([(c, c), (c, b), (b, a)]):
        name = f"conv3d_transpose_{i}" if i else "conv3d_transpose"
        shapes[f"{name}/kernel"] = (3, 3, 3, out, into)
    shapes |= {"conv3d_9/kernel": (1, 1, 1, a, 1), "conv3d_9/bias": (1,)}
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_graph(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    placeholder = field(1, field(1, b"img") + field(2, b"Placeholder"))
    path.write_bytes(
        placeholder + b"".join(constant(name, array) for name, array in arrays.items())
    )
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def context() -> SourceContext:
    return SourceContext(Registry())


def test_float_constants_are_read_and_nothing_else():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = (
        constant("kernel", array)
        + node("list", tensor((3,), packed(1.5, -2.0, 0.25)))
        # TensorFlow repeats the last value of a list that is too short.
        + node("filled", tensor((2, 2), packed(7.0)))
        + node("empty", tensor((0, 3), b""))
        + node("integers", tensor((1,), field(7, 5), kind=INT))
        + node("variable", tensor((1,), packed(1.0)), kind="Variable")
    )
    found = read_constants(data, "graph.pb")
    assert found.keys() == {"kernel", "list", "filled", "empty"}
    np.testing.assert_array_equal(found["kernel"], array)
    np.testing.assert_array_equal(found["list"], [1.5, -2.0, 0.25])
    np.testing.assert_array_equal(found["filled"], [[7, 7], [7, 7]])
    assert found["empty"].shape == (0, 3)


DAMAGED = {
    "nothing": (b"", "no nodes"),
    "text": (b"hello, world", "wire type|too soon"),
    "a length beyond the end": (varint(1 << 3 | 2) + varint(1 << 40), "too soon"),
    "an endless number": (b"\xff" * 20, "more than ten bytes"),
    "a number cut short": (b"\x0a\xff", "inside a number"),
    "a number for a message": (field(1, 5), "number stands where"),
    "an unknown wire type": (b"\x0b", "wire type 3"),
    "a name that is no text": (field(1, field(1, b"\xff\xfe")), "UTF-8"),
    "two nodes of a name": (node("a", tensor((1,), packed(1.0))) * 2, "two nodes"),
    "bytes of another size": (
        node("a", tensor((2, 2), field(4, b"\0" * 12))),
        "12 bytes",
    ),
    "more values than fit": (node("a", tensor((1,), packed(1, 2))), "8 bytes"),
    "a huge constant of one value": (
        node("a", tensor((1 << 20, 1 << 20), packed(1.0))),
        "larger than",
    ),
    "a negative axis": (node("a", tensor((-1,), packed(1.0))), "shape"),
    "too many axes": (node("a", tensor((1,) * 9, packed(1.0))), "shape"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_graphs_are_refused_with_the_reason(kind):
    data, reason = DAMAGED[kind]
    with pytest.raises(UserError, match=reason) as caught:
        read_constants(data, "the/graph.pb")
    assert "the/graph.pb" in str(caught.value)


def test_a_graph_cut_or_changed_anywhere_never_ends_in_another_error():
    whole = constant("a", np.ones((2, 2), np.float32)) + node(
        "b", tensor((3,), packed(1.0))
    )
    for end in range(len(whole)):
        try:
            found = read_constants(whole[:end], "x")
        except UserError:
            continue
        # Only between two nodes is there nothing to notice.
        assert list(found) == ["a"]
    chance = random.Random(0)
    for _ in range(2000):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(whole))] = chance.randrange(256)
        try:
            read_constants(bytes(changed), "x")
        except UserError:
            pass


def test_constants_together_have_a_limit(monkeypatch):
    # Each is filled up with its only value.
    monkeypatch.setattr(graph, "LIMIT", 4000)
    filled = [node(f"n{i}", tensor((400,), packed(1.0))) for i in range(3)]
    assert len(read_constants(b"".join(filled[:2]), "graph.pb")) == 2
    with pytest.raises(UserError, match="constants are larger than 4,000"):
        read_constants(b"".join(filled), "graph.pb")


def test_kernels_are_turned_and_the_background_gets_a_row_of_zeros(tmp_path):
    theirs = kernels()
    ours = deepbrain_tensors(write_graph(tmp_path / "graph.pb", theirs))
    assert len(ours) == len(theirs) == 23
    plain, up = theirs["conv3d_2/kernel"], theirs["conv3d_transpose_1/kernel"]
    assert ours["level1.conv1.weight"].shape == (16, 8, 3, 3, 3)
    assert ours["level1.conv1.weight"][5, 7, 0, 1, 2] == plain[0, 1, 2, 7, 5]
    # A transposed convolution keeps (in, out) in torch, (out, in) in TensorFlow.
    assert ours["up1.up.weight"].shape == (32, 16, 3, 3, 3)
    assert ours["up1.up.weight"][30, 15, 2, 0, 1] == up[2, 0, 1, 15, 30]
    assert "up1.up.bias" not in ours
    np.testing.assert_array_equal(ours["up0.conv.bias"], theirs["conv3d_8/bias"])
    assert ours["output.weight"].shape == (2, 8, 1, 1, 1)
    assert not ours["output.weight"][0].any() and ours["output.bias"][0] == 0
    np.testing.assert_array_equal(
        ours["output.weight"][1].ravel(), theirs["conv3d_9/kernel"].ravel()
    )
    # The softmax over both is the graph's sigmoid.
    features = np.random.default_rng(1).standard_normal(8)
    logits = ours["output.weight"][:, :, 0, 0, 0] @ features + ours["output.bias"]
    sigmoid = 1 / (1 + np.exp(-logits[1]))
    assert np.exp(logits[1]) / np.exp(logits).sum() == pytest.approx(sigmoid)


def test_another_networks_graph_is_refused_and_all_that_differs_is_named(tmp_path):
    arrays = kernels()
    del arrays["conv3d_4/bias"]
    arrays["conv3d_6/kernel"] = np.zeros((3, 3, 3, 32, 32), np.float32)
    path = write_graph(tmp_path / "other.pb", arrays)
    with pytest.raises(UserError) as caught:
        deepbrain_tensors(path)
    assert len(caught.value.faults) == 2
    assert "conv3d_4/bias" in str(caught.value)
    assert "(3, 3, 3, 64, 32) expected" in str(caught.value)


def test_a_file_is_converted_once(tmp_path, cache, context):
    path = write_graph(tmp_path / "graph.pb", kernels())
    weights = resolve_deepbrain(str(path), context)
    assert weights.classes == ("background", "brain")
    assert weights.folder is not None and weights.folder.parent == cache / "converted"
    [file] = weights.files
    expected = deepbrain_tensors(path)
    found = load_file(file)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    before = file.stat().st_mtime_ns
    assert resolve_deepbrain(str(path), context).files == weights.files
    assert file.stat().st_mtime_ns == before
    # What an interrupted disk left is made anew.
    file.write_bytes(file.read_bytes()[:1000])
    resolve_deepbrain(str(path), context)
    assert load_file(file).keys() == expected.keys()
    # Another graph is other weights.
    other = resolve_deepbrain(str(write_graph(tmp_path / "b.pb", kernels(1))), context)
    assert other.sha256 != weights.sha256


def test_a_damaged_file_leaves_nothing_in_the_cache(tmp_path, cache, context):
    path = write_graph(tmp_path / "graph.pb", kernels())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="too soon"):
        resolve_deepbrain(str(path), context)
    assert [p for p in cache.rglob("*") if p.is_file()] == []
    assert list((cache / "converted").iterdir()) == []


def test_the_graph_of_an_asset(tmp_path, context, monkeypatch):
    path = write_graph(tmp_path / "graph.pb", kernels())
    context.registry.plugins.append(
        PluginInfo("medical", "", "0", "loaded", package="headstart_medical")
    )
    monkeypatch.setattr(assets, "fetch", lambda asset, **_: tmp_path)
    weights = resolve_deepbrain("asset:deepbrain", context)
    assert weights.licence == "MIT"
    assert load_file(weights.files[0]).keys() == deepbrain_tensors(path).keys()
    with pytest.raises(UserError, match=r"0 \.pb files"):
        resolve_deepbrain("asset:colin27", context)


def test_what_is_not_there_is_said(tmp_path, context):
    write_graph(tmp_path / "graph.pb", kernels())
    with pytest.raises(UserError, match=r"did you mean 'graph\.pb'"):
        resolve_deepbrain(str(tmp_path / "grph.pb"), context)
    with pytest.raises(UserError, match="folder"):
        resolve_deepbrain(str(tmp_path), context)


def test_the_manifest_names_every_case_by_files_that_it_has():
    manifest = load_manifest("headstart_medical")
    graph = manifest["deepbrain"]
    assert [file.path for file in graph.files] == ["graph.pb"]
    data = {name: asset for name, asset in manifest.items() if asset.read}
    assert {"colin27", "mni152", "brain-tumours", "lung-tumours"} <= data.keys()
    for asset in data.values():
        files = {file.path for file in asset.files}
        named = [
            file
            for case in asset.read["cases"]
            for file in (*case["images"], *case["masks"])
        ]
        assert sorted(named) == sorted(files)
        for case in asset.read["cases"]:
            assert len(case["images"]) == len(asset.read["channels"])
            foreground = len(asset.read["labels"]) - 1
            assert len(case["masks"]) in (1, foreground)
