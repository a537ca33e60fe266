"""Files of a Python package, found on the index that pip is configured for.

``pip download`` runs the ``setup.py`` of a source archive to learn its dependencies.
Reading the index here instead means that no package's code ever runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from packaging.tags import sys_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from headstart.fetch.http import Http, Progress, SourceError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"

# pip has no public way to ask for its merged settings (files, environment, defaults).
_PIP_SETTINGS = """
import json
from pip._internal.commands import create_command
found = create_command("download").parser.get_default_values()
names = ("index_url", "extra_index_urls", "no_index", "cert", "proxy")
print(json.dumps({name: getattr(found, name, None) for name in names}))
"""


@dataclass(frozen=True)
class IndexFile:
    """A wheel or a source archive on an index; ``url`` may be a ``file:`` one."""

    filename: str
    url: str
    size: int | None = None

    @property
    def is_wheel(self) -> bool:
        return self.filename.endswith(".whl")

    @property
    def local(self) -> Path | None:
        """Where it is when the index is a folder on this machine."""
        return _local(self.url)


class PackageIndex:
    """The indexes that pip would ask, in its order.

    Raises:
        SourceError: pip is missing or its settings name no index.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        settings = _pip_settings()
        self._urls: list[str] = []
        if not settings["no_index"]:
            self._urls = [settings["index_url"], *(settings["extra_index_urls"] or [])]
        if not any(self._urls):
            raise SourceError("pip is configured to use no package index", whole=True)
        self.http = Http(
            cert=settings["cert"], proxy=settings["proxy"], progress=progress
        )

    def files(self, name: str, version: str) -> list[IndexFile]:
        """At most one wheel and one source archive, the wheel first.

        Raises:
            SourceError: No index has the package in this version.
        """
        lost: list[str] = []
        seen = False
        for url in filter(None, self._urls):
            try:
                page = f"{url.rstrip('/')}/{canonicalize_name(name)}/"
                listed = list(self._listed(page))
            except SourceError as error:
                lost.append(str(error))
                continue
            seen = seen or bool(listed)
            if found := _choose(listed, name, version):
                return found
        why = f"the package index has {name} but no file of version {version}"
        if not seen:
            why = f"the package index has no package {name}"
        raise SourceError("; ".join(lost) or why, whole=True)

    def _listed(self, url: str) -> Iterator[IndexFile]:
        if (folder := _local(url)) is not None:
            page = folder / "index.html"
            if page.is_file():
                yield from _from_html(page.read_text("utf-8"), url)
            return
        answer = self.http.page(url, ACCEPT)
        if answer is None:
            return
        text, kind, url = answer
        listed = (
            _from_json(text, url) if kind.endswith("json") else _from_html(text, url)
        )
        # A page from the network must not name files of this machine.
        yield from (file for file in listed if file.local is None)


def _pip_settings() -> dict[str, Any]:
    # -P: a folder called pip in the working directory is not the pip that is meant.
    command = [sys.executable, "-P", "-c", _PIP_SETTINGS]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"pip cannot be asked for its index ({error})") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(
            f"pip, which knows the package index, does not work here ({last}); "
            f"`{sys.executable} -m ensurepip` installs it",
            whole=True,
        )
    settings: dict[str, Any] = json.loads(done.stdout)
    return settings


def _from_json(text: str, base: str) -> Iterator[IndexFile]:
    try:
        for entry in json.loads(text)["files"]:
            url = urljoin(base, entry["url"])
            yield IndexFile(entry["filename"], url, entry.get("size"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{shown(base)} is not an index page ({error})") from None


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") or ""
        if tag == "a" and href:
            self.hrefs.append(href)
        elif tag == "base" and not self.base:
            self.base = href


def _from_html(text: str, base: str) -> Iterator[IndexFile]:
    anchors = _Anchors()
    anchors.feed(text)
    base = urljoin(base, anchors.base)
    for href in anchors.hrefs:
        url = urljoin(base, href).partition("#")[0]
        yield IndexFile(unquote(urlsplit(url).path).rpartition("/")[2], url)


def _choose(listed: list[IndexFile], name: str, version: str) -> list[IndexFile]:
    wanted = (canonicalize_name(name), Version(version))
    order = {tag: rank for rank, tag in enumerate(sys_tags())}
    wheels: list[tuple[int, str, IndexFile]] = []
    archives: list[IndexFile] = []
    for file in listed:
        try:
            if file.is_wheel:
                found, release, _, tags = parse_wheel_filename(file.filename)
                if (found, release) == wanted:
                    # Data files are alike in all wheels; any foreign one will do.
                    rank = min(order.get(tag, len(order)) for tag in tags)
                    wheels.append((rank, file.filename, file))
            elif parse_sdist_filename(file.filename) == wanted:
                archives.append(file)
        except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
            continue
    best = [min(wheels, key=lambda wheel: wheel[:2])[2]] if wheels else []
    return best + archives[:1]


def _local(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None
