"""Chooses how many CPU threads a process uses, and tells its libraries.

PyTorch, ONNX Runtime and BLAS count the machine's cores. In a container with a quota, or on cores
that others use too, their threads then wait for one another and everything is many times slower.
This module asks the control group, the affinity mask and the core count.

On another system than Linux, or if a file is missing, it asks only the core count. It does not
import torch: the caller passes torch's setter in.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.process.control_groups import groups, lines


@dataclass(frozen=True)
class CpuShare:
    """The share of the machine that this process may use.

    Attributes:
        cpus: CPU time in CPUs; a quota may be a fraction.
        because: what set the bound, for the log.
    """

    cpus: float
    because: str

    @property
    def threads(self) -> int:
        """Whole threads that fit: a thread more than the quota would be stopped again and again."""
        return max(1, math.floor(self.cpus + 1e-6))


@dataclass(frozen=True)
class Threads:
    """The number of threads chosen, and why.

    Attributes:
        count: threads to use.
        share: what this process may use.
        wanted: threads in the settings; 0 left the choice to this module.
    """

    count: int
    share: CpuShare
    wanted: int

    @property
    def warning(self) -> str:
        """What is wrong with the setting; empty if it is fine."""
        if self.wanted <= self.share.threads:
            return ""
        return (
            f"{self.wanted} threads are set, but this process has {self.share.cpus:g} CPUs "
            f"({self.share.because}): they will wait for one another; set {self.share.threads}, "
            "or 0 to have it chosen"
        )


def cpu_share(
    root: Path = Path("/"), affinity: int | None = None, count: int | None = None
) -> CpuShare:
    """The least of core count, affinity mask, cpuset and every CPU quota above this process.

    Args:
        root: where `proc` and the control groups' mount points are looked for.
        affinity: CPUs in the affinity mask; the process's own by default.
        count: CPUs of the machine; asked by default.
    """
    found = [CpuShare(count or os.cpu_count() or 1, "CPUs of the machine")]
    if affinity is None and hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    if affinity:
        found.append(CpuShare(affinity, "affinity mask"))
    for folder in groups(root, frozenset({"cpu", "cpuset"})):
        found += _bounds(folder)
    return min(found, key=lambda share: share.cpus)


def choose(wanted: int = 0, share: CpuShare | None = None) -> Threads:
    """The setting, or if it is 0, as many threads as fit; `OMP_NUM_THREADS` is then a bound too.

    Args:
        wanted: threads in the settings.
        share: what this process may use; looked up by default.
    """
    share = share or cpu_share()
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not wanted and given.isdecimal() and 0 < int(given) < share.cpus:
        share = CpuShare(int(given), "OMP_NUM_THREADS")
    return Threads(wanted or share.threads, share, wanted)


def use(wanted: int, *setters: Callable[[int], object]) -> Threads:
    """Choose, and set the number in BLAS and by the setters given.

    Args:
        wanted: threads in the settings; 0 chooses.
        setters: such as `torch.set_num_threads`.
    """
    chosen = choose(wanted)
    limit_blas(chosen.count)
    for setter in setters:
        setter(chosen.count)
    return chosen


def tell(chosen: Threads, log: Any) -> None:
    """Log a choice, and a warning if the setting is too high."""
    log.info(
        "threads",
        threads=chosen.count,
        setting=chosen.wanted,
        cpus=round(chosen.share.cpus, 3),
        because=chosen.share.because,
    )
    if chosen.warning:
        log.warning("too many threads", message=chosen.warning)


def limit_blas(count: int) -> None:
    """Bound the threads of every BLAS and OpenMP library that this process has loaded by now."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(count)


def wait_politely() -> None:
    """Have threads that wait for others sleep; call it before torch is imported.

    By default they spin, and keep the thread they wait for from running: on a busy machine an
    answer then takes 40 times as long. Values that the operator has set stay.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# ---------------------------------------------------------------------- control groups


def _bounds(folder: Path) -> Iterator[CpuShare]:
    """The bounds in one group's files; a missing or unreadable file sets none."""
    for line in lines(folder / "cpu.max"):
        quota, _, period = line.partition(" ")
        cpus = _ratio(quota, period or "100000")
        if cpus:
            yield CpuShare(cpus, f"quota in {folder / 'cpu.max'}")
    period = "".join(lines(folder / "cpu.cfs_period_us"))
    for quota in lines(folder / "cpu.cfs_quota_us"):
        cpus = _ratio(quota, period)
        if cpus:
            yield CpuShare(cpus, f"quota in {folder / 'cpu.cfs_quota_us'}")
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
        for line in lines(folder / name):
            cpus = _cpus_in(line)
            if cpus:
                yield CpuShare(cpus, f"CPU set in {folder / name}")


def _ratio(quota: str, period: str) -> float:
    """CPUs of a quota; 0 if there is none ('max', -1) or it is no number."""
    try:
        return max(0.0, int(quota) / int(period))
    except (ValueError, ArithmeticError):
        return 0.0


def _cpus_in(listed: str) -> int:
    """How many CPUs a list such as '0-3,8' names; 0 if it is no such list."""
    total = 0
    for part in listed.split(","):
        first, _, last = part.strip().partition("-")
        try:
            total += max(0, int(last or first) - int(first) + 1)
        except ValueError:
            return 0
    return total
