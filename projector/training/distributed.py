"""Several processes train one map: each takes its share of a batch, gradients are averaged.

It uses torch's process group, if `torchrun` describes one in the environment. In a single process
everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from protos.errors import ConfigError


def start() -> None:
    """Join the group that `torchrun` describes; nothing without one.

    Raises:
        ConfigError: the environment describes a group that cannot be joined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    try:
        dist.init_process_group("gloo")  # it averages what lies on a GPU too
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"torchrun's process group cannot be joined: {error}") from error


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train, 1 alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device(name: str) -> str:
    """The torch device that this process computes on, from the name that all are given."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if name == "cuda" and local is not None else name


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gradients become their mean over all processes."""
    if size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= size()


def mean_count(count: int) -> float:
    """The mean of a count over all processes, for dividing a local sum."""
    if size() == 1:
        return float(count)
    total = torch.tensor(float(count))
    dist.all_reduce(total)
    return float(total) / size()


def most(value: int) -> int:
    """The largest of a number over all processes, so that they decide alike."""
    if size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def barrier() -> None:
    """Wait for all processes."""
    if size() > 1:
        dist.barrier()
