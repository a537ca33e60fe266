"""Several ranks as one: what they share, and how a model is spread over them.

``torchrun`` starts the ranks; torch's own engines (DDP, FSDP2) do the work. With one
rank everything here does nothing.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from headstart.execution import Execution
    from headstart.model import Model

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The ranks that train together.

    Attributes:
        rank: This one's number.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any rank says so."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        shared: T = box[0]
        return shared

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def join_world() -> World:
    """The world that ``torchrun`` announced, or a world of one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return World()
    if not dist.is_initialized():
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=of_this_start(store, rank, size),
            rank=rank,
            world_size=size,
        )
    return World(dist.get_rank(), dist.get_world_size())


def of_this_start(store: Store, rank: int, size: int) -> Store:
    """torchrun's store without what ranks left there that were killed before.

    Ranks that are started again are given the same store, and would take the addresses
    of the dead for those of the living (pytorch issue 135712). So rank 0 names every
    start anew, and ranks believe a name once its rank 0 has answered them.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("headstart", mine)
        others = [store.get(f"{mine}/{other}").decode() for other in range(1, size)]
        for other in others:
            store.set(f"{mine}/{other}", "")
        return PrefixStore(mine, store)
    while True:
        start = store.get("headstart").decode()
        store.set(f"{start}/{rank}", mine)
        try:
            store.wait([f"{start}/{mine}"], timedelta(seconds=1))
        except dist.DistStoreError:
            continue
        return PrefixStore(start, store)


def leave_world() -> None:
    """End what :func:`join_world` began; without several ranks, nothing."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def shard(model: Model) -> None:
    """Spread every stage and the head over the ranks (FSDP2), in place.

    Each is a root of its own: the frozen prefix runs outside the rest's forward. A
    root would stay whole after it has run, unless told to let go.
    """
    from torch.distributed.fsdp import fully_shard

    for part in (*model.backbone.stages.values(), model.head):
        if any(True for _ in part.parameters()):
            fully_shard(part, reshard_after_forward=True)


def replicate(model: Model, execution: Execution) -> nn.Module:
    """Whole copies whose gradients are averaged (DDP); anew after each unfreezing."""
    from torch.nn.parallel import DistributedDataParallel

    gpu = execution.device.type == "cuda"
    return DistributedDataParallel(
        model, device_ids=[execution.device] if gpu else None
    )


def whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Shards put together, on the CPU, on every rank."""
    from torch.distributed.tensor import DTensor

    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
        for name, value in tensors.items()
    }


def like(value: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, spread as another one is, on its device."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(model, DTensor) and value.shape == model.shape:
        mesh = model.device_mesh
        return distribute_tensor(value.to(mesh.device_type), mesh, model.placements)
    return value.to(model.device)


def load_whole(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a state dictionary of whole tensors strictly, into shards where it must."""
    own = model.state_dict()
    spread = {
        name: like(value, own[name]) if name in own else value
        for name, value in tensors.items()
    }
    model.load_state_dict(spread, strict=True)
