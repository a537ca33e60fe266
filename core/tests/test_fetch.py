"""Sources of assets: transfers that resume, package indexes, members of archives."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import textwrap
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.request import Request

import pytest

from headstart.errors import UserError
from headstart.fetch import http as fetch_http
from headstart.fetch.archive import Archive, copy
from headstart.fetch.http import Http, SourceError
from headstart.fetch.package_index import PackageIndex
from headstart.fetch.sources import Fetcher, Source
from headstart.weights.configuration import read_configuration
from headstart.weights.published import cache_place, published_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = bytes(range(256)) * 1000
TEXT = b"id\tscore\ttext\n"


class Site:
    """A server on 127.0.0.1 whose pages, cuts and headers a test sets."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.etags: dict[str, str] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ranges = True
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        self.seen.append((to.command, to.path, dict(to.headers)))
        body = self.pages.get(to.path)
        if body is None:
            to.send_error(404)
            return
        etag = self.etags.get(to.path, f'"{hashlib.md5(body).hexdigest()}"')
        start = 0
        asked = to.headers.get("Range")
        if asked and self.ranges and to.headers.get("If-Range") in (None, etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        to.send_response(206 if start else 200)
        if start:
            to.send_header(
                "Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"
            )
        to.send_header("Content-Type", self.kinds.get(to.path, "text/html"))
        to.send_header("Content-Length", str(len(body) - start))
        to.send_header("ETag", etag)
        to.send_header("X-Repo-Commit", "a" * 40)
        to.end_headers()
        if to.command == "GET":
            cuts = self.cuts.get(to.path)
            stop = cuts.pop(0) if cuts else len(body)
            to.wfile.write(body[start:stop])

    def asked(self, path: str, header: str) -> list[str | None]:
        """What each GET of ``path`` had in a header."""
        found = [
            headers for way, at, headers in self.seen if (way, at) == ("GET", path)
        ]
        return [headers.get(header) for headers in found]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_http, "WAITS", (0.0, 0.0, 0.0))


def deliver(tmp_path: Path, source: str, size: int) -> bytes:
    target = tmp_path / "delivered"
    with Fetcher(tmp_path / "work") as fetcher:
        fetcher.deliver(source, size, target)
    return target.read_bytes()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(files: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


# Sources as a manifest writes them


ARCHIVE = ("a/b.tar.gz", "in/f")


@pytest.mark.parametrize(
    ("text", "name", "version", "members", "span"),
    [
        ("https://a.example/x.bin", "", "", (), None),
        ("http://127.0.0.1:8000/x", "", "", (), None),
        ("hf:org/re-po.1@abc12#a/f", "org/re-po.1", "abc12", ("a/f",), None),
        ("pypi:A_b.c==1.0#a/b.tar.gz!in/f", "A_b.c", "1.0", ARCHIVE, None),
        (
            "npm:@s/n@0.4.167#f.data[184:987]",
            "@s/n",
            "0.4.167",
            ("f.data",),
            (184, 987),
        ),
        ("deb:lib-x++#usr/f", "lib-x++", "", ("usr/f",), None),
        ("deb:x1=0.0~git1-1#usr/f", "x1", "0.0~git1-1", ("usr/f",), None),
    ],
)
def test_source_forms(
    text: str,
    name: str,
    version: str,
    members: tuple[str, ...],
    span: tuple[int, int] | None,
) -> None:
    source = Source.parse(text)
    assert (source.name, source.version) == (name, version)
    assert (source.members, source.span) == (members, span)


def test_source_archive_can_be_asked_for() -> None:
    assert Source.parse("pypi:a==1.0/sdist#f").sdist
    assert not Source.parse("pypi:a==1.0#f").sdist


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a.example/x",
        "http://a.example/x",  # unencrypted
        "file:///etc/passwd",
        "pypi:name#member",  # no version
        "pypi:name==one#member",
        "pypi:--option==1#member",
        "npm:name@latest#member",
        "npm:--flag@1.0#member",
        "deb:-o#member",
        "hf:org/repo#file",  # no revision
        "hf:org/repo@rev",  # no file
        "pypi:a==1#../../etc/passwd",
        "pypi:a==1#/etc/passwd",
        "pypi:a==1#in.zip!../x",
        "pypi:a==1#member[9:3]",
        "nothing",
    ],
)
def test_source_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"source|package|version|piece|file|Invalid"):
        Source.parse(text)


# Transfers


def test_cut_transfer_asks_for_the_rest(site: Site, tmp_path: Path) -> None:
    site.pages["/f.bin"] = BODY
    # More cuts than tries: what still advances is not given up.
    cuts = [40_000, 80_000, 120_000, 160_000, 200_000, 240_000]
    site.cuts["/f.bin"] = list(cuts)
    assert deliver(tmp_path, f"{site.url}/f.bin", len(BODY)) == BODY
    assert site.asked("/f.bin", "Range") == [
        None,
        *(f"bytes={cut}-" for cut in cuts),
    ]


def test_transfer_resumes_in_a_later_process(site: Site, tmp_path: Path) -> None:
    site.pages["/f.bin"] = BODY
    site.cuts["/f.bin"] = [70_000, 0, 0, 0, 0]
    target = tmp_path / "f.bin"
    with pytest.raises(SourceError, match="cut at 70000 of 256000"):
        Http().download(f"{site.url}/f.bin", target)
    assert not target.exists()
    del site.cuts["/f.bin"]
    site.seen.clear()
    Http().download(f"{site.url}/f.bin", target)
    assert target.read_bytes() == BODY
    assert site.asked("/f.bin", "Range") == ["bytes=70000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]


def test_changed_file_starts_again(site: Site, tmp_path: Path) -> None:
    site.pages["/f.bin"] = BODY
    site.cuts["/f.bin"] = [70_000, 0, 0, 0, 0]
    target = tmp_path / "f.bin"
    with pytest.raises(SourceError):
        Http().download(f"{site.url}/f.bin", target)
    other = BODY[::-1]
    site.pages["/f.bin"] = other
    del site.cuts["/f.bin"]
    site.seen.clear()
    Http().download(f"{site.url}/f.bin", target)
    assert target.read_bytes() == other
    old_tag = f'"{hashlib.md5(BODY).hexdigest()}"'
    assert site.asked("/f.bin", "If-Range") == [old_tag]


def test_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.pages["/f.bin"] = BODY
    site.cuts["/f.bin"] = [100_000]
    assert deliver(tmp_path, f"{site.url}/f.bin", len(BODY)) == BODY


def test_weak_tag_is_not_trusted_for_resuming(site: Site, tmp_path: Path) -> None:
    site.pages["/f.bin"] = BODY
    site.etags["/f.bin"] = 'W/"1"'
    site.cuts["/f.bin"] = [100_000]
    assert deliver(tmp_path, f"{site.url}/f.bin", len(BODY)) == BODY
    assert site.asked("/f.bin", "Range") == [None, None]


def test_transfer_that_never_advances_ends(site: Site, tmp_path: Path) -> None:
    site.pages["/f.bin"] = BODY
    site.cuts["/f.bin"] = [0] * 50
    with pytest.raises(SourceError, match="cut at 0") as caught:
        deliver(tmp_path, f"{site.url}/f.bin", len(BODY))
    assert caught.value.whole
    assert len(site.seen) == 4


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_other_size_is_refused(site: Site, tmp_path: Path, size: int) -> None:
    site.pages["/f.bin"] = BODY
    with pytest.raises(SourceError, match=f"256000 bytes, {size} were expected"):
        deliver(tmp_path, f"{site.url}/f.bin", size)


def test_missing_page_is_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"/none answers 404") as caught:
        deliver(tmp_path, f"{site.url}/none?token=secret", 1)
    assert "secret" not in str(caught.value)
    assert not caught.value.whole


def test_redirect_to_unencrypted_is_refused() -> None:
    handler = fetch_http._SecureRedirects()
    with pytest.raises(SourceError, match="unencrypted"):
        handler.redirect_request(
            Request("https://a.example/x"), io.BytesIO(), 302, "", {}, "http://b/x"
        )


def test_progress_counts_to_the_end(site: Site, tmp_path: Path) -> None:
    site.pages["/f.bin"] = BODY
    told: list[tuple[int, int, str]] = []
    http = Http(progress=lambda *step: told.append(step))
    http.download(f"{site.url}/f.bin", tmp_path / "f.bin")
    assert told[-1] == (256_000, 256_000, "f.bin")


# Archives


def member(archive: bytes, name: str, size: int, *, strip_top: bool = False) -> bytes:
    out = io.BytesIO()
    opened = Archive(io.BytesIO(archive), "a.tar", strip_top=strip_top)
    copy(opened.open(name), out, size, None)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:xz", "w:bz2"])
def test_member_of_a_tar(mode: str) -> None:
    archive = tarred({"./top/a": b"1", "./top/sub/b": TEXT}, mode)
    assert member(archive, "top/sub/b", len(TEXT)) == TEXT
    assert member(archive, "sub/b", len(TEXT), strip_top=True) == TEXT


def test_member_of_a_zip() -> None:
    assert member(zipped({"a/b": TEXT}), "a/b", len(TEXT)) == TEXT


def test_missing_member_names_the_nearest() -> None:
    with pytest.raises(SourceError, match=r"no 'a/vocab.text' .* 'a/vocab.txt'\?"):
        member(zipped({"a/vocab.txt": TEXT}), "a/vocab.text", 3)


@pytest.mark.parametrize("path", ["../evil", "/evil", "x/../../evil", "..\\evil"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_path_that_leaves_is_refused(path: str, kind: str) -> None:
    archive = zipped({path: b"x"}) if kind == "zip" else tarred({path: b"x"})
    name = "x/evil" if path.startswith("x") else "evil"
    with pytest.raises(SourceError, match="leaves the archive's folder"):
        member(archive, name, 1)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("f")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(SourceError, match="a link or a device"):
        member(tarred({"f": info}), "f", 10)


def test_zip_symlink_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("f")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SourceError, match="a link or a device"):
        member(out.getvalue(), "f", 11)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bomb_stops_at_the_expected_size(kind: str) -> None:
    files = {"f": bytes(20 << 20)}
    archive = zipped(files) if kind == "zip" else tarred(dict(files))
    out = io.BytesIO()
    with pytest.raises(SourceError, match="more than the expected 1000 bytes"):
        copy(Archive(io.BytesIO(archive), "a").open("f"), out, 1000, None)
    assert len(out.getvalue()) <= 1000


def test_shorter_member_is_refused() -> None:
    with pytest.raises(SourceError, match="unpacks to 14 bytes, 20 were expected"):
        member(zipped({"f": TEXT}), "f", 20)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_truncated_archive_is_refused(kind: str) -> None:
    files = {"f": os.urandom(50_000)}
    archive = zipped(files) if kind == "zip" else tarred(dict(files))
    with pytest.raises(SourceError, match="cannot be read"):
        member(archive[:30_000], "f", 50_000)


def test_damaged_member_is_refused() -> None:
    archive = bytearray(zipped({"f": os.urandom(50_000)}))
    archive[20_000] ^= 255
    with pytest.raises(SourceError, match="damaged"):
        member(bytes(archive), "f", 50_000)


# Python packages

SETUP = "import pathlib; pathlib.Path({marker!r}).write_text('ran')\n"


class Index:
    """A package index on a site, in either form that indexes have."""

    def __init__(self, site: Site, form: str = "json") -> None:
        self.site, self.form = site, form
        self.files: list[str] = []

    def add(self, filename: str, content: bytes, project: str = "some-data") -> None:
        self.site.pages[f"/files/{filename}"] = content
        self.files.append(filename)
        page = f"/simple/{project}/"
        if self.form == "json":
            listed = [{"filename": f, "url": f"../../files/{f}"} for f in self.files]
            self.site.kinds[page] = "application/vnd.pypi.simple.v1+json"
            self.site.pages[page] = json.dumps({"files": listed}).encode()
        else:
            links = "".join(
                f'<a href="../../files/{f}#sha256=00" data-x="1">{f}</a><br>'
                for f in self.files
            )
            text = f"<!DOCTYPE html><html><body><h1>links</h1>{links}</body></html>"
            self.site.pages[page] = text.encode()


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, site: Site) -> Iterator[None]:
    """pip's settings come from the environment alone and name the site."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    set_pip(monkeypatch, index_url=f"{site.url}/simple")
    yield


def set_pip(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name.upper()}", value)


def sdist(tmp_path: Path, files: dict[str, bytes]) -> bytes:
    setup = SETUP.format(marker=str(tmp_path / "setup-ran"))
    inside = {"setup.py": setup.encode(), **files}
    return tarred(
        {f"some_data-1.0/{name}": content for name, content in inside.items()}
    )


@pytest.mark.usefixtures("pip")
@pytest.mark.parametrize("form", ["json", "html"])
def test_wheel_member(site: Site, tmp_path: Path, form: str) -> None:
    index = Index(site, form)
    index.add("some_data-2.0-py3-none-any.whl", zipped({"some_data/f": b"new"}))
    index.add("some_data-1.0-py3-none-any.whl", zipped({"some_data/f": TEXT}))
    assert deliver(tmp_path, "pypi:Some_Data==1.0#some_data/f", len(TEXT)) == TEXT


@pytest.mark.usefixtures("pip")
@pytest.mark.parametrize("form", ["json", "html"])
def test_source_archive_is_read_and_never_run(
    site: Site, tmp_path: Path, form: str
) -> None:
    index = Index(site, form)
    inner = tarred({"deep/f.txt": TEXT})
    index.add("some_data-1.0.tar.gz", sdist(tmp_path, {"res/in.tar.gz": inner}))
    source = "pypi:some-data==1.0#res/in.tar.gz!deep/f.txt"
    assert deliver(tmp_path, source, len(TEXT)) == TEXT
    assert deliver(tmp_path, f"{source}[3:8]", 5) == TEXT[3:8]
    assert not (tmp_path / "setup-ran").exists()


@pytest.mark.usefixtures("pip")
def test_source_archive_when_the_wheel_lacks_it(site: Site, tmp_path: Path) -> None:
    index = Index(site)
    index.add("some_data-1.0-py3-none-any.whl", zipped({"some_data/code.py": b""}))
    index.add("some_data-1.0.tar.gz", sdist(tmp_path, {"f": TEXT}))
    assert deliver(tmp_path, "pypi:some-data==1.0#f", len(TEXT)) == TEXT
    site.seen.clear()
    assert deliver(tmp_path, "pypi:some-data==1.0/sdist#f", len(TEXT)) == TEXT
    assert [path for _, path, _ in site.seen] == [
        "/simple/some-data/",
        "/files/some_data-1.0.tar.gz",
    ]


@pytest.mark.usefixtures("pip")
def test_one_wheel_of_many_is_chosen(site: Site) -> None:
    index = Index(site)
    index.add("some_data-1.0.tar.gz", b"")
    for tags in ("cp39-cp39-win32", "py3-none-any", "cp310-cp310-macosx_11_0_arm64"):
        index.add(f"some_data-1.0-{tags}.whl", b"")
    found = PackageIndex().files("some-data", "1.0")
    assert [file.filename for file in found] == [
        "some_data-1.0-py3-none-any.whl",
        "some_data-1.0.tar.gz",
    ]


@pytest.mark.usefixtures("pip")
def test_package_is_fetched_once_and_not_kept(site: Site, tmp_path: Path) -> None:
    index = Index(site)
    wheel = zipped({"d/a": b"1", "d/b": b"22"})
    index.add("some_data-1.0-py3-none-any.whl", wheel)
    with Fetcher(tmp_path / "work") as fetcher:
        fetcher.deliver("pypi:some-data==1.0#d/a", 1, tmp_path / "a")
        fetcher.deliver("pypi:some-data==1.0#d/b", 2, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"22"
    assert len(site.asked("/files/some_data-1.0-py3-none-any.whl", "Range")) == 1
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.usefixtures("pip")
def test_folders_serve_as_extra_indexes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "simple" / "some-data"
    folder.mkdir(parents=True)
    wheel = folder / "some_data-1.0-py3-none-any.whl"
    wheel.write_bytes(zipped({"d/a": TEXT}))
    (folder / "index.html").write_text(f'<a href="{wheel.name}">w</a>')
    folders = [(tmp_path / name).as_uri() for name in ("missing", "simple")]
    set_pip(monkeypatch, extra_index_url=" ".join(folders))
    assert deliver(tmp_path, "pypi:some-data==1.0#d/a", len(TEXT)) == TEXT
    assert wheel.exists()


@pytest.mark.usefixtures("pip")
def test_page_cannot_point_at_this_machine(site: Site, tmp_path: Path) -> None:
    wheel = tmp_path / "some_data-1.0-py3-none-any.whl"
    wheel.write_bytes(zipped({"d/a": TEXT}))
    page = f'<a href="{wheel.as_uri()}">w</a>'
    site.pages["/simple/some-data/"] = page.encode()
    with pytest.raises(SourceError, match="no package some-data"):
        deliver(tmp_path, "pypi:some-data==1.0#d/a", len(TEXT))


@pytest.mark.usefixtures("pip")
def test_missing_package_and_version(site: Site, tmp_path: Path) -> None:
    Index(site).add("some_data-1.0-py3-none-any.whl", zipped({"d/a": TEXT}))
    with pytest.raises(SourceError, match=r"no file of version 3\.0"):
        deliver(tmp_path, "pypi:some-data==3.0#d/a", 1)
    with pytest.raises(SourceError, match="no package other"):
        deliver(tmp_path, "pypi:other==3.0#d/a", 1)


@pytest.mark.usefixtures("pip")
def test_login_goes_to_the_index_and_not_into_messages(
    monkeypatch: pytest.MonkeyPatch, site: Site, tmp_path: Path
) -> None:
    private = site.url.replace("//", "//user:pass%21@")
    set_pip(monkeypatch, index_url=f"{private}/simple")
    Index(site).add("some_data-1.0-py3-none-any.whl", zipped({"d/a": TEXT}))
    assert deliver(tmp_path, "pypi:some-data==1.0#d/a", len(TEXT)) == TEXT
    # base64 of "user:pass!"
    assert {headers.get("Authorization") for _, _, headers in site.seen} == {
        "Basic dXNlcjpwYXNzIQ=="
    }
    site.pages["/simple/some-data/"] = b"{"
    site.kinds["/simple/some-data/"] = "application/json"
    with pytest.raises(SourceError) as caught:
        deliver(tmp_path, "pypi:some-data==1.0#d/a", len(TEXT))
    assert "pass" not in str(caught.value)


def test_without_pip_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = executable(tmp_path, "python", "echo 'No module named pip' >&2; exit 1")
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(SourceError, match=r"No module named pip.* -m ensurepip"):
        deliver(tmp_path, "pypi:some-data==1.0#d/a", 1)


# npm, Debian


def executable(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of fake programs, found before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_npm_member(tools: Path, tmp_path: Path) -> None:
    package = tmp_path / "made.tgz"
    package.write_bytes(tarred({"package/data/f": TEXT}))
    log = tmp_path / "log"
    executable(tools, "npm", f'echo "$@" >> {log}; cp {package} ./x-1.2.0.tgz')
    with Fetcher(tmp_path / "work") as fetcher:
        for span, size in (("", len(TEXT)), ("[3:8]", 5)):
            source = f"npm:@scope/x@1.2.0#data/f{span}"
            fetcher.deliver(source, size, tmp_path / f"got{size}")
    assert (tmp_path / f"got{len(TEXT)}").read_bytes() == TEXT
    assert (tmp_path / "got5").read_bytes() == TEXT[3:8]
    assert log.read_text() == "pack @scope/x@1.2.0 --ignore-scripts --json\n"


def test_missing_npm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="npm is not installed"):
        deliver(tmp_path, "npm:x@1.2.0#f", 1)


def test_npm_tells_why(tools: Path, tmp_path: Path) -> None:
    script = "echo 'npm warn old' >&2; echo 'npm error code E404' >&2; exit 1"
    executable(tools, "npm", script)
    with pytest.raises(SourceError, match="npm: npm error code E404"):
        deliver(tmp_path, "npm:x@1.2.0#f", 1)


def test_debian_member(tools: Path, tmp_path: Path) -> None:
    content = tmp_path / "content.tar"
    content.write_bytes(tarred({"./usr/share/f": TEXT}, "w:"))
    log = tmp_path / "log"
    executable(tools, "apt-get", f'echo "$@" >> {log}; echo x > data_1_all.deb')
    executable(tools, "dpkg-deb", f'echo "$1" >> {log}; cat {content}')
    assert deliver(tmp_path, "deb:some-data#usr/share/f", len(TEXT)) == TEXT
    assert log.read_text() == "download some-data\n--fsys-tarfile\n"


def test_a_folder_comes_as_the_same_tar_from_any_archive(
    site: Site, tmp_path: Path
) -> None:
    files = {"top/b": b"2", "top/sub/a": TEXT, "other": b"0"}
    behind = tarred({f"./p/{name}": content for name, content in files.items()})
    # Another order, another kind of archive: the files are what counts.
    site.pages["/a.zip"] = zipped(dict(reversed(files.items())))
    site.pages["/b.tgz"] = behind
    first = deliver(tmp_path, f"{site.url}/a.zip#top/", 10240)
    assert deliver(tmp_path, f"{site.url}/b.tgz#p/top/", 10240) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        found = [(m.name, m.mode, m.mtime, m.uid) for m in archive]
        assert found == [("b", 0o644, 0, 0), ("sub/a", 0o644, 0, 0)]
        stream = archive.extractfile("sub/a")
        assert stream is not None and stream.read() == TEXT
    with pytest.raises(SourceError, match=r"no files in 'tap/'.*top/"):
        deliver(tmp_path, f"{site.url}/a.zip#tap/", 10240)


def test_the_tar_of_a_folder_is_as_tarfile_writes_it(
    site: Site, tmp_path: Path
) -> None:
    files = {
        f"{'é' * (length // 20)}{'x' * length}/{length}": bytes(length)
        for length in (1, 90, 100, 140, 511, 512)
    }
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    site.pages["/a.zip"] = zipped({f"top/{n}": c for n, c in files.items()})
    size = len(expected.getvalue())
    assert deliver(tmp_path, f"{site.url}/a.zip#top/", size) == expected.getvalue()


def test_a_folder_that_swells_is_refused_before_it_is_unpacked(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/a.zip"] = zipped({"top/a": bytes(10**6), "top/b": TEXT})
    opened: list[str] = []
    plain = Archive.open
    monkeypatch.setattr(
        Archive, "open", lambda self, name: opened.append(name) or plain(self, name)
    )
    with pytest.raises(SourceError, match=r"packs to 1\d+ bytes, 10240 were expected"):
        deliver(tmp_path, f"{site.url}/a.zip#top/", 10240)
    assert opened == []


def test_a_damaged_folder_leaves_the_next_source_to_try(
    site: Site, tmp_path: Path
) -> None:
    content = bytearray(zipped({"top/a": TEXT}))
    # Behind the member's header of 30 bytes and its name.
    content[40] ^= 255
    site.pages["/a.zip"] = bytes(content)
    with pytest.raises(SourceError, match="the archive is damaged"):
        deliver(tmp_path, f"{site.url}/a.zip#top/", 10240)


@pytest.mark.parametrize(
    "text",
    [
        "hf:a/b@main#folder/",
        "https://h.example/a.zip#folder/[1:4]",
        "https://h.example/a.zip#folder/!member",
        "https://h.example/a.zip#/",
        "https://h.example/a.zip#../",
    ],
)
def test_folders_that_are_no_sources(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        Source.parse(text)


def test_unknown_debian_package_hints_at_update(tools: Path, tmp_path: Path) -> None:
    executable(tools, "apt-get", "echo 'E: Unable to locate package x1' >&2; exit 100")
    with pytest.raises(SourceError, match=r"Unable to locate.*apt-get update"):
        deliver(tmp_path, "deb:x1#usr/f", 1)


# The hub, through its own client


def test_hub_file(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    revision = "a" * 40
    site.pages[f"/org/model/resolve/{revision}/sub/config.json"] = TEXT
    source = f"hf:org/model@{revision}#sub/config.json"
    assert deliver(tmp_path, source, len(TEXT)) == TEXT


def test_full_disk_is_not_the_hubs_fault(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("HF_ENDPOINT", site.url)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(OSError, match="No space left"):
        deliver(tmp_path, "hf:org/model@main#a", 1)


def test_hub_out_of_reach_is_asked_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    site.server.shutdown()
    site.server.server_close()
    asked: list[str] = []
    whole = Http.check
    monkeypatch.setattr(
        Http, "check", lambda self, url: (asked.append(url), whole(self, url))
    )
    with Fetcher(tmp_path / "work") as fetcher:
        for name in ("a", "b"):
            with pytest.raises(SourceError, match=r"no connection to 127\.0\.0\.1"):
                fetcher.deliver(f"hf:org/model@main#{name}", 1, tmp_path / name)
    assert asked == [site.url]


# The real ones


@pytest.mark.network
def test_real_package_index(tmp_path: Path) -> None:
    source = (
        "pypi:vaderSentiment==3.3.2/sdist#additional_resources/hutto_ICWSM_2014.tar.gz"
        "!hutto_ICWSM_2014/vader_sentiment_comparison_online_weblink.url"
    )
    found = deliver(tmp_path, source, 149)
    assert hashlib.sha256(found).hexdigest() == (
        "8950bdc157355f827391e2e60b15a942651365f1411f4dbbd5088bcbeb629013"
    )


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_real_npm_package(tmp_path: Path) -> None:
    found = deliver(tmp_path, "npm:left-pad@1.3.0#package.json", 646)
    assert json.loads(found)["name"] == "left-pad"


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("apt-get"), reason="not a Debian")
def test_real_debian_package(tmp_path: Path) -> None:
    assert deliver(tmp_path, "deb:hello#usr/bin/hello[0:4]", 4) == b"\x7fELF"


# Weights that a library publishes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADSTART_OFFLINE", raising=False)
    with cache_place("library/weights") as folder:
        yield folder


def test_published_weights_come_once(
    site: Site, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    for name in (f"network-{digest[:8]}.pth", "network_large.pt"):
        url = f"{site.url}/models/{name}"
        site.pages[f"/models/{name}"] = BODY
        monkeypatch.delenv("HEADSTART_OFFLINE", raising=False)
        path = published_file(url, place, None, "look elsewhere")
        assert path == place / name
        assert path.read_bytes() == BODY
        monkeypatch.setenv("HEADSTART_OFFLINE", "1")
        assert published_file(url, place, None, "look elsewhere") == path
        path.unlink()
        with pytest.raises(UserError, match="not in the cache and the network is"):
            published_file(url, place, None, "look elsewhere")
    assert len(site.seen) == 2


def test_published_weights_that_are_cut_are_not_taken_for_whole(
    site: Site, place: Path
) -> None:
    url = f"{site.url}/network.pth"
    site.pages["/network.pth"] = BODY
    site.cuts["/network.pth"] = [70_000, 0, 0, 0, 0]
    with pytest.raises(UserError, match=r"run it again[^\n]*look elsewhere") as caught:
        published_file(url, place, None, "look elsewhere")
    assert "cut at 70000 of 256000" in caught.value.faults[0].why
    assert not (place / "network.pth").exists()
    del site.cuts["/network.pth"]
    assert published_file(url, place, None, "").read_bytes() == BODY
    assert site.asked("/network.pth", "Range")[-1] == "bytes=70000-"


def test_published_weights_of_another_hash_are_not_kept(
    site: Site, place: Path
) -> None:
    site.pages["/network-01234567.pth"] = BODY
    with pytest.raises(UserError, match="wrong hash and was deleted") as caught:
        published_file(f"{site.url}/network-01234567.pth", place, None, "")
    assert hashlib.sha256(BODY).hexdigest() in caught.value.faults[0].why
    assert [path.name for path in place.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_serves_what_it_has(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = type(place).open

    def refused(self: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return plain(self, mode, *rest, **more)  # type: ignore[call-overload]

    (place / "network.pth").write_bytes(BODY)
    monkeypatch.setattr(type(place), "open", refused)
    with cache_place("library/weights") as folder:
        url = "https://127.0.0.1:1/network.pth"
        assert published_file(url, folder, None, "").read_bytes() == BODY
    # What has to be written is still refused, and so is a full disk.
    with (
        pytest.raises(UserError, match="cannot be written: Read-only"),
        cache_place("library/weights") as folder,
    ):
        (folder / "other").open("w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no config.json beside the weights"),
        (b"{", "this is no JSON"),
        (b"\xff", "this is no JSON"),
        (b"[1]", "holds no configuration"),
        ("folder", "cannot be read: Is a directory"),
    ],
)
def test_a_configuration_that_is_none(
    content: bytes | str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_configuration(path)
