"""The settings of a recipe, validated by pydantic; torch-free.

A plugin's own settings subclass :class:`BackboneSettings`, :class:`HeadSettings` or
:class:`DataSettings` in its ``settings.py`` and are named by its specs. Every key is
known, typed and documented; an unknown key is an error that names the nearest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class BackboneSettings(Settings):
    """``[backbone]``: which pretrained network, and how much of it."""

    name: str
    """A backbone; `headstart list backbones` names them."""
    weights: str = ""
    """Weights reference (``asset:``, ``hf:``, ``file:``, ``none`` …); empty takes the
    backbone's default."""
    keep: Annotated[int, Field(ge=1)] | None = None
    """Keep only the first so many stages; ``None`` keeps all."""
    allow: tuple[str, ...] = ()
    """Glob patterns of tensors that may be missing, left over or of another shape."""


class HeadSettings(Settings):
    """``[head]``: what turns features into losses and predictions."""

    name: str
    """A head that reads what the backbone gives; `headstart list heads`."""

    def asks(self) -> Mapping[str, Any]:
        """What data must know of the head to check samples; nothing by default.

        It is ``DataModule.asked``, from before ``load`` on.
        """
        return {}


class ClassificationSettings(HeadSettings):
    """``[head]`` of heads that give labels."""

    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """``balanced`` weighs each class by the inverse of its frequency in train."""
    label_smoothing: Share = 0.0
    """Share of the target that is spread over all classes."""


class PredictOptions(Settings):
    """What ``headstart predict`` takes beside the inputs, as ``--option value``."""

    def inputs(self) -> Sequence[Any]:
        """Inputs that options stand for, beside those that are named as such."""
        return ()

    def bare(self) -> str:
        """The entry of a prediction that is printed as it is, where there is one input
        and nobody asked for JSON: subtitles, a transcript; by default rows are."""
        return ""


class DataSettings(Settings):
    """``[data]``: where samples come from and what happens to bad ones."""

    name: str
    """A data module that yields what the backbone reads; `headstart list data`."""
    kind: str = ""
    """What the targets are (``single-label``, ``boxes`` …); the head must know it."""
    bad: Literal["stop", "skip"] = "stop"
    """What to do about a bad sample: stop before training, or leave it out, counted."""
    bad_cap: Share = 0.05
    """With ``skip``: stop all the same when more than this share is bad."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read and collate; 0 does it in the training process."""


class LoraSettings(Settings):
    """``[strategy.lora]``: low-rank adapters beside frozen layers (needs ``peft``)."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the update of each layer."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The update counts ``alpha / rank`` times (``alpha / sqrt(rank)`` with
    ``rslora``)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of what goes into the adapters."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers that get an adapter, by the end of their names (``q_proj``,
    ``attention.self.query``); ``all-linear`` takes every linear layer."""
    stages: tuple[str, ...] = ()
    """The stages whose layers get one; empty takes all but the output."""
    dora: bool = False
    """Also train each layer's norms (DoRA)."""
    rslora: bool = False
    """Scale by the root of the rank (rsLoRA), for high ranks."""
    adapter: str = ""
    """Folder of an adapter in peft's format to start from; it says rank, alpha and
    targets itself."""
    base: str = ""
    """What the adapter calls its base model, where ``backbone.weights`` has the same
    model under another name."""


class StrategySettings(Settings):
    """``[strategy]``: which stages train, when, at which learning rate."""

    name: Literal[
        "feature-extraction",
        "layer-retraining",
        "global",
        "gradual",
        "lp-ft",
        "surgical",
        "lora",
        "scratch",
        "none",
    ] = "global"
    """What trains; see docs/recipes.md."""
    train_last: Annotated[int, Field(ge=1)] | None = None
    """``layer-retraining``: how many of the last stages train (default 1)."""
    freeze_until: str = ""
    """The last stage that never trains, by name: the freeze point of
    ``layer-retraining``, and where ``gradual`` and ``lp-ft`` stop."""
    stages: tuple[str, ...] = ()
    """``surgical``: the stages that train, by name."""
    unfreeze_share: Share = 0.5
    """``gradual``: share of the training after which every stage trains."""
    head_share: Share = 0.3
    """``lp-ft``: share of the training that goes to the head alone."""
    stage_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Learning-rate factor from one stage to the one below it."""
    lora: LoraSettings = Field(default_factory=LoraSettings)
    """``lora``: the adapters."""

    _readers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train_last": ("layer-retraining",),
        "freeze_until": ("layer-retraining", "gradual", "lp-ft"),
        "stages": ("surgical",),
        "unfreeze_share": ("gradual",),
        "head_share": ("lp-ft",),
        "lora": ("lora",),
    }

    def not_read(self, key: str) -> tuple[str, ...]:
        """The strategies that read a key which this one leaves unread; else none."""
        readers = self._readers.get(key, ())
        if self.name in readers or key not in self._readers:
            return ()
        return readers if getattr(self, key) != getattr(type(self)(), key) else ()


class TrainSettings(Settings):
    """``[train]``: the loop."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training split; may be a fraction."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many optimizer steps, whatever ``epochs`` says."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Samples per optimizer step."""
    batch_total: Annotated[float, Field(gt=0)] | None = None
    """Most that the samples of a step take together with their padding, in the data's
    unit (seconds of sound); ``batch_size`` is then the most samples. Evaluation takes
    twice as much."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts into which a rank's share of a batch is cut, one after another; the result
    is the same. Doubled by itself when a GPU alone runs out of memory."""
    micro_batch: Literal["auto", "off"] = "off"
    """``auto`` tries the largest batch before training, and cuts it until it fits."""
    eval_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Samples per forward pass in evaluation; ``None`` takes twice ``batch_size``."""
    group_by_size: bool = True
    """Put samples of similar size into one batch, where the data tells sizes."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``sgd`` has a momentum of 0.9."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = 5e-5
    """``auto`` runs a learning-rate range test first and takes its suggestion."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the head, of ``lp-ft`` while it trains alone; ``None`` takes
    ``learning_rate``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of matrices; biases and normalisation do not decay."""
    schedule: Literal["linear", "cosine", "constant", "tri-stage"] = "linear"
    """How the learning rate falls after the warm-up; ``tri-stage`` holds it before it
    falls exponentially."""
    warmup: Share = 0.06
    """Share of the steps over which the learning rate rises from 0."""
    hold: Share = 0.4
    """``tri-stage``: share of the steps over which it stays after that."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 does not clip."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of the exponential moving average that is evaluated and saved; 0 is off."""
    evaluate_every: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between two validations, with a checkpoint each."""
    evaluate_at_start: bool = False
    """Validate before the first step too: what the weights bring by themselves."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between two further checkpoints; ``None`` saves at validations alone."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 1
    """How many of the last checkpoints stay, the best one not counted."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two lines of the metrics log."""
    seed: Annotated[int, Field(ge=0, lt=10**9)] = 0
    """Of splits, new parameters, the order of samples, dropout and augmentation."""
    device: str = "auto"
    """``auto`` takes a CUDA device where there is one, else the CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` is bf16 autocast on a GPU that has it, else fp32."""
    bad_steps: Annotated[int, Field(ge=1)] = 10
    """Steps with a loss or gradient that is not finite after which the run stops;
    until then they are left out and counted."""
    gradient_checkpointing: bool = False
    """Keep only what goes from stage to stage and compute each stage a second time in
    the backward pass: less memory, about a third more time, the same numbers."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks (``torchrun``) share the work: whole copies or shards."""
    compile: bool = False
    """Compile what trains with ``torch.compile``; costs minutes before it pays."""
    channels_last: bool = True
    """Keep images and volumes channels-last in memory, which convolutions like."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs ``headstart[tensorboard]``)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = []
        if self.schedule == "tri-stage" and self.warmup + self.hold > 1 + 1e-9:
            faults.append(
                f"warmup and hold: {self.warmup:g} and {self.hold:g} are more than all "
                "steps; choose less, so that some are left in which the rate falls"
            )
        if self.batch_total is not None and not self.group_by_size:
            faults.append(
                "batch_total: makes batches by size, which group_by_size = false "
                "forbids; leave one of them out"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class CacheSettings(Settings):
    """``[cache]``: keep what frozen stages give, instead of computing it again."""

    mode: Literal["auto", "on", "off"] = "auto"
    """``auto`` measures one batch and uses the cache where it pays."""
    views: Annotated[int, Field(ge=0)] = 0
    """Random augmentations of each sample to store; 0 stores none, and then data that
    is augmented at random is not cached."""
    memory_gb: Annotated[float, Field(ge=0)] = 2.0
    """A larger cache stays on disk and is memory-mapped."""
    disk_gb: Annotated[float, Field(ge=0)] = 20.0
    """A larger one is not made."""
    precision: Literal["same", "fp16", "bf16"] = "same"
    """How floating-point values are stored; less is smaller and no longer exact."""


class EarlyStoppingSettings(Settings):
    """``[early_stopping]``: give up when validation no longer improves."""

    patience: Annotated[int, Field(ge=0)] = 0
    """Validations without improvement before stopping; 0 is off."""
    metric: str = ""
    """Any validation metric, or ``loss``; empty takes ``metrics.best``."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smaller changes count as no improvement."""


class MetricSettings(Settings):
    """``[metrics]``: what is measured, and which decides."""

    names: tuple[str, ...] = ()
    """Short names; empty takes the head's own."""
    best: str = ""
    """The metric that picks the best checkpoint; empty takes the first name."""


class ReportSettings(Settings):
    """``[report]``: the evidence."""

    baselines: bool = True
    """Set simple baselines beside the result, and the model as it was untouched."""
    samples: Annotated[int, Field(ge=0)] = 12
    """Rows in the tables of wrong and unsure samples."""
    scratch_control: bool = False
    """Also train the same model from random weights at equal steps."""


class Expectation(Settings):
    """``[expect]``: what a recipe should reach, on what, in which time."""

    metrics: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Range of each test metric."""
    on: str = ""
    """The data that the ranges are for."""
    takes: str = ""
    """How long it takes, on what."""
