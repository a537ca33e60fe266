"""Where the files of an asset come from: sources, and how each one is asked."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import urlsplit

from packaging.version import Version

from headstart.fetch.archive import Archive, copy
from headstart.fetch.http import Http, Progress, SourceError
from headstart.fetch.package_index import IndexFile, PackageIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SCHEMES = {
    "https": r"//[^/@\s]+/\S+",
    "http": r"//127\.0\.0\.1(:\d+)?/\S*",
    "hf": r"(?P<name>[\w.-]+/[\w.-]+)@(?P<version>[\w.-]+)",
    "pypi": r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+?)(?P<kind>/sdist)?",
    "npm": r"(?P<name>(@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*)@(?P<version>\d[\w.+-]*)",
    "deb": r"(?P<name>[a-z0-9][a-z0-9+.-]+)(=(?P<version>[\w.+:~-]+))?",
}
FORMS = (
    "https://HOST/PATH, hf:ORG/REPO@REVISION#path, pypi:NAME==VERSION#member, "
    "npm:NAME@VERSION#member or deb:NAME#member"
)
COMMAND_LIMIT = 1800.0
"""Seconds after which npm or apt-get is given up."""

# What the disk refuses is told at once: no other source would help.
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Source:
    """One place that has a file.

    Attributes:
        scheme: ``https``, ``http``, ``hf``, ``pypi``, ``npm`` or ``deb``.
        package: What stands before ``#``, with the scheme.
        name: Package or repository; empty for a URL.
        version: Version or revision; may be empty for ``deb``.
        sdist: Whether the source archive of a Python package is meant.
        members: Path inside the package, then inside the archive found there, …;
            empty when the package itself is the file. One that ends in ``/`` is a
            folder, brought as a tar file.
        span: First byte and the byte after the last, when only a part is the file.
    """

    scheme: str
    package: str
    name: str
    version: str
    sdist: bool
    members: tuple[str, ...]
    span: tuple[int, int] | None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read ``scheme:package#member!inner[start:stop]``.

        Raises:
            ValueError: Not of that form, or a member that leaves its archive.
        """
        package, _, inside = text.partition("#")
        scheme, _, rest = package.partition(":")
        form = SCHEMES.get(scheme)
        found = re.fullmatch(form, rest) if form else None
        if not found:
            raise ValueError(f"{text!r} is not a source; write {FORMS}")
        span = None
        if cut := re.fullmatch(r"(.*)\[(\d+):(\d+)\]", inside):
            inside, span = cut[1], (int(cut[2]), int(cut[3]))
        members = tuple(inside.split("!")) if inside else ()
        folder = inside.endswith("/")
        if not all(
            map(is_inside, inside.removesuffix("/").split("!") if inside else ())
        ):
            raise ValueError(f"{text!r}: the member's path leaves the package")
        if scheme == "hf" and (len(members) != 1 or folder):
            raise ValueError(f"{text!r}: one file of the repository follows the #")
        if span and (not members or span[0] >= span[1] or scheme == "hf" or folder):
            raise ValueError(f"{text!r}: [start:stop] cuts a piece out of a member")
        parts = {"name": "", "version": "", "kind": "", **found.groupdict()}
        if scheme == "pypi":
            Version(parts["version"])
        return cls(
            scheme=scheme,
            package=package,
            name=parts["name"],
            version=parts["version"] or "",
            sdist=bool(parts["kind"]),
            members=members,
            span=span,
        )

    @property
    def server(self) -> str:
        """What is out of reach when this source reports a whole failure."""
        return urlsplit(self.package).netloc or self.package


def is_inside(path: str) -> bool:
    """Whether a relative path in its plainest form stays in the folder it is in."""
    steps = path.split("/")
    return not {"", ".", ".."} & set(steps) and not re.search(r"[\\\0:]", path)


@dataclass(frozen=True)
class _Package:
    path: Path
    strip_top: bool = False


class Fetcher:
    """Brings files for one asset; a package that holds several is fetched once.

    Use as a context manager: packages are removed at the end, interrupted transfers
    stay for the next time.

    Args:
        folder: Where transfers and packages are kept meanwhile.
        progress: Told about transfers.
    """

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self._folder = folder
        self._progress = progress
        self._http = Http(progress=progress)
        self._index: PackageIndex | None = None
        self._lost: dict[str, SourceError] = {}
        self._packages: dict[str, _Package] = {}
        self._archives: dict[tuple[str, ...], Archive] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(dir=self._folder))
        self._open.callback(shutil.rmtree, self._scratch, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def deliver(self, text: str, size: int, target: Path) -> None:
        """Write the file that a source names to ``target``; its hash is not looked at.

        Args:
            text: The source, as a manifest has it.
            size: Bytes that the file must have; more are never written.
            target: Where to put it, in the fetcher's folder.

        Raises:
            SourceError: It cannot be had there.
            OSError: The disk refuses.
        """
        source = Source.parse(text)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.server in self._lost:
            raise self._lost[source.server]
        try:
            if source.scheme == "hf":
                self._from_hub(source, target)
            elif source.scheme in ("http", "https") and not source.members:
                self._http.download(source.package, target, size=size)
            else:
                self._from_package(source, size, target)
        except SourceError as error:
            if error.whole:
                self._lost[source.server] = error
            raise

    def _from_package(self, source: Source, size: int, target: Path) -> None:
        why: list[str] = []
        for package in self._candidates(source):
            try:
                with target.open("wb") as out:
                    self._unpack(package, source, out, size)
                return
            except SourceError as error:
                why.append(str(error))
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        raise SourceError("; ".join(why))

    def _candidates(self, source: Source) -> Iterator[_Package]:
        if source.scheme == "pypi":
            yield from self._from_index(source)
        elif source.scheme == "npm":
            yield self._once(source.package, lambda: self._from_npm(source))
        elif source.scheme == "deb":
            yield self._once(source.package, lambda: self._from_apt(source))
        else:
            yield self._once(source.package, lambda: self._from_url(source.package))

    def _once(self, key: str, bring: Callable[[], _Package]) -> _Package:
        if key not in self._packages:
            self._packages[key] = bring()
        return self._packages[key]

    def _unpack(
        self, package: _Package, source: Source, out: BinaryIO, size: int
    ) -> None:
        """Write what a source means of a package: a member, a folder, all of it."""
        if not source.members:
            with package.path.open("rb") as stream:
                copy(stream, out, size, None)
            return
        *outer, last = source.members
        archive = self._archive(package, outer)
        if last.endswith("/"):
            archive.pack(last, out, size)
        else:
            copy(archive.open(last), out, size, source.span)

    def _archive(self, package: _Package, members: Sequence[str]) -> Archive:
        # Open archives are kept: reading members in turn then unpacks each one once.
        key: tuple[str, ...] = (str(package.path),)
        if key not in self._archives:
            stream = self._open.enter_context(package.path.open("rb"))
            self._archives[key] = Archive(
                stream, package.path.name, strip_top=package.strip_top
            )
        for member in members:
            outer = self._archives[key]
            key = (*key, member)
            if key not in self._archives:
                self._archives[key] = Archive(outer.open(member), member)
        return self._archives[key]

    def _from_url(self, url: str) -> _Package:
        path = self._folder / (Path(urlsplit(url).path).name or "package")
        self._http.download(url, path)
        self._open.callback(path.unlink, missing_ok=True)
        return _Package(path)

    def _from_index(self, source: Source) -> Iterator[_Package]:
        if self._index is None:
            self._index = PackageIndex(self._progress)
        http = self._index.http
        files = self._index.files(source.name, source.version)
        wanted = [f for f in files if not (source.sdist and f.is_wheel)]
        if not wanted:
            raise SourceError(f"{source.package}: no source archive on the index")
        for file in wanted:

            def bring(file: IndexFile = file) -> _Package:
                if file.local is not None:
                    return _Package(file.local, strip_top=not file.is_wheel)
                path = self._folder / file.filename
                http.download(file.url, path, size=file.size)
                self._open.callback(path.unlink, missing_ok=True)
                return _Package(path, strip_top=not file.is_wheel)

            yield self._once(file.url, bring)

    def _from_npm(self, source: Source) -> _Package:
        spec = f"{source.name}@{source.version}"
        command = ["npm", "pack", spec, "--ignore-scripts", "--json"]
        return _Package(self._produced(command, "*.tgz"), strip_top=True)

    def _from_apt(self, source: Source) -> _Package:
        spec = f"{source.name}={source.version}" if source.version else source.name
        try:
            package = self._produced(["apt-get", "download", spec], "*.deb")
        except SourceError as error:
            hint = "`apt-get update` renews the list of packages"
            raise SourceError(f"{error}; {hint}", whole=True) from None
        if not source.members:
            return _Package(package)
        if not shutil.which("dpkg-deb"):
            raise SourceError("dpkg-deb is not installed", whole=True)
        path = package.with_suffix(".tar")
        with path.open("wb") as out:
            _run(["dpkg-deb", "--fsys-tarfile", str(package)], package.parent, out)
        return _Package(path)

    def _produced(self, command: list[str], pattern: str) -> Path:
        if not shutil.which(command[0]):
            raise SourceError(f"{command[0]} is not installed", whole=True)
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        _run(command, folder)
        found = sorted(folder.glob(pattern))
        if len(found) != 1:
            why = f"`{' '.join(command)}` left {len(found)} packages, not one"
            raise SourceError(why, whole=True)
        return found[0]

    def _from_hub(self, source: Source, target: Path) -> None:
        from huggingface_hub import constants, hf_hub_download

        if constants.HF_HUB_OFFLINE:
            raise SourceError("HF_HUB_OFFLINE is set", whole=True)
        endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        # On its own the client waits half a minute for a host that does not exist.
        self._http.check(endpoint)
        try:
            path = hf_hub_download(
                source.name,
                source.members[0],
                revision=source.version,
                local_dir=self._folder / "hub",
                endpoint=endpoint,
            )
        except Exception as error:
            # The client passes on its own errors and those of two HTTP libraries.
            if isinstance(error, OSError) and error.errno in DISK:
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceError(first) from None
        os.replace(path, target)


def _run(command: list[str], folder: Path, out: BinaryIO | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out or subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            timeout=COMMAND_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"`{' '.join(command)}` did not end in {COMMAND_LIMIT:.0f} s"
        raise SourceError(why, whole=True) from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        told = [line for line in lines if re.match(r"E: |npm error \S", line)]
        why = "; ".join(told[:2] or lines[-1:]) or f"ended with {done.returncode}"
        raise SourceError(f"{command[0]}: {why}", whole=True)
