"""The head contract: what turns features into losses and predictions."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart.errors import Fault
    from headstart.model import Model
    from headstart.report.parts import Evaluation, Section
    from headstart.settings import PredictOptions
    from headstart.stages import State


class Head(nn.Module):
    """Reads features from the state, adds its own results to it.

    Losses are means over the units of a batch (samples, tokens, boxes, voxels), and
    :meth:`weight` tells how many units that is, so that batches cut into parts and
    spread over ranks average correctly.

    Attributes:
        reads: The features that it reads; empty stands for all. Others are dropped
            behind the freeze point, as soon as no stage reads them any more.
        upstream: Prefixes of our parameter names to prefixes of the upstream
            library's, where pretrained files hold a head of this kind; empty where
            none does.
        options: What ``headstart predict`` was told beside the inputs; ``None``
            outside of it.
        calibration: What :meth:`calibrate` gave after the training of the run that this
            is the model of; empty before.
        emit: Takes pieces of a prediction as they come, where somebody watches; a head
            that makes predictions piece by piece calls it.
        cacheable: Whether evaluation may start from cached features; not where
            :meth:`infer` does more in it than to run the model once.
        neutral: Parameters that change no answer at the values they start at (a scale,
            biases of 0): with pretrained weights for all else the model can be tested
            before it is trained.
    """

    cacheable: ClassVar[bool] = True
    neutral: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.reads: tuple[str, ...] = ()
        self.upstream: Mapping[str, str] = {}
        self.options: PredictOptions | None = None
        self.emit: Callable[[str], None] | None = None
        self.calibration: Mapping[str, float] = {}

    @property
    def reduction(self) -> str:
        """What :meth:`reduce` does, in a word; part of the key of cached features."""
        return ""

    def reduce(self, state: State) -> State:
        """The part of the head before its first parameter, e.g. mean pooling.

        Always runs before :meth:`forward`, without gradients when the whole backbone
        is frozen; its result is then cached in place of the features. So it is a
        function of the state alone, without dropout, and it leaves out what the rest
        of the head does not read. By default it changes nothing.
        """
        return state

    @abstractmethod
    def forward(self, state: State) -> State:
        """A new state with what loss and outputs need, e.g. ``logits``.

        Args:
            state: What :meth:`reduce` gave.
        """

    @abstractmethod
    def loss(self, state: State) -> Tensor:
        """Mean loss over the batch's units; reads the state that ``forward`` gave."""

    @abstractmethod
    def weight(self, batch: State) -> Tensor:
        """Units in a batch as a scalar float tensor, from the collated batch alone.

        Known before the forward pass, so that parts of a batch can be weighted. Reads
        targets only: of a cached batch there may be nothing else.
        """

    def infer(self, model: Model, batch: State) -> State:
        """The state that ``loss`` and ``outputs`` read, outside of training.

        By default the model runs once on the batch. A head may do more: windows that
        slide over a volume, generation of text token by token.

        Args:
            model: In evaluation mode, this head in it.
            batch: Collated, on the model's device.
        """
        state: State = model(model.prefix(batch))
        return state

    @abstractmethod
    def outputs(self, state: State) -> dict[str, Any]:
        """Results for metrics and predictions: one row per sample in every value.

        Includes the targets when the batch has them. Tensors (batch, …) or lists.
        """

    @abstractmethod
    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Predictions for people, one JSON-ready dictionary per sample."""

    def adapt_classes(
        self, name: str, theirs: Tensor, ours: Tensor, classes: Sequence[str]
    ) -> Tensor | None:
        """Our parameter's value from a pretrained head's, class by class.

        Args:
            name: Of our parameter, inside the head.
            theirs: The pretrained tensor.
            ours: Our parameter, with its present values.
            classes: The pretrained head's classes in the order of its rows.

        Returns:
            Rows of classes with our names from ``theirs``, all others from ``ours``;
            ``None`` when the parameter does not depend on classes.
        """
        return None

    def calibrate(self, outputs: Mapping[str, Any]) -> dict[str, float]:
        """Fit what a training does not: a temperature, a threshold.

        Called once after the training; the result is kept with the run and set as
        ``calibration`` whenever its model is used.

        Args:
            outputs: Those of the validation split, as NumPy arrays or lists.

        Returns:
            Numbers by name; by default there is nothing to fit.
        """
        return {}

    def diagnose(self, metrics: Mapping[str, float]) -> Sequence[Fault]:
        """What metrics show to have gone wrong, with its likely causes.

        Called after each validation, and told at once; of the test it stands among the
        warnings of the report.

        Args:
            metrics: By short name, ``loss`` among them.

        Returns:
            Nothing by default.
        """
        return ()

    def probe(self, model: Model) -> dict[str, Any]:
        """What the report shows from before and after the training, beside each other.

        Called before the first step and after the last; ``report`` finds the results
        in ``Evaluation.before`` and ``.after``.

        Returns:
            Tensors, and values that JSON can hold; nothing by default.
        """
        return {}

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        """Sections of the report that only this kind of task has."""
        return ()
