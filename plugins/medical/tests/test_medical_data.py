"""Volumes and scans as batches: what is in them, where it lies, what is kept."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from headstart.errors import DataError, HeadstartError
from headstart_medical.data_settings import ScanSettings, VolumeSettings
from headstart_medical.grids import Grid, labels_on_original
from headstart_medical.scans import Scans
from headstart_medical.store import Store
from headstart_medical.tiny import PATCH, SPACING, tiny_scans, tiny_volumes
from headstart_medical.volumes import Volumes

SETTINGS: dict[str, Any] = {
    "name": "medical/volumes",
    "labels": ["background", "ball"],
    "spacing": list(SPACING),
    "modality": "mri",
    "patch": list(PATCH),
    "patches_per_case": 2,
    "small": "pad",
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def volumes(folder: Path, preprocessing: Any = None, **changes: Any) -> Volumes:
    folder.mkdir(exist_ok=True)
    if not any(folder.iterdir()):
        tiny_volumes(folder)
    values = {**SETTINGS, "path": str(folder), **changes}
    data = Volumes(VolumeSettings(**values), 0)
    data.load()
    data.prepare(preprocessing or {"stride": [8, 8, 8]})
    return data


def scans(folder: Path, **changes: Any) -> Scans:
    folder.mkdir(exist_ok=True)
    data = Scans(ScanSettings(**{**tiny_scans(folder), **changes}), 0)
    data.load()
    data.prepare({})
    return data


def test_a_patch_is_where_the_volume_has_it(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    samples = data.samples("train")
    assert len(samples) == len(data.entries["train"]) * 2
    batch = data.collate(list(samples[:4]))
    assert batch["image"].shape == (4, 1, *PATCH)
    assert batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (4, *PATCH) and batch["mask"].dtype == torch.int64
    for row, sample in enumerate(samples[:4]):
        entry = data.entry(sample)
        file = nib.load(entry.case.images[0]).get_fdata(dtype=np.float32)
        inside = file[file > file.mean(dtype=np.float64)]
        scaled = (file - inside.mean()) / inside.std()
        start = data.prepared(entry)["starts"][sample["patch"]]
        box = tuple(slice(a, a + n) for a, n in zip(start, PATCH, strict=True))
        assert batch["image"][row, 0].numpy() == pytest.approx(scaled[box], abs=1e-4)
        label = nib.load(entry.case.labels[0]).get_fdata()
        assert np.array_equal(batch["mask"][row].numpy(), label[box])


def test_whole_volumes_go_back_to_their_files(tmp_path: Path) -> None:
    """Other spacing and orientation: the truth is the file's, its mask nearly so."""
    folder = tmp_path / "d"
    folder.mkdir()
    tiny_volumes(folder)
    turned = folder / "case3"
    for name in ("image", "label"):
        image = nib.load(turned / f"{name}.nii.gz")
        codes = nib.orientations.axcodes2ornt(("P", "S", "R"))
        start = nib.io_orientation(image.affine)
        change = nib.orientations.ornt_transform(start, codes)
        data_ = image.as_reoriented(change)
        nib.save(
            nib.Nifti1Image(data_.get_fdata().astype(np.float32), data_.affine),
            turned / f"{name}.nii.gz",
        )
    data = volumes(folder, spacing=[0.9, 1.1, 1.2], test_size=4)
    samples = data.samples("test")
    batch = data.collate(list(samples))
    extents = batch["extent"].numpy()
    assert (batch["image"].shape[2:] == extents.max(0)).all()
    for row, sample in enumerate(samples):
        case = data.entry(sample).case
        label = nib.load(case.labels[0])
        shape = batch["original_shape"][row].tolist()
        assert shape == list(label.shape)
        assert np.allclose(batch["original_affine"][row], label.affine)
        box = tuple(slice(side) for side in shape)
        truth = batch["truth"][row].numpy()
        assert np.array_equal(truth[box], label.get_fdata())
        rest = np.ones(truth.shape, dtype=bool)
        rest[box] = False
        assert (truth[rest] == 255).all()
        x, y, z = extents[row]
        mask = batch["mask"][row, :x, :y, :z].numpy()
        assert set(np.unique(mask)) == {0, 1}
        original = Grid.of(shape, batch["original_affine"][row])
        grid = Grid.of(mask.shape, batch["affine"][row])
        one_hot = np.stack([mask == 0, mask == 1]).astype(np.float32)
        found = labels_on_original(one_hot, grid, original)
        both = 2 * ((found == 1) & (label.get_fdata() == 1)).sum()
        assert both / ((found == 1).sum() + (label.get_fdata() == 1).sum()) > 0.85
    assert data.sizes("test").tolist() == extents.prod(1).tolist()
    assert data.sizes("train") is None


def test_padding_of_a_batch_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    tiny_volumes(folder)
    for name in ("image", "label"):
        file = folder / "case0" / f"{name}.nii.gz"
        image = nib.load(file)
        nib.save(image.slicer[:, :16, :14], file)
    data = volumes(folder, folds=10)
    data.entries["test"] = [
        e for split in ("train", "validation", "test") for e in data.entries[split]
    ]
    batch = data.collate(list(data.samples("test")))
    row = [e.id for e in data.entries["test"]].index("case0")
    assert batch["extent"][row].tolist() == [20, 16, 14]
    assert (batch["image"][row, :, :, 16:] == 0).all()
    assert (batch["mask"][row, :, 16:] == -1).all()
    assert (batch["mask"][row, :, :16, 14:] == -1).all()
    assert (batch["mask"][row, :, :16, :14] >= 0).all()


def test_spacing_is_the_median_unless_told(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d", spacing=None)
    assert data.task["spacing"] == list(SPACING)
    assert data.settings.spacing == SPACING, "the run's recipe has it"
    fixed = volumes(tmp_path / "d", spacing=None, shape=[16, 16, 24])
    assert fixed.task["patch"] == [16, 16, 24]
    assert fixed.task["spacing"] == pytest.approx([1.25, 1.125, 1.0])
    batch = fixed.collate(list(fixed.samples("train"))[:1])
    assert batch["image"].shape == (1, 1, 16, 16, 24)
    assert len(fixed.samples("train")) == len(fixed.entries["train"])


def test_task_is_complete(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    counts = np.zeros(2)
    for entry in data.entries["train"]:
        label = nib.load(entry.case.labels[0]).get_fdata().astype(int)
        counts += np.bincount(label.ravel(), minlength=2)
    assert data.task == {
        "kind": "volume-segmentation",
        "channels": ["image"],
        "spacing": list(SPACING),
        "patch": list(PATCH),
        "modality": "mri",
        "labels": ["background", "ball"],
        "counts": counts.astype(int).tolist(),
    }


def test_a_patch_that_strides_do_not_divide_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        volumes(tmp_path / "d", {"stride": [32, 16, 8]})
    text = str(caught.value)
    assert "data.patch" in text and "[32, 16, 16]" in text


def test_margin_is_for_augmentation_alone(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d", augmentation="light", margin=3)
    assert data.augments
    sample = data.samples("train")[0]
    batch = data.collate([sample])
    assert batch["image"].shape[2:] == (22, 22, 22)
    start = data.prepared(data.entry(sample))["starts"][0] - 3
    shape = data.entry(sample).grid.shape
    for axis, (first, side) in enumerate(zip(start, shape, strict=True)):
        outside = [i for i in range(22) if not 0 <= first + i < side]
        beyond = batch["mask"][0].movedim(axis, 0)[outside]
        assert (beyond == -1).all()
        image = batch["image"][0, 0].movedim(axis, 0)[outside]
        assert (image == batch["image"].min()).all(), "the darkest value"
    augmented = data.augment(batch, torch.Generator().manual_seed(0))
    assert augmented["image"].shape[2:] == PATCH
    validation = data.collate([data.samples("validation")[0]])
    assert validation["image"].shape[2:] == data.entries["validation"][0].grid.shape
    plain = volumes(tmp_path / "d")
    assert not plain.augments
    assert plain.augment(batch, torch.Generator())["image"] is batch["image"]


def test_pretraining_hides_parts(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    tiny_volumes(folder)
    for label in folder.glob("*/label.nii.gz"):
        label.unlink()
    data = volumes(folder, kind="reconstruction", labels=[], hidden=0.25, block=4)
    assert data.task["kind"] == "reconstruction" and "labels" not in data.task
    batch = data.collate(list(data.samples("train"))[:2])
    assert set(batch) == {"image"} and data.augments
    made = data.augment(batch, torch.Generator().manual_seed(0))
    assert torch.equal(made["target"], batch["image"])
    assert made["hidden"].float().mean() == 0.25
    seen = ~made["hidden"]
    assert torch.equal(made["image"][seen], batch["image"][seen])
    assert not torch.equal(made["image"], batch["image"])
    samples = list(data.samples("validation"))
    several = data.collate(samples)
    alone = data.collate(samples[1:2])
    for key in ("image", "target", "hidden"):
        assert torch.equal(several[key][1:2], alone[key]), "holes are the sample's own"
    assert not torch.equal(several["hidden"][0], several["hidden"][1])


def test_pretraining_measures_patches_without_a_margin(tmp_path: Path) -> None:
    """Nothing cuts it off again outside of training."""
    changes = {"kind": "reconstruction", "augmentation": "light", "margin": 3}
    data = volumes(tmp_path / "d", **changes)
    wide = tuple(side + 6 for side in PATCH)
    assert data.collate([data.samples("train")[0]])["image"].shape[2:] == wide
    for split in ("validation", "test"):
        batch = data.collate([data.samples(split)[0]])
        assert batch["image"].shape[2:] == batch["hidden"].shape[2:] == PATCH


def test_pretraining_never_opens_a_label(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    tiny_volumes(folder)
    for label in folder.glob("*/label.nii.gz"):
        label.write_bytes(b"this is no volume")
    data = volumes(folder, kind="reconstruction")
    batch = data.collate(list(data.samples("train"))[:2])
    assert set(batch) == {"image"}


def test_several_channels_and_several_patients(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    tiny_volumes(folder)
    for case in sorted(folder.iterdir()):
        first = nib.load(case / "image.nii.gz")
        second = 100 - first.get_fdata(dtype=np.float32)
        (case / "image.nii.gz").rename(case / "T1.nii.gz")
        nib.save(nib.Nifti1Image(second, first.affine), case / "T2.nii.gz")
    data = volumes(folder, channels=["T1", "T2"])
    assert data.task["channels"] == ["T1", "T2"]
    image = data.collate(list(data.samples("test"))[:1])["image"]
    assert image.shape[1] == 2
    inside = [nib.load(f).get_fdata() for f in data.entries["test"][0].case.images]
    for channel, file in zip(image[0].numpy(), inside, strict=True):
        assert np.corrcoef(channel.ravel(), file.ravel())[0, 1] > 0.999


def test_predictions_take_files_and_folders(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    fresh = Volumes(data.settings, 0)
    fresh.task = data.task
    fresh.prepare({"stride": [8, 8, 8]})
    file = tmp_path / "d" / "case1" / "image.nii.gz"
    samples = fresh.from_inputs([file, str(tmp_path / "d" / "case2")])
    assert Path(fresh.input_name(samples[0])).parts[-2] == "case1"
    batch = fresh.collate(list(samples))
    assert set(batch) == {
        "image",
        "extent",
        "affine",
        "original_affine",
        "original_shape",
    }
    known = next(
        (split, i)
        for split, entries in data.entries.items()
        for i, e in enumerate(entries)
        if e.id == "case1"
    )
    expected = data.prepared(data.entries[known[0]][known[1]])["image"]
    x, y, z = expected.shape[1:]
    assert torch.equal(batch["image"][0, :, :x, :y, :z], torch.from_numpy(expected))


def test_bad_inputs_are_told_together(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes((tmp_path / "d/case1/image.nii.gz").read_bytes()[:800])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        data.from_inputs([broken, tmp_path / "gone.nii", tmp_path / "empty", 3])
    assert len(caught.value.faults) == 4
    text = str(caught.value)
    for word in ("broken.nii.gz", "gone.nii", "no volume in this folder", "int"):
        assert word in text


def test_what_nobody_can_predict_for_is_told(tmp_path: Path) -> None:
    """As when training: NaN would give an empty mask, and no word about it."""
    data = volumes(tmp_path / "d")
    made = np.random.default_rng(0).random((20, 18, 16)).astype(np.float32)
    hole = made.copy()
    hole[0, 0, 0] = np.nan
    for name, array in [("hole", hole), ("flat", made * 0 + 7)]:
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(DataError) as caught:
        data.from_inputs([tmp_path / "hole.nii.gz", tmp_path / "flat.nii.gz"])
    assert len(caught.value.faults) == 2
    text = str(caught.value)
    assert "hole.nii.gz: values that are no numbers: 1 voxel " in text
    assert "flat.nii.gz: a constant volume: every voxel is 7" in text


def two_channels(folder: Path, data: Volumes, shift: float = 0.0) -> Volumes:
    """Cases a and b as nnU-Net names them, the second channel moved by millimetres."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(("a_0000", "a_0001", "b_0000", "b_0001")):
        array = np.random.default_rng(seed).random((20, 18, 16)).astype(np.float32)
        affine = np.eye(4)
        affine[0, 3] = shift * (seed % 2)
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    settings = data.settings.model_copy(update={"channels": ("T1", "T2")})
    return Volumes(settings, 0)


def test_predictions_need_no_labels_and_take_every_case(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    fresh = two_channels(tmp_path / "n" / "imagesTs", data)
    inside = fresh.from_inputs([tmp_path / "n" / "imagesTs"])
    assert [Path(s["id"]).name for s in inside] == ["a", "b"]
    assert [p.name for p in inside[1]["case"].images] == [
        "b_0000.nii.gz",
        "b_0001.nii.gz",
    ]
    # Beside cases with labels they were left out; a label's faults are nobody's.
    two_channels(tmp_path / "n" / "imagesTr", data)
    (tmp_path / "n/labelsTr").mkdir()
    (tmp_path / "n/labelsTr/other.nii.gz").write_bytes(b"this is no volume")
    (tmp_path / "n/imagesTr/a_0000.nii.gz").rename(
        tmp_path / "n/imagesTr/c_0000.nii.gz"
    )
    (tmp_path / "n/imagesTr/a_0001.nii.gz").rename(
        tmp_path / "n/imagesTr/c_0001.nii.gz"
    )
    for i in range(2):
        (tmp_path / f"n/imagesTr/b_000{i}.nii.gz").unlink()
    whole = fresh.from_inputs([tmp_path / "n"])
    assert [Path(s["id"]).name for s in whole] == ["a", "b", "c"]


def test_channels_to_predict_from_are_on_one_grid(tmp_path: Path) -> None:
    fresh = two_channels(tmp_path / "imagesTs", volumes(tmp_path / "d"), shift=3.0)
    with pytest.raises(DataError, match="different affine: up to 3 mm") as caught:
        fresh.from_inputs([tmp_path / "imagesTs"])
    assert len(caught.value.faults) == 2


def test_volumes_of_another_version_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart_medical import data as module

    first = volumes(tmp_path / "d", cache="disk")
    monkeypatch.setattr(module, "__version__", "0.1.1")
    second = volumes(tmp_path / "d", cache="disk")
    assert first.store.folder != second.store.folder
    assert first.fingerprint() == second.fingerprint(), "a run may still be resumed"


def test_fingerprint_is_of_content_and_settings(tmp_path: Path) -> None:
    first = volumes(tmp_path / "d").fingerprint()
    moved = tmp_path / "moved"
    (tmp_path / "d").rename(moved)
    assert volumes(moved).fingerprint() == first
    assert volumes(moved, cache="off", cache_gb=1).fingerprint() == first
    assert volumes(moved, patches_per_case=3).fingerprint() != first
    file = moved / "case4" / "label.nii.gz"
    label = nib.load(file)
    array = label.get_fdata().astype(np.uint8)
    ones, zeros = np.argwhere(array == 1)[0], np.argwhere(array == 0)[0]
    array[tuple(ones)], array[tuple(zeros)] = 0, 1
    nib.save(nib.Nifti1Image(array, label.affine), file)
    assert volumes(moved).fingerprint() != first, "a label changed"


@pytest.mark.parametrize("cache", ["auto", "memory", "disk", "off"])
def test_caches_change_no_voxel_and_save_work(tmp_path: Path, cache: str) -> None:
    data = volumes(tmp_path / "d", cache=cache, cache_gb=0.0001)
    samples = list(data.samples("train"))
    plain = volumes(tmp_path / "d", cache="off")
    for _ in range(2):
        for sample in samples:
            ours, theirs = data.collate([sample]), plain.collate([sample])
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    cases = len(data.entries["train"])
    made = {"auto": cases, "disk": cases, "off": len(samples) * 2}.get(cache)
    assert data.store.held <= 100_000
    if made is not None:
        assert data.store.made == made
    else:
        assert cases < data.store.made < len(samples) * 2, "some had room"
    files = list((tmp_path / "cache" / "volumes").glob("*/*.safetensors"))
    assert bool(files) == (cache in ("auto", "disk"))
    if cache == "auto":
        assert 0 < len(files) < cases, "some in memory, the rest on disk"
    if cache == "disk":
        again = volumes(tmp_path / "d", cache=cache)
        again.collate(samples)
        assert again.store.made == 0, "another run reads the same files"


def test_memory_is_estimated_before_it_is_used(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    for sample in (*data.samples("train"), *data.samples("test")):
        data.collate([sample])
    for sample in data.samples("validation"):
        data.collate([sample])
    channels = len(data.settings.channels)
    estimate = sum(
        e.bytes(channels) for entries in data.entries.values() for e in entries
    )
    assert data.store.held == pytest.approx(estimate, rel=0.01)
    assert "data.cache_gb" in data.describe()["cached volumes"]
    tight = volumes(tmp_path / "d", cache_gb=0.0001)
    assert "on disk" in tight.describe()["cached volumes"]


def test_workers_get_no_copy_of_the_cache(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    data.collate(list(data.samples("train")))
    assert data.store.held > 0
    text = pickle.dumps(data)
    assert len(text) < 60_000
    assert pickle.loads(text).store.held == 0


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    def made() -> dict[str, np.ndarray]:
        return {"x": np.arange(3)}

    Store("disk", 0, tmp_path / "s").get("a", made)
    (file,) = (tmp_path / "s").iterdir()
    for content in (b"", file.read_bytes()[:-4]):
        file.write_bytes(content)
        again = Store("disk", 0, tmp_path / "s")
        assert again.get("a", made)["x"].tolist() == [0, 1, 2]
        assert again.made == 1
        assert Store("disk", 0, tmp_path / "s").get("a", dict)["x"][2] == 2


def test_a_cache_without_room_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.numpy

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(HeadstartError, match="No space left") as caught:
        Store("disk", 0, tmp_path / "s").get("a", lambda: {"x": np.arange(3)})
    assert "HEADSTART_CACHE" in str(caught.value)
    assert not list((tmp_path / "s").iterdir())


def test_a_store_is_not_fooled_by_names(tmp_path: Path) -> None:
    store = Store("disk", 0, tmp_path / "s")
    first = store.get("../../a b", lambda: {"x": np.arange(3)})
    assert [p.parent for p in (tmp_path / "s").iterdir()] == [tmp_path / "s"]
    again = Store("disk", 0, tmp_path / "s").get("../../a b", dict)
    assert np.array_equal(first["x"], again["x"])


def test_scans_are_resized_and_labelled(tmp_path: Path) -> None:
    data = scans(tmp_path / "s")
    assert data.task["labels"] == ["healthy", "tumour"]
    assert data.task["dimensions"] == 3 and data.task["shape"] == list(PATCH)
    assert sum(data.task["counts"]) == len(data.samples("train"))
    for split in ("train", "validation", "test"):
        batch = data.collate(list(data.samples(split)))
        assert batch["image"].shape[1:] == (1, *PATCH)
        for sample, label in zip(data.samples(split), batch["labels"], strict=True):
            folder = data.entry(sample).case.images[0].parent.name
            assert data.task["labels"][label] == folder
    assert {s["label"] for s in data.samples("test")} == {0, 1}, "stratified"


def test_slices_are_labelled_by_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    tiny_volumes(folder)
    settings = ScanSettings(
        name="medical/scans",
        path=str(folder),
        slices=True,
        shape=(12, 14, 1),
        neighbours=1,
        labels=("without", "with"),
        least=3,
    )
    data = Scans(settings, 0)
    data.load()
    data.prepare({})
    assert data.task["dimensions"] == 2 and data.task["shape"] == [12, 14]
    assert data.task["channels"] == ["image -1", "image", "image +1"]
    patients = [
        {data.entry(s).case.patient for s in data.samples(split)}
        for split in ("train", "validation", "test")
    ]
    assert not patients[0] & patients[1] and not patients[0] & patients[2]
    samples = list(data.samples("test"))
    batch = data.collate(samples)
    assert batch["image"].shape == (len(samples), 3, 12, 14)
    for row, sample in enumerate(samples):
        entry, number = data.entry(sample), sample["slice"]
        label = nib.load(entry.case.labels[0]).get_fdata()
        assert batch["labels"][row] == int((label[..., number] > 0).sum() >= 3)
        image = data.prepared(entry)["image"][0]
        assert np.array_equal(batch["image"][row, 1], image[..., number])
        below = image[..., max(number - 1, 0)]
        assert np.array_equal(batch["image"][row, 0], below)
    some = Scans(settings.model_copy(update={"every": 5}), 0)
    some.load()
    assert {s["slice"] for s in some.samples("train")} == {0, 5, 10, 15}
    counts = [sum(s["label"] == c for s in data.samples("train")) for c in (0, 1)]
    assert data.task["counts"] == counts and min(counts) > 0
    fresh = Scans(data.settings, 0)
    fresh.task = copy.deepcopy(data.task)
    fresh.prepare({})
    inputs = fresh.from_inputs([folder / "case0" / "image.nii.gz"])
    assert len(inputs) == 16
    read = []
    monkeypatch.setattr(fresh, "read_case", _counted(fresh.read_case, read))
    whole = fresh.collate(list(inputs))
    assert "labels" not in whole
    more = fresh.from_inputs([folder / "case1" / "image.nii.gz"])
    other = fresh.collate([more[3], inputs[3]])
    assert len(read) == 3, "a volume once, not once a slice"
    assert torch.equal(other["image"][1], whole["image"][3])
    assert not torch.equal(other["image"][0], whole["image"][3])
    # What is between the slices' middles stays the file's own.
    assert data.task["spacing"] == pytest.approx([20 / 12, 18 / 14, 1.5], abs=1e-4)


def _counted(call: Any, calls: list[Any]) -> Any:
    def counted(*given: Any) -> Any:
        calls.append(given)
        return call(*given)

    return counted


def test_scans_may_be_all_test(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    data = scans(folder)
    assert len(list(data.baselines())) == 2
    tested = scans(folder, path="", test_path=str(folder))
    assert len(tested.samples("test")) == 16
    assert list(tested.baselines()) == [], "nothing to learn them from"


def test_who_counts_as_a_patient_is_told(tmp_path: Path) -> None:
    told = volumes(tmp_path / "d").describe()["test"]
    assert told == "2 volumes of 2 patients (each case counts as one)"
    named = volumes(tmp_path / "d", patient=r"(case\d)").describe()["test"]
    assert named == "2 volumes of 2 patients"


def test_scans_of_a_patient_belong_together(tmp_path: Path) -> None:
    alone = volumes(tmp_path / "d")
    assert alone.group_unit == "patient"
    assert list(alone.groups("test")) == [s["id"] for s in alone.samples("test")]
    named = volumes(tmp_path / "d", patient=r"(case\d)")
    shown = [named.show(sample)["patient"] for sample in named.samples("train")]
    assert list(named.groups("train")) == shown


def test_settings_that_contradict_are_told() -> None:
    for values, word in [
        ({"spacing": (1, 1, 1), "shape": (8, 8, 8)}, "not both"),
        ({"window": (10, -10)}, "lower"),
        ({"percentiles": (99.0, 1.0)}, "lower"),
        ({"folds": 3, "fold": 3}, "0 to 2"),
        ({"labels": ("a", "b"), "values": (0,)}, "one for each"),
        ({"labels": ("a", "b", "a")}, "labels: one of them is there twice"),
        ({"labels": ("a", "b"), "values": (1, 1)}, "values: one of them is there"),
        ({"fold": 2}, "data.folds; this is 2"),
    ]:
        with pytest.raises((ValueError, HeadstartError), match=word):
            VolumeSettings(name="medical/volumes", path="x", **values)  # type: ignore[arg-type]


def test_a_volume_is_not_squashed_to_a_slice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"e.g. data.shape=\[64,64,64\]"):
        ScanSettings(name="x", shape=(16, 16))
    with pytest.raises(DataError, match="squashed to 16 x 16 x 1 voxels") as caught:
        scans(tmp_path / "d", shape=[16, 16, 1])
    assert "data.shape=[64,64,64]" in str(caught.value)


def test_slices_have_two_sides_and_classes_without_being_told(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    tiny_volumes(folder)
    given = {"path": str(folder), "slices": True, "shape": (16, 12)}
    data = Scans(ScanSettings(name="medical/scans", **given), 0)
    data.load()
    data.prepare({})
    assert data.task["labels"] == ["without", "with"]
    assert min(data.task["counts"]) > 0
    batch = data.collate(data.samples("test")[:2])
    assert batch["image"].shape == (2, 1, 16, 12)
    # 20 voxels of 1 mm in 16, 18 in 12; slices keep their distance, which nobody sees.
    assert data.describe()["spacing"] == "1.25 x 1.5 mm"


def test_where_a_split_is_from_is_described(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tiny_volumes(other)
    data = volumes(tmp_path / "d", test_path=str(other), bad="skip", bad_cap=1.0)
    described = data.describe()
    assert described["test"].endswith(f", from {other}")
    assert "from" not in described["train"] + described["validation"]


def test_the_test_list_of_a_decathlon_set_is_predicted_for(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    (tmp_path / "imagesTs").mkdir()
    for seed in range(2):
        array = np.random.default_rng(seed).random((20, 18, 16)).astype(np.float32)
        name = tmp_path / f"imagesTs/case9{seed}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.eye(4)), name)
    listing = tmp_path / "dataset.json"
    training = [{"image": "imagesTr/case1.nii.gz", "label": "labelsTr/case1.nii.gz"}]
    test = ["./imagesTs/case90.nii.gz", {"image": "imagesTs/case91.nii.gz"}]
    listing.write_text(json.dumps({"training": training, "test": test}))
    samples = data.from_inputs([listing])
    assert [s["id"] for s in samples] == [f"{tmp_path}/case90", f"{tmp_path}/case91"]
    assert data.collate(samples)["image"].shape == (2, 1, 20, 18, 11)
    (tmp_path / "imagesTs/case91.nii.gz").unlink()
    with pytest.raises(DataError, match=r"test\[1\].*no such file"):
        data.from_inputs([listing])
    listing.write_text(json.dumps({"training": training}))
    with pytest.raises(DataError, match="no list `test` of volumes"):
        data.from_inputs([listing])


def test_inputs_that_cannot_be_read_are_left_out_when_asked(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d")
    good = tmp_path / "d" / "case1" / "image.nii.gz"
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"this is no volume")
    data.skipped = []
    (sample,) = data.from_inputs(
        [broken, good, tmp_path / "gone.nii", tmp_path / "d/x"]
    )
    assert sample["id"] == str(good)
    assert [Path(f.where).name for f in data.skipped] == [
        "gone.nii",
        "x",
        "broken.nii.gz",
    ]
    with pytest.raises(DataError, match=r"broken.nii.gz"):
        data.from_inputs([broken])


def test_bright_spots_of_pet_are_not_cut(tmp_path: Path) -> None:
    data = volumes(tmp_path / "d", modality="pet")
    assert data.method == "z-score"
