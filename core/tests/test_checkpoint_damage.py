"""Every change of a byte and every cut of a checkpoint's files is found."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import headstart
from headstart.callbacks import Callback
from headstart.checkpoint import (
    MANIFEST,
    Checkpoint,
    faults_of,
    mark_best,
    newest_checkpoint,
    open_checkpoint,
    prune,
    put_best_back,
    write_checkpoint,
)
from headstart.errors import HeadstartError, UserError
from headstart.runs import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headstart.plugins import Registry

RUN = {
    "data.count": 60,
    "train.max_steps": 6,
    "train.batch_size": 12,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 2,
}


def write(folder: Path, step: int) -> Checkpoint:
    tensors = {
        "model": {"weight": torch.arange(24.0).view(4, 6), "count": torch.tensor(step)},
        "optimizer": {"weight/exp_avg": torch.full((4, 6), float(step))},
    }
    state = {"step": step, "pending": [0.5, float("nan")], "best": None}
    return write_checkpoint(folder, step, tensors, state)


# Found


def put(path: Path, content: bytes) -> None:
    """A new file: truncating one makes some file systems wait for the disk."""
    path.unlink()
    path.write_bytes(content)


def test_every_value_of_every_byte_is_held(tmp_path: Path) -> None:
    """A change of any byte to any other value, 1,200 of them drawn evenly."""
    folder = write(tmp_path, 1).folder
    generator = random.Random(11)
    files = sorted(folder.iterdir())
    assert len(files) == 4
    tried = 0
    for path in files:
        whole = path.read_bytes()
        for _ in range(300):
            place = generator.randrange(len(whole))
            value = generator.choice([v for v in range(256) if v != whole[place]])
            put(path, whole[:place] + bytes([value]) + whole[place + 1 :])
            assert faults_of(folder), (path.name, place, value)
            tried += 1
        put(path, whole)
    assert tried == 1200
    assert not faults_of(folder)


def test_every_byte_of_the_manifest_matters(tmp_path: Path) -> None:
    """Nothing holds its hash: white space and other spellings have to be found too."""
    folder = write(tmp_path, 1).folder
    path = folder / MANIFEST
    whole = path.read_bytes()
    for place, byte in enumerate(whole):
        for value in {byte ^ 1, *b" \r"} - {byte}:
            put(path, whole[:place] + bytes([value]) + whole[place + 1 :])
            assert faults_of(folder), (place, value)
        put(path, whole[:place] + whole[place + 1 :])
        assert faults_of(folder), f"byte {place} removed"
        put(path, whole[:place] + b" " + whole[place:])
        assert faults_of(folder), f"space before byte {place}"


def test_every_cut_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for length in range(len(whole)):
            put(path, whole[:length])
            assert faults_of(folder), f"{path.name} cut to {length} bytes"
        put(path, whole + b"\0")
        assert faults_of(folder), f"{path.name} with a byte more"
        put(path, whole)
    assert not faults_of(folder)


def test_a_file_that_became_a_folder_is_a_fault(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    path = folder / "state.json"
    size = path.stat().st_size
    path.unlink()
    path.mkdir()
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["state.json"]["size"] = path.stat().st_size
    text = json.dumps(manifest, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text)
    assert size != path.stat().st_size
    assert [fault.what for fault in faults_of(folder)] == ["state.json was changed"]


# Back to one that holds


class Listen(Callback):
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_message(self, text: str) -> None:
        self.told.append(text)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("step-*/*")}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", MANIFEST]
)
def test_resume_falls_back_and_says_so(
    name: str, tmp_path: Path, registry: Registry
) -> None:
    done = headstart.run("toy/ring", RUN, folder=tmp_path / "run")
    checkpoints = done.folder / "checkpoints"
    expected, metrics = files(checkpoints), done.metrics
    newest, passed_over = newest_checkpoint(checkpoints)
    assert (newest.step, passed_over) == (6, [])
    damage(newest.folder / name)
    listener = Listen()
    again = headstart.resume(done.folder, callbacks=[listener])
    assert any("step-000006 is damaged" in text for text in listener.told)
    assert "going on from step-000004" in listener.told
    assert files(checkpoints) == expected
    assert again.metrics == metrics


def test_the_best_falls_back_as_well(tmp_path: Path, registry: Registry) -> None:
    done = headstart.run("toy/ring", RUN, folder=tmp_path / "run")
    checkpoints = done.folder / "checkpoints"
    best, _ = open_checkpoint(checkpoints)
    damage(best.folder / "model.safetensors")
    found, passed_over = open_checkpoint(checkpoints)
    assert found.step != best.step
    assert passed_over[0].where.endswith(best.folder.name)
    assert passed_over[0].what == "model.safetensors was changed"
    assert len(Run(done.folder).predict(["0.1,0.2"])) == 1


def test_nothing_that_holds_is_an_error_with_every_fault(
    tmp_path: Path, registry: Registry
) -> None:
    done = headstart.run("toy/ring", RUN, folder=tmp_path / "run")
    folders = sorted((done.folder / "checkpoints").glob("step-*"))
    for folder in folders:
        damage(folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        headstart.resume(done.folder)
    assert len(caught.value.faults) == len(folders) >= 2


def test_a_damaged_future_does_not_push_out_what_holds(tmp_path: Path) -> None:
    """Going on from step 2, a damaged step 9 must not count as the newest to keep."""
    for step in (2, 9):
        write(tmp_path, step)
    damage(tmp_path / "step-000009" / "model.safetensors")
    write(tmp_path, 3)
    prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]
    assert newest_checkpoint(tmp_path)[0].step == 3


def test_best_is_put_back_to_what_a_checkpoint_knows(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    mark_best(first)
    # Killed after writing the second, the best so far, before it was marked.
    put_best_back(second, 2)
    assert open_checkpoint(tmp_path)[0] == second
    # The second is damaged: the run goes on from the first, and so does its best.
    damage(second.folder / "state.json")
    put_best_back(first, 1)
    assert open_checkpoint(tmp_path) == (first, [])
    for unknown in (0, 2):
        put_best_back(first, unknown)
        assert open_checkpoint(tmp_path) == (first, [])


def test_a_written_step_is_not_taken_down_to_write_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption saves the step that a validation has just saved."""
    folder = write(tmp_path, 1).folder
    before = folder.stat().st_ino
    write(tmp_path, 1)
    assert folder.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Also where process numbers come again, as in containers."""
    folder = write(tmp_path, 1).folder
    shutil.copytree(folder, tmp_path / ".partial-step-000002")
    shutil.copytree(folder, tmp_path / ".old-step-000001")
    (tmp_path / ".best-7").symlink_to("step-000001")
    write(tmp_path, 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000001", "step-000002"]


def test_a_half_deleted_checkpoint_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        write(tmp_path, step)

    class Killed(BaseException):
        pass

    def killed(path: object, **options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", killed)
        with pytest.raises(Killed):
            prune(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000002"]


# The format


def test_the_files_are_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "stages.b.weight": torch.randn(3, 5),
        "stages.a.weight": torch.randn(5),
        "stages.a.größe": torch.arange(3, dtype=torch.float16),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
    }
    folder = write_checkpoint(tmp_path, 1, {"model": tensors}, {}).folder
    theirs = tmp_path / "theirs.safetensors"
    save_file(tensors, theirs)
    assert (folder / "model.safetensors").read_bytes() == theirs.read_bytes()


def test_every_type_is_read_by_safetensors(tmp_path: Path) -> None:
    types = (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
    )
    tensors = {f"ärger {t}"[:-1]: torch.ones(3, 5).to(t) for t in types}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4)}
    folder = write_checkpoint(tmp_path, 1, {"model": tensors}, {}).folder
    path = folder / "model.safetensors"
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].to(torch.complex64), value.to(torch.complex64))
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():
            assert opened.get_slice(name).get_shape() == list(tensors[name].shape)


def test_views_and_tied_tensors_are_written_in_full(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    tensors = {"model": {"turned": matrix.T, "row": matrix[1], "same": matrix}}
    found = write_checkpoint(tmp_path, 1, tensors, {}).tensors("model")
    assert torch.equal(found["turned"], matrix.T)
    assert torch.equal(found["row"], matrix[1])
    assert torch.equal(found["same"], matrix)


# A disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: another process may just be looking at all mounts.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class FillUp(Callback):
    """Leaves no room on the disk after some steps."""

    def __init__(self, ballast: Path, step: int) -> None:
        self.ballast = ballast
        self.step = step

    def on_step(self, step: int) -> None:
        if step == self.step:
            with self.ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1024))
                except OSError:
                    pass


def test_a_disk_that_fills_up_costs_no_checkpoint(
    small_disk: Path, tmp_path: Path, registry: Registry
) -> None:
    settings = {**RUN, "backbone.width": 40}
    whole = headstart.run("toy/ring", settings, folder=tmp_path / "whole")
    folder, ballast = small_disk / "run", small_disk / "ballast"
    with pytest.raises(HeadstartError, match="the disk is full") as caught:
        headstart.run(
            "toy/ring", settings, folder=folder, callbacks=[FillUp(ballast, 3)]
        )
    assert "make room" in caught.value.faults[0].fix
    checkpoints = folder / "checkpoints"
    assert newest_checkpoint(checkpoints)[0].step == 2
    assert {p.name for p in checkpoints.iterdir()} <= {"step-000002", "best"}
    ballast.unlink()
    resumed = headstart.resume(folder)
    assert resumed.metrics == whole.metrics
    assert files(checkpoints) == files(whole.folder / "checkpoints")


def test_a_file_that_may_not_grow_costs_no_checkpoint(tmp_path: Path) -> None:
    """The limit cuts a write in its middle, at every place in turn."""
    write(tmp_path, 1)
    before = files(tmp_path)
    largest = max(len(content) for content in before.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, largest, 16):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(HeadstartError, match="cannot be written") as caught:
                write(tmp_path, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "File too large" in caught.value.faults[0].why
        assert files(tmp_path) == before
    write(tmp_path, 2)
    assert newest_checkpoint(tmp_path)[0].step == 2
