"""How many threads are chosen: from made-up control groups, as containers and systemd make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protos.process import threads
from protos.process.threads import CpuShare, choose, cpu_share, tell

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def machine(root: Path, cgroup: str, mountinfo: str, **files: str) -> Path:
    """A root folder with these control group files, `path__in__it=text`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_tightest_quota_above_the_process_counts_not_only_its_own(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/pods/pod7/agent\n",
        V2_MOUNT,
        pods__pod7__agent__cpu_max="400000 100000\n",
        pods__pod7__cpu_max="150000 100000\n",
        pods__cpu_max="max 100000\n",
    )
    share = cpu_share(root, affinity=64, count=64)
    assert share.cpus == 1.5 and share.threads == 1
    assert share.because.endswith("pods/pod7/cpu.max")


def test_a_container_that_sees_its_own_group_as_the_top_is_bounded(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", V2_MOUNT, cpu_max="250000 100000\n")
    assert cpu_share(root, affinity=16, count=16).threads == 2


def test_a_group_mounted_below_the_top_is_found(tmp_path: Path) -> None:
    mount = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    root = machine(tmp_path, "0::/docker/abc/inner\n", mount, inner__cpu_max="300000 100000\n")
    assert cpu_share(root, affinity=16, count=16).cpus == 3.0


V1 = (
    "31 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 30 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 30 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def test_version_1_quotas_and_cpu_sets_count(tmp_path: Path) -> None:
    cgroup = "11:cpuset:/box\n4:cpu,cpuacct:/box\n3:memory:/box\n0::/\n"
    root = machine(tmp_path, cgroup, V1)
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct/box"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("600000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    sets = tmp_path / "sys/fs/cgroup/cpuset/box"
    sets.mkdir(parents=True)
    assert cpu_share(root, affinity=16, count=16).cpus == 6.0
    (sets / "cpuset.cpus").write_text("0-1,4,6\n")
    assert cpu_share(root, affinity=16, count=16) == CpuShare(
        4.0, f"CPU set in {sets / 'cpuset.cpus'}"
    )
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    (sets / "cpuset.cpus").write_text("\n")
    assert cpu_share(root, affinity=12, count=16) == CpuShare(12, "affinity mask")


@pytest.mark.parametrize(
    "text",
    [
        *("max 100000\n", "max", "", "many few\n", "100000 0\n", "-5 100000\n", "\xff\xfe"),
        "9" * 400 + " 1\n",
    ],
)
def test_no_quota_or_an_unreadable_one_leaves_affinity_and_cores(tmp_path: Path, text: str) -> None:
    root = machine(tmp_path, "0::/a\n", V2_MOUNT)
    (root / "sys/fs/cgroup/a").mkdir(parents=True)
    (root / "sys/fs/cgroup/a/cpu.max").write_bytes(text.encode("latin-1"))
    assert cpu_share(root, affinity=3, count=8).threads == 3


def test_a_quota_whose_line_has_no_end_counts_wherever_it_is_mounted(tmp_path: Path) -> None:
    """Some sandboxes write these files by themselves; the kernel writes a blank as \\040."""
    mount = "30 23 0:26 / /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup2 rw"
    root = machine(tmp_path, "0::/a", mount)
    folder = tmp_path / "sys/fs/cgroup/my groups/a"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text("200000 100000")
    assert cpu_share(root, affinity=16, count=16).cpus == 2.0


@pytest.mark.parametrize("listed", ["5-2", "-", "3-1,9-7", "all"])
def test_a_set_that_names_no_cpu_bounds_nothing(tmp_path: Path, listed: str) -> None:
    root = machine(tmp_path, "0::/", V2_MOUNT)
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpuset.cpus.effective").write_text(listed + "\n")
    assert cpu_share(root, affinity=3, count=8).threads == 3


def test_without_any_control_group_files_the_machine_counts(tmp_path: Path) -> None:
    assert cpu_share(tmp_path, affinity=8, count=8).threads == 8


@pytest.mark.parametrize(("quota", "threads"), [(20000, 1), (99999, 1), (100000, 1), (290000, 2)])
def test_a_fraction_of_a_cpu_gets_no_thread_of_its_own(
    tmp_path: Path, quota: int, threads: int
) -> None:
    root = machine(tmp_path, "0::/\n", V2_MOUNT, cpu_max=f"{quota} 100000\n")
    assert cpu_share(root, affinity=8, count=8).threads == threads


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = info


def test_the_choice_is_logged_and_a_setting_above_the_share_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = CpuShare(1.5, "quota in cpu.max")
    log = Log()
    tell(choose(0, share), log)
    tell(choose(8, share), log)
    assert [event for event, _ in log.lines] == ["threads", "threads", "too many threads"]
    assert log.lines[0][1] | {"threads": 1, "because": "quota in cpu.max"} == log.lines[0][1]
    assert log.lines[1][1]["threads"] == 8, "what is set is used"
    assert "set 1" in log.lines[2][1]["message"]


def test_omp_num_threads_bounds_the_choice_but_not_a_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share = CpuShare(8, "affinity mask")
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert choose(0, share).count == 3 and choose(6, share).count == 6
    monkeypatch.setenv("OMP_NUM_THREADS", " 2 ")
    assert choose(0, share).count == 2
    for junk in ("lots", "", "0", "-1", "2.5", ",3", "9" * 30):
        monkeypatch.setenv("OMP_NUM_THREADS", junk)
        assert choose(0, share).count == 8


def test_blas_keeps_to_the_choice() -> None:
    import numpy  # noqa: F401 - loads its BLAS
    from threadpoolctl import threadpool_info

    before = {entry["filepath"]: entry["num_threads"] for entry in threadpool_info()}
    try:
        heard: list[int] = []
        assert threads.use(1, heard.append).count == 1 and heard == [1]
        assert all(entry["num_threads"] == 1 for entry in threadpool_info())
    finally:
        threads.limit_blas(max(before.values(), default=1))


def test_every_backend_takes_the_choice_where_the_setting_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from projector.serving.backends import BACKENDS, CloudFiles
    from projector.serving.backends.base import Backend
    from tests.cloud_server import stage

    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    class Opens(Backend):
        name = "opens"

        def _open(self, files: CloudFiles) -> None: ...

        def _run(self, *_: Any) -> Any: ...

    assert BACKENDS and Opens(CloudFiles(b"", b""), stage.SOURCE, 4, threads=0).threads == 1
