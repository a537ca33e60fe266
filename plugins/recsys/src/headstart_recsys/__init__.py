"""Recommenders for headstart: embeddings learned elsewhere as a start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart.hookspecs import hookimpl
from headstart.specs import (
    BackboneSpec,
    DataSpec,
    Feature,
    HeadSpec,
    MetricSpec,
    RecipeSource,
    WeightSourceSpec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__version__ = "0.1.0"
HOOK_API = "1.0"

_TASK: Mapping[str, Any] = {
    "kind": "ranking",
    "items": [f"item {i}" for i in range(12)],
    "users": [f"user {i}" for i in range(6)],
    "counts": [9, 7, 5, 5, 4, 3, 2, 2, 1, 1, 0, 0],
    "titles": [],
    "cold": [10, 11],
    "categories": {"names": ["a", "b", "c"], "rows": [[i % 3] for i in range(12)]},
    "text": {},
    "mask_seen": True,
    "candidates": "all",
}
_SEQUENCES = {**_TASK, "sequence_length": 6}


def _backbone(name: str, summary: str, build: str, **varying: Any) -> BackboneSpec:
    return BackboneSpec(
        name=f"recsys/{name}",
        summary=summary,
        factory=f"headstart_recsys.backbones:build_{build}",
        weights="none",
        **{"sample_task": _TASK, "tiny": {"weights": "none", "factors": 8}, **varying},
    )


@hookimpl
def register_backbones() -> Sequence[BackboneSpec]:
    table = Feature("item_table", "table")
    users: dict[str, Any] = {
        "inputs": ("user", "history"),
        "features": (table, Feature("query", "vector")),
        "sample": "headstart_recsys.backbones:sample_users",
    }
    return [
        _backbone(
            "matrix-factorisation",
            "a vector for each user and item, matched by their dot product",
            "matrix_factorisation",
            settings="headstart_recsys.settings:FactorSettings",
            **users,
        ),
        _backbone(
            "two-tower",
            "items by their content, users by their history, each through a network",
            "two_tower",
            settings="headstart_recsys.settings:TwoTowerSettings",
            **{
                **users,
                "tiny": {"weights": "none", "factors": 8, "width": 8},
            },
        ),
        _backbone(
            "sequential",
            "SASRec: a transformer over what a user had, in order",
            "sequential",
            settings="headstart_recsys.settings:SequentialSettings",
            inputs=("sequence",),
            features=(table, Feature("hidden", "tokens")),
            sample="headstart_recsys.backbones:sample_sequences",
            sample_task=_SEQUENCES,
        ),
    ]


def _head(name: str, summary: str, **varying: Any) -> HeadSpec:
    return HeadSpec(
        name=f"recsys/{name}",
        summary=summary,
        factory="headstart_recsys.heads:build_ranking",
        settings="headstart_recsys.settings:RankingSettings",
        kinds=("ranking",),
        metrics=("ndcg@10", "recall@20", "hr@10", "mrr@10", "coverage@10"),
        sample="headstart_recsys.heads:sample_targets",
        tiny={"in_batch": False},
        options="headstart_recsys.options:RankingOptions",
        **varying,
    )


@hookimpl
def register_heads() -> Sequence[HeadSpec]:
    return [
        _head(
            "ranking",
            "all items in order for a user: sampled softmax, BPR or WARP",
            needs=("vector",),
            targets=("item", "weight", "negatives", "held_out", "cold_user"),
            sample_task=_TASK,
        ),
        _head(
            "next-item",
            "all items in order for what a user had last: the same losses",
            needs=("tokens",),
            targets=("positives", "negatives", "held_out", "cold_user"),
            sample_task=_SEQUENCES,
        ),
    ]


@hookimpl
def register_data() -> Sequence[DataSpec]:
    # The negatives are sampled on the device (DataModule.augment).
    evaluated = ("user", "history", "held_out", "cold_user", "negatives")
    return [
        DataSpec(
            name="recsys/interactions",
            summary="who had what when: CSV, TSV, Parquet, RecBole, MovieLens",
            factory="headstart_recsys.data:InteractionData",
            settings="headstart_recsys.settings:InteractionSettings",
            yields=(*evaluated, "item", "weight"),
            tiny="headstart_recsys.tiny:tiny_interactions",
        ),
        DataSpec(
            name="recsys/sequences",
            summary="the same, as each user's items in order",
            factory="headstart_recsys.data:SequenceData",
            settings="headstart_recsys.settings:SequenceSettings",
            yields=(*evaluated, "sequence", "positives"),
            tiny="headstart_recsys.tiny:tiny_sequences",
        ),
    ]


_RANKED = {
    "ndcg": "discounted gain of the right items among the first {k}",
    "recall": "share of a user's right items among the first {k}",
    "precision": "right items among the first {k}, of as many as there could be",
    "hr": "share of users with a right item among the first {k}",
    "mrr": "reciprocal rank of the first right item among the first {k}",
    "map": "mean average precision of the first {k}",
    "auc": "area under the ROC curve, what is beyond the first {k} in any order",
}
_GROUPS = {
    "": ("hits", "relevant"),
    "cold-": ("cold_hits", "cold_relevant"),
    "cold-users-": ("hits", "relevant", "cold_user"),
    "known-users-": ("hits", "relevant", "cold_user"),
}
_ABOUT = {
    "cold-": "; items without an event in training, among themselves",
    "cold-users-": "; users without an event in training",
    "known-users-": "; users with events in training",
}


def _metric(name: str, k: int, summary: str, **varying: Any) -> MetricSpec:
    code = f"headstart_recsys.metrics:{name.replace('-', '_')}_at_{k}"
    averaged = not name.endswith(("precision", "coverage"))
    return MetricSpec(
        name=f"recsys/{name}@{k}",
        summary=summary.format(k=k),
        factory=code,
        kinds=("ranking",),
        sample="headstart_recsys.metrics:sample_outputs",
        sample_task=_TASK,
        scores=f"{code}_scores" if averaged else "",
        **{"goal": "max", **varying},
    )


@hookimpl
def register_metrics() -> Sequence[MetricSpec]:
    everyone = [
        _metric(name, k, summary, inputs=_GROUPS[""])
        for name, summary in _RANKED.items()
        for k in (5, 10, 20, 50, 100)
    ]
    apart = [
        _metric(f"{group}{name}", k, _RANKED[name] + about, inputs=_GROUPS[group])
        for group, about in _ABOUT.items()
        for name in ("ndcg", "recall", "hr")
        for k in (10, 20)
    ]
    lists = [
        _metric(
            "coverage", k, "share of the items in anybody's first {k}", inputs=("top",)
        )
        for k in (10, 20)
    ] + [
        _metric(
            "popularity",
            k,
            "how popular the first {k} are, from 0 to 1; .5 is without a bias",
            inputs=("top",),
            goal="min",
        )
        for k in (10, 20)
    ]
    return [*everyone, *apart, *lists]


@hookimpl
def register_weight_sources() -> Sequence[WeightSourceSpec]:
    code = "headstart_recsys.weights:resolve_"
    return [
        WeightSourceSpec(
            "embeddings",
            "a file of vectors with ids: npz, npy, safetensors, Parquet",
            f"{code}embeddings",
        ),
        WeightSourceSpec(
            "implicit",
            "als, bpr or lmf of implicit, learned from the data's earlier part",
            f"{code}implicit",
        ),
        WeightSourceSpec(
            "text", "vectors of the items' titles (data.text)", f"{code}text", bare=True
        ),
    ]


@hookimpl
def register_recipes() -> Sequence[RecipeSource]:
    return [
        RecipeSource(f"recsys/{name}", "headstart_recsys", f"recipes/{name}.toml")
        for name in ("warm-start", "cold-items", "sequential", "pretrain")
    ]
