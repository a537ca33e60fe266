"""Assets of many small files: one tar file, unpacked once."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from headstart import assets
from headstart.assets import Asset, AssetError, AssetFile
from headstart.unpacking import unpacked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(names: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def asset_of(content: bytes) -> Asset:
    """An asset that somebody put into the cache by hand."""
    file = AssetFile(
        "sounds.tar",
        hashlib.sha256(content).hexdigest(),
        len(content),
        ("https://a.example/s.tar",),
    )
    asset = Asset("sounds", "some_plugin", "sounds", "MIT", (file,))
    folder = assets.asset_folder(asset)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sounds.tar").write_bytes(content)
    return asset


def test_files_are_there_and_nothing_outside(tmp_path: Path) -> None:
    names = {"a.wav": b"1", "sub/b.wav": b"22", "../../../out": b"3"}
    folder = unpacked(asset_of(packed(names)), "sounds.tar")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {"a.wav", "sub/b.wav"}
    assert (folder / "sub" / "b.wav").read_bytes() == b"22"
    assert not list(tmp_path.rglob("out"))


def test_it_is_unpacked_once_and_removed_with_the_asset(cache: Path) -> None:
    asset = asset_of(packed({"a": b"1"}))
    folder = unpacked(asset, "sounds.tar")
    (folder / "seen").touch()
    assert unpacked(asset, "sounds.tar") == folder
    assert (folder / "seen").exists()
    other = unpacked(asset_of(packed({"a": b"2"})), "sounds.tar")
    assert other != folder and (other / "a").read_bytes() == b"2"
    assets.remove(asset)
    assert not folder.exists()


def test_a_damaged_archive_leaves_nothing(cache: Path) -> None:
    content = packed({"a": b"1" * 5000})
    asset = asset_of(content[:2000])
    with pytest.raises(AssetError, match="cannot be unpacked"):
        unpacked(asset, "sounds.tar")
    assert not [p for p in (cache / "unpacked").rglob("*") if p.is_file()]
