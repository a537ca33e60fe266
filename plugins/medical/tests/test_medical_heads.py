"""Heads on tiny backbones, against torch's losses and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from torch import nn

from headstart.errors import UserError
from headstart.model import Model
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart_medical import run_lengths
from headstart_medical.calibration import fit_temperature, scaled
from headstart_medical.classifier import build_classifier
from headstart_medical.head_settings import (
    ClassifierSettings,
    ReconstructionSettings,
    SegmentationSettings,
)
from headstart_medical.heads import build_segmentation, sample_masks
from headstart_medical.losses import SegmentationLoss, deep_supervision
from headstart_medical.options import SegmentationOptions
from headstart_medical.reconstruction import build_reconstruction, sample_volumes

MASKS = {
    "kind": "volume-segmentation",
    "labels": ["background", "brain", "tumour"],
    "counts": [900, 99, 1],
    "channels": ["T1"],
    "spacing": [1.0, 1.0, 2.0],
    "patch": [8, 8, 8],
    "modality": "mri",
}
TWO = {**MASKS, "labels": ["background", "lesion"], "counts": [3, 1]}
SCANS = {"kind": "single-label", "labels": ["well", "ill"], "counts": [6, 2]}
FILLED = {
    "kind": "reconstruction",
    "channels": ["T1", "T2"],
    "spacing": [1.0, 1.0, 1.0],
    "patch": [8, 8, 8],
}


class Levels(nn.Module):
    """The image itself, and coarser versions of it."""

    def forward(self, state: Any) -> Any:
        image = state["image"]
        coarse = {f"up{n}": F.avg_pool3d(image, 2**n) for n in (1, 2)}
        return {**state, **coarse, "decoded": image}


class Coarse(nn.Module):
    def forward(self, state: Any) -> Any:
        return {**state, "encoded": F.avg_pool3d(state["image"], 2)}


def fine(channels: int = 1) -> Backbone:
    names = {"up2": 4, "up1": 2, "decoded": 1}
    features = [
        Feature(name, "volume", channels, stride, "all")
        for name, stride in names.items()
    ]
    return Backbone({"all": Levels()}, features=features, upstream={})


def coarse() -> Backbone:
    features = [Feature("encoded", "volume", 1, 2, "all")]
    return Backbone({"all": Coarse()}, features=features, upstream={})


def segmenter(backbone: Any = None, task: Any = MASKS, **settings: Any) -> Model:
    torch.manual_seed(0)
    backbone = backbone or fine()
    given = SegmentationSettings(name="medical/segmentation", **settings)
    return Model(backbone, build_segmentation(given, backbone.features, task)).eval()


def threshold(model: Model, at: float = 0.5) -> Model:
    """A lesion is what is brighter."""
    with torch.no_grad():
        model.head.conv.weight[:, 0, 0, 0, 0] = torch.tensor([0.0, 20.0])
        model.head.conv.bias.copy_(torch.tensor([0.0, -20.0 * at]))
    return model


def run(model: Model, batch: Any) -> Any:
    return model(model.prefix(batch))


def infer(model: Model, batch: Any) -> Any:
    with torch.no_grad():
        return model.head.infer(model, batch)


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(shape: tuple[int, int, int]) -> np.ndarray:
    """A mask that no turn or flip leaves as it is."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[1:4, 2:7, 0:3] = 1
    return mask


def whole_volumes() -> dict[str, Any]:
    """Two cases of other sizes; the first file's axes are z, -x, y of 2 mm."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    turned = np.zeros((4, 4))
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = 2.0, -2.0, 2.0, 1.0
    turned[0, 3] = 2.0 * 9
    first, second = block((10, 9, 8)), block((6, 12, 5))
    # RAS to the file: x backwards in its second axis.
    file = first[::-1].transpose(2, 0, 1)
    image = torch.zeros(2, 1, 10, 12, 8)
    mask = torch.zeros(2, 10, 12, 8, dtype=torch.int64)
    for row, values in enumerate((first, second)):
        i, j, k = values.shape
        image[row, 0, :i, :j, :k] = torch.as_tensor(values.copy())
        mask[row, :i, :j, :k] = torch.as_tensor(values.copy())
    truth = torch.full((2, 8, 12, 9), 255, dtype=torch.uint8)
    truth[0, :8, :10, :9] = torch.as_tensor(file.copy())
    truth[1, :6, :12, :5] = torch.as_tensor(second)
    return {
        "image": image,
        "mask": mask,
        "truth": truth,
        "extent": torch.tensor([[10, 9, 8], [6, 12, 5]]),
        "affine": torch.as_tensor(np.stack([affine, affine])),
        "original_affine": torch.as_tensor(np.stack([turned, affine])),
        "original_shape": torch.tensor([[8, 10, 9], [6, 12, 5]]),
    }


# Segmentation


def test_new_layer_starts_at_the_frequencies() -> None:
    head = segmenter().head
    share = torch.tensor([0.9, 0.099, 0.01])
    torch.testing.assert_close(head.conv.bias, share.log())
    counts = {**MASKS, "counts": [0, 0, 0]}
    assert not torch.allclose(segmenter(task=counts).head.conv.bias, share.log())


def test_patches_are_trained_with_the_loss_of_the_settings() -> None:
    batch = {"image": images(3, 1, 8, 8, 8), **patch_masks()}
    model = segmenter(loss="dice-focal", background=True)
    state = run(model, batch)
    logits = model.head.conv(batch["image"])
    torch.testing.assert_close(state["logits"], logits)
    losses = SegmentationLoss("dice-focal", True)(logits, batch["mask"])
    # The third patch has no known voxel: the mean is over two.
    torch.testing.assert_close(model.head.loss(state), losses[:2].sum() / 2)
    assert model.head.weight({"mask": batch["mask"]}) == 2


def patch_masks() -> dict[str, torch.Tensor]:
    mask = torch.arange(8).remainder(3).repeat(3, 8, 8, 1)
    mask[1, 6:] = -1
    mask[2] = -1
    return {"mask": mask}


def test_deep_supervision_learns_from_coarser_levels_in_training_alone() -> None:
    model = segmenter(deep_supervision=2).train()
    batch = {"image": images(3, 1, 8, 8, 8), **patch_masks()}
    state = run(model, batch)
    loss = model.head.loss(state)
    levels = [
        layer(F.avg_pool3d(batch["image"], 2**n))
        for n, layer in enumerate([model.head.conv, *model.head.supervised])
    ]
    rows = deep_supervision(SegmentationLoss(), levels, batch["mask"])
    torch.testing.assert_close(loss, rows.sum() / 2)
    loss.backward()
    assert all(p.grad is not None for p in model.head.parameters())
    assert "levels" not in run(model.eval(), batch)
    with pytest.raises(UserError, match=r"needs up3(.|\n)*deep_supervision = 2"):
        segmenter(deep_supervision=3)


def test_coarse_feature_is_enlarged_to_the_mask_and_to_the_window() -> None:
    model = segmenter(coarse(), task=TWO)
    batch = {"image": images(2, 1, 8, 8, 8), "mask": patch_masks()["mask"][:2] % 2}
    state = run(model, batch)
    logits = F.interpolate(model.head.conv(F.avg_pool3d(batch["image"], 2)), 8,
                           mode="trilinear")  # fmt: skip
    expected = SegmentationLoss()(logits, batch["mask"]).mean()
    torch.testing.assert_close(model.head.loss(state), expected)
    whole = infer(
        model, {"image": batch["image"], "extent": torch.tensor([[8] * 3] * 2)}
    )
    torch.testing.assert_close(torch.stack(whole["logits"]), logits)


def test_whole_volumes_come_back_as_their_files_have_them() -> None:
    batch = whole_volumes()
    model = threshold(segmenter(task=TWO))
    state = infer(model, batch)
    assert [tuple(v.shape) for v in state["logits"]] == [(2, 10, 9, 8), (2, 6, 12, 5)]
    outputs = model.head.outputs(state)
    assert set(outputs) == {"prediction", "target", "spacing"}
    for row, shape in enumerate([(8, 10, 9), (6, 12, 5)]):
        prediction = outputs["prediction"][row]
        assert prediction.shape == shape and prediction.dtype == np.uint8
        np.testing.assert_array_equal(prediction, outputs["target"][row])
        assert prediction.sum() == 45
    assert outputs["spacing"].tolist() == [[2, 2, 2], [2, 2, 2]]
    rows = model.head.decode(outputs)
    # 45 voxels of 8 mm3.
    assert [row["millilitres"] for row in rows] == [{"lesion": 0.36}] * 2
    assert [row["lesions"] for row in rows] == [{"lesion": 1}] * 2
    for row, mask in zip(rows, outputs["prediction"], strict=True):
        np.testing.assert_array_equal(run_lengths.decode(row["mask"]), mask)


def test_another_spacing_is_undone() -> None:
    batch = whole_volumes()
    batch["original_affine"][1] = torch.as_tensor(np.diag([1.0, 1.0, 4.0, 1.0]))
    # Outer edges in the same place: a voxel's middle is half a voxel further in.
    batch["original_affine"][1, :3, 3] = torch.tensor([-0.5, -0.5, 1.0])
    batch["original_shape"][1] = torch.tensor([12, 24, 3])
    del batch["truth"], batch["mask"]
    outputs = (model := threshold(segmenter(task=TWO))).head.outputs(
        infer(model, batch)
    )
    mask = outputs["prediction"][1]
    assert mask.shape == (12, 24, 3)
    assert outputs["spacing"][1].tolist() == [1, 1, 4]
    # 2 mm voxels 1 to 3 and 2 to 6 are 1 mm voxels 2 to 7 and 4 to 13.
    assert (
        mask[:, :, 0].nonzero()[0].min() == 2 and mask[:, :, 0].nonzero()[0].max() == 7
    )
    assert (
        mask[:, :, 0].nonzero()[1].min() == 4 and mask[:, :, 0].nonzero()[1].max() == 13
    )
    assert not mask[:, :, 2].any()


def test_a_tilted_gantry_has_its_slices_distance_in_volumes() -> None:
    batch = whole_volumes()
    # 2 mm between slices, 2.83 between the voxels of a column.
    batch["original_affine"][1, 1, 2] = batch["affine"][1, 1, 2] = 2.0
    model = threshold(segmenter(task=TWO))
    outputs = model.head.outputs(infer(model, batch))
    torch.testing.assert_close(outputs["spacing"][1], torch.full((3,), 2.0).double())
    assert model.head.decode(outputs)[1]["millilitres"] == {"lesion": 0.36}


def test_padding_of_a_batch_changes_nothing() -> None:
    model = segmenter(task=TWO, overlap=0.5)
    batch = {
        "image": images(2, 1, 12, 9, 8),
        "extent": torch.tensor([[12, 9, 8], [7, 9, 8]]),
    }
    both = infer(model, batch)["logits"]
    batch["image"][1, :, 7:] = 99.0
    alone = {"image": batch["image"][1:, :, :7], "extent": batch["extent"][1:]}
    torch.testing.assert_close(both[1], infer(model, alone)["logits"][0])


def test_loss_of_whole_volumes_leaves_out_the_padding() -> None:
    batch = whole_volumes()
    model = segmenter(task=TWO)
    state = infer(model, batch)
    rows = [
        SegmentationLoss()(
            model.head.conv(batch["image"][row : row + 1, :, :i, :j, :k]),
            batch["mask"][row : row + 1, :i, :j, :k],
        )
        for row, (i, j, k) in enumerate(batch["extent"].tolist())
    ]
    torch.testing.assert_close(model.head.loss(state), torch.cat(rows).mean())
    # Nothing is known of the second; its padding does not say otherwise.
    state["mask"][1, :6, :, :5] = -1
    assert model.head.weight(state) == 1
    torch.testing.assert_close(model.head.loss(state), rows[0][0])


def test_prediction_has_a_confidence_and_no_target() -> None:
    batch = whole_volumes()
    labels = {k: batch.pop(k) for k in ("truth", "mask")}
    model = threshold(segmenter(task=TWO))
    outputs = model.head.outputs(infer(model, batch))
    assert set(outputs) == {"prediction", "spacing", "confidence"}
    for found, extent, truth in zip(
        outputs["confidence"],
        batch["original_shape"].tolist(),
        labels["truth"].numpy(),
        strict=True,
    ):
        assert found.dtype == np.float16
        mask = truth[tuple(slice(n) for n in extent)]
        # Logits 10 and -10.
        expected = np.where(mask, 1 / (1 + np.exp(-10.0)), 1 / (1 + np.exp(10.0)))
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert "probability" not in model.head.decode(outputs)[0]
    model.head.options = SegmentationOptions(probabilities=True)
    assert "probability" in model.head.decode(outputs)[0]


def test_prediction_is_cleaned() -> None:
    batch = whole_volumes()
    batch["image"][0, 0, 8, 8, 7] = 1.0
    dirty, clean = (
        threshold(segmenter(task=TWO, components=kept)) for kept in ("all", "largest")
    )
    voxels = [
        m.head.outputs(infer(m, batch))["prediction"][0].sum() for m in (dirty, clean)
    ]
    assert voxels == [46, 45]
    # The stray voxel has 8 mm³ on the file's grid.
    for least, kept in ((0.008, 46), (0.0081, 45)):
        model = threshold(segmenter(task=TWO, smallest_ml=least))
        outputs = model.head.outputs(infer(model, batch))
        assert outputs["prediction"][0].sum() == kept


def test_layers_are_called_as_in_the_weights_of_monai_and_of_bundles() -> None:
    names = {"strides": [1, 2, 2], "kernel_size": [3] * 3, "filters": [2] * 3}
    theirs = DynUNet(3, 1, 3, **names, upsample_kernel_size=[2, 2],
                     deep_supervision=True).state_dict()  # fmt: skip
    head = segmenter(deep_supervision=1).head
    assert head.upstream.pop("conv.") == "output."
    assert head.upstream == {"supervised.0.": "deep_supervision_heads.0.conv.conv."}
    for ours, other in head.upstream.items():
        for name, tensor in head.state_dict().items():
            if name.startswith(ours):
                assert f"{other}{name.removeprefix(ours)}" in theirs
                assert tensor.shape[0] == 3


def test_windows_that_the_network_cannot_halve_are_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"head\.window(.|\n)*4x4x4 must(.|\n)*8, 8, 4"):
        segmenter(window=(6, 8, 4))
    with pytest.raises(UserError, match=r"windows of 8x7x8"):
        filler(window=(8, 7, 8))
    # The stride is 4, and this axis of the patch is halved once.
    flat = {**MASKS, "patch": [8, 8, 6]}
    assert segmenter(task=flat, window=(4, 12, 2)).head.windows.size == (4, 12, 2)


def test_what_the_decoder_ends_with_is_read_wherever_it_stands() -> None:
    features = {
        name: Feature(name, "volume", 1) for name in ("up1", "decoded", "other")
    }
    given = SegmentationSettings(name="medical/segmentation")
    assert build_segmentation(given, features, MASKS).reads == ("decoded",)
    del features["decoded"]
    assert build_segmentation(given, features, MASKS).reads == ("other",)


def test_patches_are_judged_on_the_networks_grid() -> None:
    batch = {"image": images(3, 1, 8, 8, 8), **patch_masks()}
    model = segmenter()
    outputs = model.head.outputs(infer(model, batch))
    assert outputs["spacing"].tolist() == [[1, 1, 2]] * 3
    logits = model.head.conv(batch["image"])
    np.testing.assert_array_equal(outputs["prediction"], logits.argmax(1).numpy())
    assert (outputs["target"][2] == 255).all()
    np.testing.assert_array_equal(outputs["target"][0], batch["mask"][0].numpy())


def test_a_sigmoids_row_becomes_two() -> None:
    head = segmenter(
        task={**MASKS, "labels": ["background", "brain"], "counts": [1, 1]}
    ).head
    weight, bias = images(1, 1, 1, 1, 1), torch.tensor([-0.3])
    with torch.no_grad():
        for name, theirs in (("weight", weight), ("bias", bias)):
            ours = getattr(head.conv, name)
            ours.copy_(head.adapt_classes(f"conv.{name}", theirs, ours, ("brain",)))
    image = images(2, 1, 4, 4, 4, seed=5)
    expected = torch.sigmoid(F.conv3d(image, weight, bias))[:, 0]
    found = head({"decoded": image})["logits"].softmax(1)[:, 1]
    torch.testing.assert_close(found, expected)


def test_a_model_that_finds_nothing_is_told() -> None:
    head = segmenter().head
    (fault,) = head.diagnose({"loss": 1.1, "dice": 0.0})
    assert "Dice 0.000" in fault.what and "train.learning_rate" in fault.fix
    assert head.diagnose({"loss": 1.1, "dice": 0.2}) == ()
    assert head.diagnose({"loss": 1.1}) == (), "Dice is not measured"


def test_rows_of_known_classes_are_taken_by_name() -> None:
    head = segmenter().head
    theirs, ours = torch.tensor([5.0, 6.0, 7.0, 8.0]), head.conv.bias.detach().clone()
    names = ("background", "liver", "tumour", "spleen")
    found = head.adapt_classes("conv.bias", theirs, ours, names)
    torch.testing.assert_close(found, torch.stack([theirs[0], ours[1], theirs[2]]))
    assert head.adapt_classes("conv.bias", theirs, ours, ()) is None
    other = head.adapt_classes("conv.bias", theirs[:1], ours, ("liver",))
    torch.testing.assert_close(other, ours)


def test_a_head_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"256 classes"):
        segmenter(task={**MASKS, "labels": [str(n) for n in range(256)]})
    flat = {"encoded": Feature("encoded", "map", 4)}
    given = SegmentationSettings(name="medical/segmentation")
    with pytest.raises(UserError, match=r"no volumes(.|\n)*encoded"):
        build_segmentation(given, flat, MASKS)


def test_sample_masks_are_valid() -> None:
    mask = sample_masks(MASKS, 4)["mask"]
    assert mask.shape == (4, 16, 16, 16) and mask.dtype == torch.int64
    assert set(mask[0].unique().tolist()) == {0, 1, 2}
    assert set(mask[1].unique().tolist()) == {-1, 0, 1, 2}


# Reconstruction


def filler(**settings: Any) -> Model:
    torch.manual_seed(0)
    backbone = fine(2)
    given = ReconstructionSettings(name="medical/reconstruction", **settings)
    head = build_reconstruction(given, backbone.features, FILLED)
    return Model(backbone, head).eval()


def masked(batch: int = 2, size: int = 8) -> dict[str, torch.Tensor]:
    hidden = torch.zeros(batch, 1, size, size, size, dtype=torch.bool)
    hidden[0, :, :4], hidden[1, :, 6:, 2:] = True, True
    target = images(batch, 2, size, size, size)
    return {"image": target * ~hidden, "target": target, "hidden": hidden}


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_hidden_voxels_alone_are_reconstructed(kind: Any, power: int) -> None:
    model, batch = filler(loss=kind), masked()
    state = run(model, batch)
    values = model.head.conv(batch["image"])
    inside = batch["hidden"].expand_as(values)
    difference = (values - batch["target"]).abs().pow(power)
    rows = [difference[row][inside[row]].mean() for row in range(2)]
    torch.testing.assert_close(model.head.loss(state), torch.stack(rows).mean())
    # Before augmentation has hidden anything there is only the image.
    weights = [model.head.weight(given) for given in (batch, {"image": values})]
    assert weights == [2, 2]


def test_reconstruction_is_compared_to_the_mean_of_what_is_seen() -> None:
    model, batch = filler(), masked()
    outputs = model.head.outputs(infer(model, batch))
    with torch.no_grad():
        values = model.head.conv(batch["image"])
    for row in range(2):
        hidden = batch["hidden"][row, 0].numpy()
        target = batch["target"][row].numpy()
        error = np.abs(values[row].numpy() - target)[:, hidden].mean()
        mean = target[:, ~hidden].mean(1)[:, None]
        blank = np.abs(target[:, hidden] - mean).mean()
        assert float(outputs["error"][row]) == pytest.approx(error, rel=1e-5)
        assert float(outputs["blank"][row]) == pytest.approx(blank, rel=1e-5)
    assert list(model.head.decode(outputs)[0]) == ["error"]


def test_larger_volumes_are_reconstructed_window_by_window() -> None:
    model, batch = filler(overlap=0.5), masked(size=12)
    seen = []
    run_stages = model.backbone.run

    def watched(state: Any, *args: Any, **given: Any) -> Any:
        seen.append(tuple(state["image"].shape))
        return run_stages(state, *args, **given)

    model.backbone.run = watched  # type: ignore[method-assign]
    state = infer(model, batch)
    assert set(seen) == {(1, 2, 8, 8, 8)}
    with torch.no_grad():
        torch.testing.assert_close(
            state["reconstruction"], model.head.conv(batch["image"])
        )
    shown = model.head.outputs({"reconstruction": state["reconstruction"]})
    assert [row.shape for row in shown["reconstruction"]] == [(2, 12, 12, 12)] * 2
    assert list(model.head.decode(shown)[0]) == ["mean"]


def test_a_volume_is_filled_in_as_if_it_were_alone() -> None:
    model = filler(overlap=0.5)
    image = images(2, 2, 12, 9, 10)
    batch = {"image": image, "extent": torch.tensor([[12, 9, 10], [9, 6, 10]])}
    both = model.head.outputs(infer(model, batch))["reconstruction"]
    image[1, :, 9:], image[1, :, :, 6:] = 99.0, -99.0
    alone = {"image": image[1:, :, :9, :6], "extent": batch["extent"][1:]}
    [expected] = model.head.outputs(infer(model, alone))["reconstruction"]
    assert [row.shape for row in both] == [(2, 12, 9, 10), (2, 9, 6, 10)]
    np.testing.assert_array_equal(both[1], expected)


def test_padding_is_no_part_of_what_is_seen() -> None:
    model, batch = filler(), masked()
    batch["extent"] = torch.tensor([[8, 8, 8], [8, 8, 5]])
    batch["hidden"][1, ..., 5:] = False
    expected = model.head.outputs(infer(model, batch))["blank"]
    batch["target"][1, ..., 5:] = 50.0
    found = model.head.outputs(infer(model, batch))["blank"]
    torch.testing.assert_close(found, expected)


def test_sample_volumes_are_valid() -> None:
    sample = sample_volumes(FILLED, 3)
    assert sample["target"].shape == (3, 2, 16, 16, 16)
    assert sample["hidden"].shape == (3, 1, 16, 16, 16)
    assert 0 < sample["hidden"].float().mean() < 1


# Classification


FEATURES = {
    "bottom": Feature("bottom", "volume", 4, 8),
    "encoded": Feature("encoded", "volume", 3, 16),
}


def classifier(features: Any = FEATURES, **settings: Any) -> Any:
    torch.manual_seed(0)
    given = ClassifierSettings(name="medical/classifier", **settings)
    return build_classifier(given, features, SCANS).eval()


def scans() -> dict[str, torch.Tensor]:
    return {
        "bottom": images(4, 4, 2, 2, 2),
        "encoded": images(4, 3, 2, 2, 5, seed=2),
        "labels": torch.tensor([0, 1, 1, 0]),
    }


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_last_feature_is_pooled_over_space(pooling: Any) -> None:
    head, state = classifier(pooling=pooling), scans()
    flat = state["encoded"].flatten(2)
    pooled = flat.mean(2) if pooling == "mean" else flat.max(2).values
    reduced = head.reduce(state)
    assert set(reduced) == {"pooled", "labels"}
    torch.testing.assert_close(head(reduced)["logits"], head.linear(pooled))


@pytest.mark.parametrize(
    ("feature", "shape"),
    [
        (Feature("encoded", "map", 3), (4, 3, 5, 6)),
        (Feature("encoded", "vector", 3), (4, 3)),
    ],
)
def test_maps_and_vectors_are_read_too(feature: Feature, shape: Any) -> None:
    head = classifier({"encoded": feature})
    values = images(*shape)
    pooled = values.mean((2, 3)) if len(shape) == 4 else values
    found = head(head.reduce({"encoded": values}))["logits"]
    torch.testing.assert_close(found, head.linear(pooled))


def test_dropout_is_in_front_of_the_labels_in_training_alone() -> None:
    head, state = classifier(dropout=0.5), scans()
    reduced = head.reduce(state)
    plain = head(reduced)["logits"]
    torch.testing.assert_close(head(reduced)["logits"], plain)
    assert not torch.allclose(head.train()(reduced)["logits"], plain)


def test_another_feature_can_be_named() -> None:
    head = classifier(feature="bottom")
    assert head.reads == ("bottom",) and head.linear.in_features == 4
    with pytest.raises(UserError, match="botom"):
        classifier(feature="botom")


def test_attention_weighs_slices() -> None:
    head, state = classifier(pooling="attention", attention_width=6), scans()
    with torch.no_grad():
        found = head(head.reduce(state))["logits"].numpy()
        layers = {k: v.numpy() for k, v in head.attention.state_dict().items()}
        slices = state["encoded"].mean((2, 3)).numpy()
        for row in range(4):
            scores = []
            for column in slices[row].T:
                content = np.tanh(
                    layers["content.weight"] @ column + layers["content.bias"]
                )
                gate = layers["gate.weight"] @ column + layers["gate.bias"]
                scores.append(
                    float(layers["score.weight"][0] @ (content / (1 + np.exp(-gate))))
                )
            weights = np.exp(scores) / np.exp(scores).sum()
            pooled = torch.as_tensor(slices[row] @ weights).float()
            np.testing.assert_allclose(
                found[row], head.linear(pooled).numpy(), rtol=1e-4
            )
    with pytest.raises(UserError, match="attention goes over slices"):
        classifier({"encoded": Feature("encoded", "map", 3)}, pooling="attention")


def test_class_weights_are_torchs_and_the_unit_of_the_loss() -> None:
    head, state = classifier(class_weights="balanced", label_smoothing=0.1), scans()
    state = head(head.reduce(state))
    # The mean label has 4 samples: 4 / 6 and 4 / 2.
    weights = torch.tensor([4 / 6, 2.0])
    expected = F.cross_entropy(
        state["logits"], state["labels"], weight=weights, label_smoothing=0.1
    )
    torch.testing.assert_close(head.loss(state), expected)
    assert float(head.weight(state)) == pytest.approx(2 * (4 / 6 + 2))
    assert classifier().weight(state) == 4


def test_probabilities_are_calibrated_after_training() -> None:
    head = classifier()
    state = head(head.reduce(scans()))
    plain = head.outputs(state)
    torch.testing.assert_close(plain["probabilities"], state["logits"].softmax(1))
    head.calibration = {"temperature": 2.0}
    outputs = head.outputs(state)
    torch.testing.assert_close(
        outputs["probabilities"], (state["logits"] / 2).softmax(1)
    )
    assert outputs["prediction"].tolist() == plain["prediction"].tolist()
    assert outputs["target"].tolist() == [0, 1, 1, 0]
    row = head.decode(outputs)[0]
    assert row["probabilities"][row["label"]] == row["probability"]


def overconfident(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities whose logits are then three times as large."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(count, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (generator.random((count, 1)) > p.cumsum(1)).sum(1).clip(max=2)
    sharp = np.exp(3 * logits)
    return sharp / sharp.sum(1, keepdims=True), target


def test_temperature_is_what_makes_the_targets_likeliest() -> None:
    probabilities, target = overconfident()
    head = classifier()
    found = head.calibrate({"probabilities": probabilities, "target": target})
    assert found["temperature"] == pytest.approx(3.0, abs=0.25)

    def likelihood(temperature: float) -> float:
        powers = probabilities ** (1 / temperature)
        chosen = powers[np.arange(len(target)), target] / powers.sum(1)
        return float(np.log(chosen).mean())

    best = max(np.linspace(2, 4, 401), key=likelihood)
    assert found["temperature"] == pytest.approx(best, abs=0.006)


def test_temperature_needs_a_sample_that_is_wrong() -> None:
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert fit_temperature(sure, [0, 1]) is None
    assert fit_temperature(np.zeros((0, 2)), []) is None
    assert classifier().calibrate({"probabilities": sure, "target": [0, 1]}) == {}


def test_temperature_stays_below_ten() -> None:
    wrong = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert fit_temperature(wrong, [1, 0, 1]) == pytest.approx(10.0)


def test_temperature_never_divides_by_zero() -> None:
    # Nearly even, and nearly always right.
    even = np.array([[0.5001, 0.4999]] * 99 + [[0.4999, 0.5001]])
    head = classifier()
    found = head.calibrate({"probabilities": even, "target": [0] * 100})
    assert found == {"temperature": 0.001}
    nothing = np.full((3, 2), np.nan)
    assert head.calibrate({"probabilities": nothing, "target": [0, 1, 1]}) == {}


def test_scaled_is_softmax_after_division() -> None:
    found = scaled(torch.tensor([[2.0, 0.0]]), 2.0)
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(-1.0)), rel=1e-6)
