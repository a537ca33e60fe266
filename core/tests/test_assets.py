"""Assets: manifests, the cache, and what happens when something is in the way."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headstart import assets
from headstart.assets import Asset, AssetError, AssetFile
from headstart.errors import PluginError
from headstart.fetch import http as fetch_http

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS = bytes(range(256)) * 4000
CONFIG = b'{"layers": 2}'


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Site:
    """Files over HTTP on 127.0.0.1, each request noted; cuts and delays on demand."""

    def __init__(self) -> None:
        self.pages = {
            "/weights.bin": WEIGHTS,
            "/config.json": CONFIG,
            "/bad": b"x" * 13,
        }
        self.cut_at: int | None = None
        self.delay = 0.0
        self.seen: list[tuple[str, str | None]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                site.seen.append((self.path, asked))
                body = site.pages[self.path]
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                self.send_response(206 if start else 200)
                if start:
                    last = f"{len(body) - 1}/{len(body)}"
                    self.send_header("Content-Range", f"bytes {start}-{last}")
                self.send_header("Content-Length", str(len(body) - start))
                self.send_header("ETag", '"1"')
                self.end_headers()
                time.sleep(site.delay)
                self.wfile.write(body[start : site.cut_at])

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fetch_http, "WAITS", (0.0,))
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADSTART_OFFLINE", raising=False)
    return tmp_path / "cache"


def make(site: Site, **sources: tuple[str, ...]) -> Asset:
    """An asset of two files; ``weights`` and ``config`` replace their sources."""
    files = [("weights.bin", WEIGHTS), ("sub/config.json", CONFIG)]
    listed = []
    for path, content in files:
        name = Path(path).name
        given = sources.get(Path(path).stem, (f"{site.url}/{name}",))
        listed.append(AssetFile(path, digest(content), len(content), given))
    return Asset("tiny", "some_plugin", "two files", "MIT", tuple(listed))


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# Manifests


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write a package with a manifest and return its name."""
    made: list[str] = []

    def write(text: str | None) -> str:
        name = f"headstart_made_{tmp_path.name.replace('-', '_')}_{len(made)}"
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        if text is not None:
            (folder / "assets.toml").write_text(text)
        made.append(name)
        return name

    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield write
    for name in made:
        sys.modules.pop(name, None)


GOOD = f"""
[tiny-words]
summary = "a list of words"
licence = "CC-BY-4.0"
licence_url = "https://licence.example/by"

[[tiny-words.files]]
path = "words.txt"
sha256 = "{digest(b"a")}"
size = 1
sources = ["https://a.example/w.txt", "pypi:words==1.0#words/w.txt"]
"""


def test_manifest(plugin: Any) -> None:
    package = plugin(GOOD)
    sources = ("https://a.example/w.txt", "pypi:words==1.0#words/w.txt")
    file = AssetFile("words.txt", digest(b"a"), 1, sources)
    expected = Asset(
        "tiny-words",
        package,
        "a list of words",
        "CC-BY-4.0",
        (file,),
        "https://licence.example/by",
    )
    assert assets.load_manifest(package) == {"tiny-words": expected}


def test_plugin_without_assets(plugin: Any) -> None:
    assert assets.load_manifest(plugin(None)) == {}


def test_every_fault_of_a_manifest_is_listed(plugin: Any) -> None:
    package = plugin(
        f"""
[one]
sumary = "misspelt"
licence = "MIT"
files = [{{ path = "../x", sha256 = "{digest(b"a")}", size = 1, sources = ["x:1"] }}]

[two]
summary = "no licence, no files"
files = []

[Three]
summary = "bad name"
licence = "MIT"
[[Three.files]]
path = "a"
sha256 = "ABC"
size = -1
sources = []
"""
    )
    with pytest.raises(PluginError) as caught:
        assets.load_manifest(package)
    found = {fault.where.partition(": ")[2] for fault in caught.value.faults}
    assert found == {
        "one.sumary",
        "one.summary",
        "one.files[0].path",
        "one.files[0].sources[0]",
        "two.licence",
        "two.files",
        "Three.name",
        "Three.files[0].sha256",
        "Three.files[0].size",
        "Three.files[0].sources",
    }
    text = str(caught.value)
    assert "did you mean 'summary'?" in text
    assert "'../x' leaves the asset's folder" in text
    assert "'x:1' is not a source; write https://HOST/PATH" in text


def test_path_twice_is_a_fault(plugin: Any) -> None:
    second = GOOD[GOOD.index("[[") :]
    with pytest.raises(PluginError, match=r"'words\.txt' is there twice"):
        assets.load_manifest(plugin(GOOD + second))


def test_manifest_that_is_not_toml(plugin: Any) -> None:
    with pytest.raises(PluginError, match=r"assets\.toml: not valid TOML"):
        assets.load_manifest(plugin("[tiny"))


def test_find_asset(plugin: Any) -> None:
    package = plugin(GOOD)
    assert assets.find_asset("tiny-words", [plugin(None), package]).package == package
    with pytest.raises(AssetError, match="did you mean 'tiny-words'"):
        assets.find_asset("tiny-word", [package])
    with pytest.raises(PluginError, match="two assets are called 'tiny-words'"):
        assets.find_asset("tiny-words", [package, plugin(GOOD)])


# The cache


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEADSTART_CACHE", "~/here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("HEADSTART_CACHE")
    assert assets.cache_folder() == tmp_path / "xdg" / "headstart"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert assets.cache_folder() == tmp_path / ".cache" / "headstart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder() == tmp_path / ".cache" / "headstart"


def test_fetch_then_offline(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = make(site)
    assert not assets.is_present(asset)
    folder = assets.fetch(asset)
    assert (folder / "weights.bin").read_bytes() == WEIGHTS
    assert (folder / "sub/config.json").read_bytes() == CONFIG
    assert not (cache / "downloads/tiny").exists()
    site.close()
    # Neither the network nor a second hashing is needed for what did not change.
    monkeypatch.setattr(assets, "_sha256", lambda path: pytest.fail("hashed again"))
    assert assets.is_present(asset)
    assert assets.fetch(asset) == folder
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    assert assets.fetch(asset) == folder


def test_licence_stands_beside_the_files(site: Site) -> None:
    text = (assets.fetch(make(site)) / "LICENCE.txt").read_text()
    assert "MIT" in text
    assert f"{site.url}/weights.bin" in text


def test_only_what_is_missing_is_fetched(site: Site) -> None:
    asset = make(site)
    folder = assets.fetch(asset)
    site.seen.clear()
    (folder / "sub/config.json").unlink()
    assets.fetch(asset)
    assert site.seen == [("/config.json", None)]


def test_changed_file_is_fetched_again(site: Site) -> None:
    asset = make(site)
    path = assets.fetch(asset) / "weights.bin"
    path.write_bytes(WEIGHTS[:-1] + b"!")
    assert not assets.is_present(asset)
    assets.fetch(asset)
    assert path.read_bytes() == WEIGHTS


def test_verify_looks_at_the_content(site: Site) -> None:
    asset = make(site)
    folder = assets.fetch(asset)
    assert assets.verify(asset) == []
    path = folder / "weights.bin"
    before = path.stat()
    path.write_bytes(WEIGHTS[:-1] + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "sub/config.json").unlink()
    changed, missing = assets.verify(asset)
    assert changed.where == str(path)
    assert digest(WEIGHTS) in changed.what
    assert digest(WEIGHTS[:-1] + b"!") in changed.what
    assert "missing" in missing.what


def test_remove(site: Site, cache: Path) -> None:
    asset = make(site)
    assets.fetch(asset)
    assets.remove(asset)
    assert not assets.is_present(asset)
    assert names(cache / "assets") == set()
    assets.remove(asset)


def test_file_put_by_hand_is_taken(site: Site) -> None:
    asset = make(site)
    site.close()
    with pytest.raises(AssetError) as caught:
        assets.fetch(asset)
    folder = assets.asset_folder(asset)
    assert f"put by hand into {folder}" in str(caught.value)
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(WEIGHTS)
    (folder / "sub/config.json").write_bytes(CONFIG)
    assert assets.fetch(asset) == folder


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_names_variable_and_files(
    site: Site, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HEADSTART_OFFLINE", value)
    with pytest.raises(AssetError, match="HEADSTART_OFFLINE") as caught:
        assets.fetch(make(site))
    assert site.seen == []
    assert "weights.bin (1024000 bytes), sub/config.json" in str(caught.value)


def test_no_network_lists_every_source(site: Site) -> None:
    sources = (f"{site.url}/weights.bin", f"{site.url}/other.bin")
    site.close()
    with pytest.raises(AssetError) as caught:
        assets.fetch(make(site, weights=sources))
    text = str(caught.value)
    assert all(f"{source}: no connection" in text for source in sources)
    assert "check the network" in text
    assert caught.value.exit_code == 2


def test_wrong_hash_goes_to_the_next_source(site: Site) -> None:
    asset = make(site, config=(f"{site.url}/bad", f"{site.url}/config.json"))
    folder = assets.fetch(asset)
    assert (folder / "sub/config.json").read_bytes() == CONFIG
    assert [path for path, _ in site.seen][-2:] == ["/bad", "/config.json"]


def test_wrong_hash_is_refused(site: Site, cache: Path) -> None:
    asset = make(site, config=(f"{site.url}/bad",))
    with pytest.raises(AssetError) as caught:
        assets.fetch(asset)
    assert digest(b"x" * 13) in str(caught.value)
    assert digest(CONFIG) in str(caught.value)
    assert not (assets.asset_folder(asset) / "sub/config.json").exists()
    assert names(cache / "downloads") == set()


def test_cut_fetch_goes_on_the_next_time(site: Site, cache: Path) -> None:
    asset = make(site)
    site.cut_at = 300_000
    with pytest.raises(AssetError, match="cut at 300000 of 1024000"):
        assets.fetch(asset)
    assert not (assets.asset_folder(asset) / "weights.bin").exists()
    site.cut_at = None
    site.seen.clear()
    folder = assets.fetch(asset)
    assert (folder / "weights.bin").read_bytes() == WEIGHTS
    assert site.seen[0] == ("/weights.bin", "bytes=300000-")
    assert names(cache / "downloads") == set()


# A disk in the way


@pytest.mark.parametrize("place", ["below a file", "/proc/headstart", "read-only"])
def test_cache_that_cannot_be_written(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = Path(place)
    if place == "below a file":
        path = tmp_path / "file" / "cache"
        path.parent.touch()
    elif place == "read-only":
        path = tmp_path / "locked"
        path.mkdir(mode=0o500)
        if os.access(path, os.W_OK):
            pytest.skip("this user may write everywhere")
    elif not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    monkeypatch.setenv("HEADSTART_CACHE", str(path))
    with pytest.raises(AssetError, match="set HEADSTART_CACHE") as caught:
        assets.fetch(make(site))
    assert str(path) in str(caught.value)
    assert site.seen == []


def test_read_only_cache_serves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = make(site)
    folder = assets.fetch(asset)
    (folder / assets.STAMPS).unlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    assert assets.fetch(asset) == folder


class _FullDisk(io.FileIO):
    room = 500_000

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        return super().write(data)


def test_full_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = make(site)
    whole = Path.open

    def limited(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if self.name == "weights.bin.part" and mode != "rb":
            return _FullDisk(self, mode.replace("b", ""))
        return whole(self, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", limited)
        with pytest.raises(AssetError, match="No space left") as caught:
            assets.fetch(asset)
    assert "make room, or set HEADSTART_CACHE" in str(caught.value)
    assert not (assets.asset_folder(asset) / "weights.bin").exists()
    assert (assets.fetch(asset) / "weights.bin").read_bytes() == WEIGHTS


# Two at once

FETCH = """
import json, sys
from headstart.assets import Asset, AssetFile, fetch
name, package, summary, licence, files = json.loads(sys.argv[1])
files = tuple(AssetFile(*file) for file in files)
print(fetch(Asset(name, package, summary, licence, files)))
"""


def test_two_processes_fetch_once(site: Site) -> None:
    asset = make(site)
    site.delay = 0.3
    files = [[f.path, f.sha256, f.size, f.sources] for f in asset.files]
    told = json.dumps([asset.name, asset.package, asset.summary, asset.licence, files])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, told],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (
            0,
            str(assets.asset_folder(asset)),
        ), err
    assert sorted(site.seen) == [("/config.json", None), ("/weights.bin", None)]
    assert assets.verify(asset) == []
