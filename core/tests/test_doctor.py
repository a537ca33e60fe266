"""Every finding of the doctor, made to happen."""

from __future__ import annotations

import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from headstart import doctor
from headstart.doctor import Examined, examine
from headstart.plugins import PluginInfo, Registry
from headstart.testing import toy

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def sound_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no other torch libraries, an empty cache, no settings."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    for name in ("HEADSTART_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(metadata, "version", no_such_package)


def no_such_package(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def found(text: str, registry: Registry | None = None) -> Examined:
    """The one finding that says this."""
    (finding,) = (f for f in examine(registry or Registry()) if text in f.text)
    return finding


def test_sound_machine_has_no_failing_finding() -> None:
    registry = Registry()
    registry.add(toy, "toy")
    findings = examine(registry)
    assert all(finding.ok for finding in findings), findings
    assert found(torch.__version__, registry).ok
    assert found("plugin toy", registry).text.endswith("loaded")
    assert found("no GPU", registry).ok


def test_torch_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = found("torch does not import")
    assert not finding.ok
    assert "reinstall it" in finding.text


@pytest.mark.parametrize("bf16", [True, False])
def test_gpu(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    properties = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    expected = f"GPU Some GPU, 24 GiB, {'bf16' if bf16 else 'no bf16'}"
    assert found("GPU") == Examined(True, expected)


@pytest.mark.parametrize("message", ["undefined symbol: x\nmore", ""])
def test_torch_library_built_for_another_torch(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def version(name: str) -> str:
        return "0.29" if name == "torchvision" else no_such_package(name)

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise OSError(message)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    finding = found("torchvision 0.29")
    assert not finding.ok
    assert (message.partition("\n")[0] or "OSError") in finding.text
    assert "constraints.txt" in finding.text


def test_torch_library_that_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        return "2.11" if name == "torchaudio" else no_such_package(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
    assert found("torchaudio") == Examined(True, "torchaudio 2.11")


def test_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file" / "cache"))
    finding = found("cannot be written")
    assert not finding.ok
    assert "set HEADSTART_CACHE" in finding.text


@pytest.mark.parametrize(("gigabytes", "ok"), [(1, False), (3, True)])
def test_room_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, ok: bool
) -> None:
    usage = SimpleNamespace(free=gigabytes * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert found(f"{gigabytes} GiB of disk").ok is ok


def test_settings_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    assert found("HF_ENDPOINT").text == "HF_ENDPOINT is set to http://127.0.0.1:1"
    assert found("HEADSTART_OFFLINE").ok


def test_plugin_that_did_not_load() -> None:
    registry = Registry()
    cause = "ImportError: libill.so.7"
    registry.plugins.append(PluginInfo("ill", "ill-plugin", "2.0", "broken", cause))
    assert found("ill", registry) == Examined(
        False, f"plugin ill 2.0 broken: {cause}; see `headstart plugins -v`"
    )


def test_no_plugin() -> None:
    finding = found("no plugin")
    assert finding.ok
    assert "pip install headstart-nlp" in finding.text
