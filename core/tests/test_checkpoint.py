"""Checkpoints are whole or not there, and every change of a byte is seen."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from headstart import checkpoint as module
from headstart.checkpoint import (
    MANIFEST,
    Checkpoint,
    faults_of,
    mark_best,
    newest_checkpoint,
    open_checkpoint,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from headstart.errors import HeadstartError, UserError
from headstart.fine_tuning import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headstart.plugins import Registry


def write(folder: Path, step: int, size: int = 6) -> Checkpoint:
    tensors = {
        "model": {"weight": torch.arange(float(size)), "count": torch.tensor(step)},
        "optimizer": {"weight/exp_avg": torch.ones(2, 3)},
    }
    return write_checkpoint(folder, step, tensors, {"step": step, "best": 0.5})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 7)
    assert {path.name for path in (tmp_path / "step-000007").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        MANIFEST,
    }
    found, passed_over = newest_checkpoint(tmp_path)
    assert (found.step, passed_over) == (7, [])
    assert found.state() == {"step": 7, "best": 0.5}
    assert torch.equal(found.tensors("model")["weight"], torch.arange(6.0))
    assert torch.equal(found.tensors("model")["count"], torch.tensor(7))
    assert torch.equal(found.tensors("optimizer")["weight/exp_avg"], torch.ones(2, 3))
    assert found.tensors("average") == {}
    assert torch.equal(found.kept_model()["weight"], torch.arange(6.0))


def test_the_kept_model_is_the_moving_average(tmp_path: Path) -> None:
    tensors = {
        "model": {"weight": torch.zeros(2)},
        "average": {"n_averaged": torch.tensor(3), "module.weight": torch.ones(2)},
    }
    kept = write_checkpoint(tmp_path, 1, tensors, {}).kept_model()
    assert kept.keys() == {"weight"}
    assert torch.equal(kept["weight"], torch.ones(2))


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    places = [
        (path, position)
        for path in sorted(folder.iterdir())
        for position in range(path.stat().st_size)
    ]
    every_file = {path: (path, path.stat().st_size // 2) for path, _ in places}
    chosen = [*random.Random(0).sample(places, 200), *every_file.values()]
    assert len(every_file) == 4
    for path, position in chosen:
        flip(path, position)
        assert faults_of(folder), f"{path.name}, byte {position}"
        with pytest.raises(UserError):
            read_checkpoint(folder)
        flip(path, position)
        assert not faults_of(folder)


def test_truncation_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert faults_of(folder), f"{path.name} cut to {length} bytes"
        path.write_bytes(whole + b" ")
        assert faults_of(folder), f"{path.name} with a space more"
        path.write_bytes(whole)
    assert not faults_of(folder)


def test_missing_and_foreign_files_are_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    (folder / "extra.safetensors").write_bytes(b"")
    (folder / "state.json").unlink()
    assert [fault.what for fault in faults_of(folder)] == [
        "extra.safetensors is not in the manifest",
        "state.json is missing",
    ]


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    flip(tmp_path / "step-000003" / "model.safetensors", 100)
    (tmp_path / "step-000002" / MANIFEST).unlink()
    found, passed_over = newest_checkpoint(tmp_path)
    assert found.step == 1
    newest, older = passed_over
    assert newest.what == "model.safetensors was changed"
    assert newest.where.endswith("step-000003")
    assert older.what == "the manifest cannot be read"
    assert older.where.endswith("step-000002")


def test_no_good_checkpoint_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        newest_checkpoint(tmp_path / "nowhere")
    flip(write(tmp_path, 1).folder / "state.json", 3)
    with pytest.raises(UserError, match=r"state\.json was changed"):
        newest_checkpoint(tmp_path)


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        write(tmp_path, step)
    assert newest_checkpoint(tmp_path)[0].step == 1_000_000
    prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]


def test_best_is_opened_where_it_is_marked(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    assert open_checkpoint(tmp_path)[0].step == 2, "unmarked: the newest"
    mark_best(second)
    mark_best(first)
    assert os.readlink(tmp_path / "best") == "step-000001", "a relative link"
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert open_checkpoint(moved) == (Checkpoint(moved / "step-000001", 1), [])
    flip(moved / "step-000001" / "model.safetensors", 90)
    found, passed_over = open_checkpoint(moved)
    assert found.step == 2
    assert [fault.what for fault in passed_over] == ["model.safetensors was changed"]
    shutil.rmtree(moved / "step-000001")
    found, passed_over = open_checkpoint(moved)
    assert found.step == 2
    assert [fault.what for fault in passed_over] == ["there is no checkpoint"]


def test_prune_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    written = [write(tmp_path, step) for step in range(1, 6)]
    mark_best(written[1])
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best",
        "step-000002",
        "step-000004",
        "step-000005",
    ]


def test_partial_folders_are_ignored(tmp_path: Path) -> None:
    """What a killed process leaves behind."""
    good = write(tmp_path, 1)
    shutil.copytree(good.folder, tmp_path / ".partial-step-000002-77")
    (tmp_path / ".partial-step-000003-77").mkdir()
    assert newest_checkpoint(tmp_path) == (Checkpoint(good.folder, 1), [])
    prune(tmp_path, 1)
    assert good.folder.is_dir()


def test_a_step_is_written_anew_as_a_whole(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    flip(folder / "model.safetensors", 100)
    (folder / "left-over").write_text("")
    write(tmp_path, 1)
    assert not faults_of(folder)


# A disk that is full


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where",
    ["os.fsync", "pathlib.Path.open", "pathlib.Path.rename", "os.mkdir"],
)
def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whatever call it is that fails."""
    write(tmp_path, 1)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(where, full_disk)
        with pytest.raises(HeadstartError, match="the disk is full") as caught:
            write(tmp_path, 2)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    (fault,) = caught.value.faults
    assert fault.where.endswith("step-000002")
    assert "No space left on device" in fault.why
    assert "make room" in fault.fix


def test_other_errors_are_not_called_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise TypeError("a fault of ours")

    monkeypatch.setattr(module, "_safetensors", broken)
    with pytest.raises(TypeError, match="a fault of ours"):
        write(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_quota_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """The system itself refuses to write on, in the middle of a file."""
    write(tmp_path, 1)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(HeadstartError) as caught:
            write(tmp_path, 2, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the checkpoint cannot be written" in str(caught.value)
    assert "File too large" in str(caught.value)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_leaves_the_earlier_checkpoint(small_disk: Path) -> None:
    checkpoints = small_disk / "checkpoints"
    write(checkpoints, 1)
    before = contents(checkpoints)
    for size in (1_000_000, 100_000, 30_000):
        with pytest.raises(HeadstartError, match="the disk is full"):
            # Two of the smallest do not fit either.
            write(checkpoints, 2, size)
            write(checkpoints, 3, size)
        shutil.rmtree(checkpoints / "step-000002", ignore_errors=True)
        assert contents(checkpoints) == before
        assert [path.name for path in checkpoints.iterdir()] == ["step-000001"]


def test_a_run_on_a_full_disk_says_so(registry: Registry, small_disk: Path) -> None:
    folder = small_disk / "run"
    wide = {"backbone.width": 200, "data.count": 40, "train.epochs": 1}
    with pytest.raises(HeadstartError, match="the disk is full"):
        run("toy/ring", wide, folder=folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "the disk is full" in summary["reason"]
    assert list((folder / "checkpoints").iterdir()) == []


def test_what_never_trains_takes_its_place_once(tmp_path: Path) -> None:
    frozen = {"base": torch.arange(6.0).reshape(2, 3)}
    written = [
        write_checkpoint(
            tmp_path,
            step,
            {"model": {"head": torch.full((2,), step)}, "frozen": frozen},
            {},
        )
        for step in (1, 2)
    ]
    files = [each.folder / "frozen.safetensors" for each in written]
    assert files[0].samefile(files[1])
    for step, each in enumerate(written, start=1):
        assert not faults_of(each.folder)
        kept = each.kept_model()
        assert kept.keys() == {"base", "head"}
        assert torch.equal(kept["base"], frozen["base"]) and kept["head"][0] == step
    assert load_file(written[1].folder / "model.safetensors").keys() == {"head"}


def test_damaged_or_other_frozen_tensors_are_not_taken_over(tmp_path: Path) -> None:
    frozen = {"base": torch.arange(6.0)}
    model = {"head": torch.ones(2)}
    first = write_checkpoint(tmp_path, 1, {"model": model, "frozen": frozen}, {})
    path = first.folder / "frozen.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    second = write_checkpoint(tmp_path, 2, {"model": model, "frozen": frozen}, {})
    assert not faults_of(second.folder)
    assert torch.equal(second.kept_model()["base"], frozen["base"])
    wider = {"base": torch.arange(8.0)}
    third = write_checkpoint(tmp_path, 3, {"model": model, "frozen": wider}, {})
    assert torch.equal(third.kept_model()["base"], wider["base"])
