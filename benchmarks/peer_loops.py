"""The same training by four loops: ours, a plain one, Hugging Face's, Lightning's.

All take AdamW with fused kernels and no weight decay, gradients clipped at norm 1, a
learning rate that falls linearly, a loss logged every ten steps, and no checkpoints.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from headstart.batches import epoch_length
from headstart.callbacks import Callback, MetricsLog, Watchers
from headstart.clock import Clock
from headstart.training_setup import make_trainer, plan_training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import DataLoader

    from headstart.assembly import Assembly
    from headstart.recipe import Recipe
    from headstart.trainer import Trainer

EQUAL = {
    "train.weight_decay": 0.0,
    "train.warmup": 0.0,
    "train.schedule": "linear",
    "train.clip": 1.0,
    "train.log_every": 10,
}
"""What a recipe says so that our loop does what the others do."""
LOG_EVERY = 10


@dataclass(frozen=True)
class Job:
    """One training, from the built model to the trained one.

    Attributes:
        seconds: Of the whole job.
        epochs: Seconds up to the end of each epoch since that of the one before.
        model: What was trained.
    """

    seconds: float
    epochs: list[float]
    model: nn.Module


class Watch:
    """Reads the time at the start of a job and at the end of each epoch."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def tick(self) -> None:
        self.times.append(time.perf_counter())

    def job(self, model: nn.Module) -> Job:
        seconds = time.perf_counter() - self.times[0]
        epochs = [after - before for before, after in pairwise(self.times)]
        return Job(seconds, epochs, model)


class EpochEnds(Callback):
    """Ticks a watch after the last step of each epoch, before any validation."""

    def __init__(self, watch: Watch, steps_per_epoch: int, tell: bool) -> None:
        self.watch = watch
        self.tell = tell
        self.steps_per_epoch = steps_per_epoch

    def on_step(self, step: int) -> None:
        if step % self.steps_per_epoch == 0:
            self.watch.tick()

    def on_message(self, text: str) -> None:
        if self.tell:
            print(f"  {text}")


@contextmanager
def cold_cache() -> Iterator[None]:
    """A cache folder with nothing in it."""
    before = os.environ.get("HEADSTART_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEADSTART_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["HEADSTART_CACHE"]
            else:
                os.environ["HEADSTART_CACHE"] = before


def ours(
    recipe: Recipe, assembly: Assembly, *, tell: bool = True
) -> tuple[Job, Trainer]:
    """Our trainer, with its metrics log; validates once, after the last step."""
    watch = Watch()
    steps = epoch_length(assembly.data, recipe.train)
    with (
        tempfile.TemporaryDirectory() as folder,
        Watchers([EpochEnds(watch, steps, tell)]) as watchers,
    ):
        watchers.append(MetricsLog(Path(folder) / "metrics.jsonl"))
        trainer = make_trainer(
            recipe,
            assembly,
            plan_training(recipe, assembly),
            Clock(assembly.execution.device),
            watchers,
        )
        trainer.fit()
        return watch.job(assembly.model), trainer


def falling(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: (steps - step) / steps)


def plain(
    model: nn.Module, loader: DataLoader[Any], *, epochs: int, learning_rate: float
) -> Job:
    """What one writes by hand; whether the backbone drops out is the model's affair."""
    watch = Watch()
    model.train()
    training = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        training, lr=learning_rate, weight_decay=0.0, fused=True
    )
    schedule = falling(optimizer, epochs * len(loader))
    losses = []
    for _ in range(epochs):
        for step, batch in enumerate(loader, start=1):
            loss = model(**batch)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(training, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % LOG_EVERY == 0:
                losses.append(loss.item())
        watch.tick()
    return watch.job(model)


def hugging_face(
    model: nn.Module,
    samples: Any,
    collate: Any,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    loader: DataLoader[Any] | None = None,
    **arguments: Any,
) -> Job:
    """transformers' Trainer; the order is its own unless a loader is given."""
    import transformers

    transformers.utils.logging.set_verbosity_error()

    class Ticks(transformers.TrainerCallback):
        def on_epoch_end(self, *state: Any, **more: Any) -> None:
            watch.tick()

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return loader if loader is not None else super().get_train_dataloader()

    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=batch_size,
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                logging_steps=LOG_EVERY,
                save_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                **arguments,
            ),
            train_dataset=samples,
            data_collator=collate,
            callbacks=[Ticks()],
        )
        # It prints each logged line; the log itself stays on.
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return watch.job(model)


def lightning(
    model: nn.Module, loader: DataLoader[Any], *, epochs: int, learning_rate: float
) -> Job:
    """Lightning's Trainer, quiet.

    Since 2.2 it leaves modules in the mode that they were given in.
    """
    with quiet():
        import lightning as lit

        class Module(lit.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def training_step(self, batch: Any, index: int) -> torch.Tensor:
                loss = self.model(**batch)["loss"]
                self.log("loss", loss)
                return loss

            def configure_optimizers(self) -> Any:
                training = [p for p in self.parameters() if p.requires_grad]
                optimizer = torch.optim.AdamW(
                    training, lr=learning_rate, weight_decay=0.0, fused=True
                )
                schedule = falling(optimizer, epochs * len(loader))
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]

            def on_train_epoch_end(self) -> None:
                watch.tick()

        watch = Watch()
        model.train()
        trainer = lit.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            gradient_clip_val=1.0,
            log_every_n_steps=LOG_EVERY,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(Module(), loader)
    return watch.job(model)


@contextmanager
def quiet() -> Iterator[None]:
    """No advice on the screen that is neither about speed nor about results."""
    import lightning  # noqa: F401 - it sets its loggers' level when imported

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
