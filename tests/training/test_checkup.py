"""Every check says ok, warn or fail of what is really there, and how to mend it."""

import json
import math
import resource
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mpp.training import checkup as module
from mpp.training.checkup import (
    Finding,
    cgroup_processors,
    checkup,
    deepspeed,
    devices,
    limits,
    meeting,
    processors,
    requirements,
    room,
    shared_memory,
    torchvision,
    versions,
)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_can_be_looked_over() -> None:
    import torch

    assert torch.__version__ in versions().text
    assert torchvision().status == deepspeed().status == "ok"
    assert all(finding.status == "ok" and "FLOP/s" in finding.text for finding in devices())
    for finding in (processors(), shared_memory(), *limits(), room(Path.cwd()), requirements()):
        assert finding.status == "ok" or finding.fix


def test_a_package_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "mpp-9.dist-info" / "METADATA"
    about.parent.mkdir()
    head = "Metadata-Version: 2.1\nName: mpp\nVersion: 9\nRequires-Dist: timm>=99\nRequires-Dist: numpy>=1\n"
    about.write_text(head + "Requires-Dist: no-such-thing\nRequires-Dist: neither; extra == 'ray'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = requirements()
    assert (found.status, found.exit_code) == ("fail", 2)
    assert "timm 1." in found.text and "needed >=99" in found.text and "no-such-thing missing" in found.text
    assert "numpy" not in found.text and "neither" not in found.text


def test_a_torchvision_of_another_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))  # without its operators
    assert (torchvision().status, torchvision().exit_code) == ("fail", 2)


@pytest.mark.parametrize(("text", "count"), [("max 100000", math.inf), ("250000 100000", 2.5), ("", math.inf)])
def test_a_container_s_limit_is_read(text: str, count: float, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert cgroup_processors(tmp_path / "cpu.max") == count
    assert cgroup_processors(tmp_path / "none") == math.inf


def test_little_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SHARED", 1e18)
    assert shared_memory().status == "warn" and "--shm-size" in shared_memory().fix
    assert shared_memory(tmp_path / "none").status == "warn"


def test_limits_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value, name, status, code in (
        (resource.RLIMIT_NOFILE, 1000, "open files", "warn", 0),
        (resource.RLIMIT_FSIZE, 10**8, "file size", "fail", 7),
    ):
        before = resource.getrlimit(limit)
        resource.setrlimit(limit, (value, before[1]))
        try:
            found = by_name(list(limits()))[name]
        finally:
            resource.setrlimit(limit, before)
        assert (found.status, found.exit_code) == (status, code)
        assert f"{value:,}" in found.text and "ulimit" in found.fix


def test_little_room_is_a_warning_and_none_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW_ROOM", 1e18)
    assert room(tmp_path).status == "warn"
    monkeypatch.setattr(module, "LEAST_ROOM", 1e18)
    assert (room(tmp_path).status, room(tmp_path).exit_code) == ("fail", 7)


def test_a_slow_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_DISK", 1e15)
    found = module._tried("disk speed", module.DiskError, lambda: module._speed(tmp_path))
    assert found.status == "warn" and "MB/s written" in found.text


def test_processes_that_do_not_meet_fail_with_6() -> None:
    found = meeting("gloo", 0.1)
    assert (found.status, found.exit_code) == ("fail", 6)
    assert "did not meet" in found.text and "GLOO_SOCKET_IFNAME" in found.fix


@pytest.mark.slow
def test_the_whole_of_it_passes_here_but_for_what_the_machine_lacks(tmp_path: Path) -> None:
    findings = by_name(list(checkup(tmp_path / "runs")))
    for name in ("torchvision", "disk speed", "write, fsync, rename", "lock", "two processes, gloo"):
        assert findings[name].status != "fail", findings[name]
    assert json.dumps([finding._asdict() for finding in findings.values()])
    assert list(tmp_path.iterdir()) == []
    in_sys = by_name(list(checkup(Path("/sys"))))
    assert {in_sys[name].exit_code for name in ("disk speed", "write, fsync, rename", "lock")} == {7}
