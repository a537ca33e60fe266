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


def test_names_that_start_with_a_dot_and_those_that_swell(tmp_path: Path) -> None:
    """GNU tar writes ./a when it is given a folder; nothing was unpacked then."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("./a.wav", "./sub/./b.wav"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))
        # Of GNU's sparse format: no byte is there, 5,000 are to be.
        info = tarfile.TarInfo("hole")
        info.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"00000011610\0" + b"00000000000\0"
        header[483:495] = b"00000011610\0"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        out.write(header)
        archive.offset += len(header)
    folder = unpacked(asset_of(out.getvalue()), "sounds.tar")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {"a.wav", "sub/b.wav"}


def test_an_archive_without_files_and_a_path_that_is_not_there(cache: Path) -> None:
    asset = asset_of(packed({"../out": b"1"}))
    with pytest.raises(AssetError, match="no plain files"):
        unpacked(asset, "sounds.tar")
    assert not [p for p in (cache / "unpacked").rglob("*") if p.is_file()]
    with pytest.raises(AssetError, match=r"no file 'sound\.tar'.*\n.*sounds\.tar"):
        unpacked(asset, "sound.tar")


def test_what_a_killed_process_left_is_no_part_of_it(cache: Path) -> None:
    asset = asset_of(packed({"a": b"1"}))
    folder = unpacked(asset, "sounds.tar")
    # As if it had been killed in between, with the same name for its draft.
    draft = folder.with_name(f".{folder.name}.part")
    folder.rename(draft)
    (draft / "a").write_bytes(b"")
    (draft / "half").touch()
    assert unpacked(asset, "sounds.tar") == folder
    assert [p.name for p in folder.iterdir()] == ["a"]
    assert (folder / "a").read_bytes() == b"1"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


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
