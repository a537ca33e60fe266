"""The settings that the plugin adds to a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headstart.settings import BackboneSettings, DataSettings, HeadSettings, Share

Positive = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(gt=0.0, lt=1.0)]


class TableSettings(BackboneSettings):
    """``[backbone]`` of models with a table of item vectors."""

    factors: Positive = 64
    """Width of the vectors; that of the weights, where there are any."""
    init_std: Annotated[float, Field(gt=0)] = 0.05
    """Standard deviation of vectors that start at random."""
    text: bool = False
    """Add a projection of the items' text vectors (``data.text``) to their table."""


class FactorSettings(TableSettings):
    """``[backbone]`` of ``recsys/matrix-factorisation``."""

    delta: bool = False
    """Add a small trainable table to the items', which can then stay frozen."""
    delta_rank: Annotated[int, Field(ge=0)] = 0
    """Make that table a product of two with so many columns; 0: a whole one."""
    ridge: Annotated[float, Field(gt=0)] = 10.0
    """Regularisation when a new user's vector is solved from a list of items."""


class TwoTowerSettings(TableSettings):
    """``[backbone]`` of ``recsys/two-tower``."""

    item_ids: bool = True
    """Give each item a vector of its own beside its content."""
    user_ids: bool = True
    """Give each user a vector of their own beside their history."""
    history: bool = True
    """Read what users had; training batches then need ``history`` too, without the
    item to be found."""
    width: Positive = 128
    """Hidden width of both towers."""


class SequentialSettings(TableSettings):
    """``[backbone]`` of ``recsys/sequential``."""

    layers: Positive = 2
    """Transformer blocks."""
    attention_heads: Positive = 2
    """Attention heads of a block; they divide ``factors``."""
    dropout: Share = 0.2
    """Share of activations left out in training."""


class RankingSettings(HeadSettings):
    """``[head]`` of ``recsys/ranking``."""

    loss: Literal["softmax", "bpr", "warp"] = "softmax"
    """``softmax`` over sampled items with log-Q correction, or over pairs."""
    in_batch: bool = True
    """``softmax``: other samples' items are negatives as well."""
    in_batch_block: Positive = 1024
    """Samples that share their items so; larger batches are cut, at random."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """What scores start to be multiplied with."""
    train_scale: bool = True
    """Whether that factor trains."""
    bias: bool = True
    """Learn how popular each item is by itself."""
    depth: Positive = 100
    """Length of the ranked lists that metrics see."""
    user_block: Positive = 1024
    """Users whose scores of all items are in memory at once."""


class InteractionSettings(DataSettings):
    """``[data]`` of ``recsys/interactions``."""

    kind: Literal["ranking"] = "ranking"
    """What is to be done: put all items into order for a user."""
    path: str = ""
    """A file (CSV, TSV, Parquet, ``.inter``), a MovieLens folder, or an asset."""
    items_path: str = ""
    """A file about the items; with some formats it is found by itself."""
    user: str = "user"
    """Column of user ids."""
    item: str = "item"
    """Column of item ids."""
    value: str = ""
    """Column of ratings or weights; empty: every event counts alike."""
    time: str = ""
    """Column of times: seconds, milliseconds, or ISO text."""
    session: str = ""
    """Column of session ids."""
    title: str = "title"
    """Column of the items' titles in ``items_path``."""
    category: str = ""
    """Column of the items' categories, several of them separated by ``|``."""
    values: Literal["ratings", "weights"] = "ratings"
    """What ``value`` holds."""
    rating_range: tuple[float, float] | None = None
    """Ratings outside it are faults."""
    positive_from: float | None = None
    """Keep only ratings of at least so much, as events."""
    repeats: Literal["stop", "first", "last", "sum"] = "last"
    """What is kept of a user's events with the same item."""
    min_user_events: Positive = 1
    """Leave out users with fewer events, until all have so many (k-core)."""
    min_item_events: Positive = 1
    """The same for items."""
    catalogue_items: bool = False
    """Rank items of ``items_path`` that nobody has touched as well."""
    split: Literal["temporal", "leave-last-one", "user-holdout"] = "temporal"
    """Where validation and test come from."""
    test_size: Size = 0.1
    """Share of the events, the last ones; with ``user-holdout`` of the users."""
    validation_size: Size = 0.1
    """The same, before the test."""
    test_from: str = ""
    """``temporal``: date of the cut-off in place of ``test_size``."""
    validation_from: str = ""
    """``temporal``: date of the cut-off in place of ``validation_size``."""
    earlier: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training events, the first ones, from which embeddings are learned
    beforehand; the trainer sees the rest."""
    cold_items: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the items whose training events are left out, so that they are new in
    validation (half of them) and test (the other half)."""
    mask_seen: bool = True
    """Never recommend what a user is known to have."""
    candidates: Literal["all", "cold"] = "all"
    """What is ranked."""
    negatives: Annotated[int, Field(ge=0)] = 1
    """Items sampled for each event in training."""
    negative_sampling: Literal["uniform", "popularity"] = "uniform"
    """How they are drawn."""
    history: Annotated[int, Field(ge=0)] = 0
    """Items of a user's history given with each training event; a two-tower model that
    reads histories wants 20 or so."""
    verify_negatives: bool = True
    """Draw again what the user has in training."""
    text: str = ""
    """Vectors of the items' titles: a file, or a text encoder to compute them with."""
    whiten: bool = False
    """Make the text vectors' dimensions uncorrelated and of equal variance."""
    match_norms: bool = False
    """Scale the text vectors to the mean length of the item vectors that weights
    bring."""
    map_ids: str = ""
    """CSV of ``theirs,ours`` item ids, where weights know the items by other names."""


class SequenceSettings(InteractionSettings):
    """``[data]`` of ``recsys/sequences``."""

    length: Positive = 50
    """Most recent items that a sequence holds."""
