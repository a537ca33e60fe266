"""Weights of classes, as heads of several plugins have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from headstart.class_weights import class_weights
from headstart.errors import UserError

LABELS = ["cat", "dog", "owl"]


def test_none_is_no_weight() -> None:
    assert class_weights("none", LABELS, [1, 2, 3]) is None


def test_balanced_is_scikit_learns() -> None:
    counts = [30, 10, 2]
    y = np.repeat([0, 1, 2], counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    balanced = class_weights("balanced", LABELS, counts)
    assert balanced is not None
    np.testing.assert_allclose(balanced.numpy(), expected, rtol=1e-6)


def test_a_class_without_samples_has_a_finite_weight() -> None:
    balanced = class_weights("balanced", LABELS, [6, 3, 0])
    assert balanced is not None and balanced.tolist() == [0.5, 1.0, 3.0]


def test_labels_that_are_not_named_weigh_one() -> None:
    weights = class_weights({"owl": 4}, LABELS, [1, 1, 1])
    assert weights is not None and weights.tolist() == [1.0, 1.0, 4.0]


@pytest.mark.parametrize("weight", [-1.0, 0.0, math.inf, math.nan])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(UserError, match="above 0") as caught:
        class_weights({"owl": weight}, LABELS, [1, 1, 1])
    assert caught.value.faults[0].where == "head.class_weights.owl"


def test_all_faults_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        class_weights({"fish": 2.0, "Dog": 1.0, "owl": -1.0}, LABELS, [1, 1, 1])
    texts = [str(fault) for fault in caught.value.faults]
    assert len(texts) == 3
    assert "'fish'" in texts[0]
    assert "did you mean 'dog'?" in texts[1]
    assert "-1.0" in texts[2]
