"""Assets: files that are fetched once, checked by hash, and offline from then on."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tomllib
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from headstart.errors import Fault, PluginError, UserError, nearest
from headstart.fetch.http import Progress, SourceError
from headstart.fetch.sources import Fetcher, Source, is_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MANIFEST = "assets.toml"
LICENCE = "LICENCE.txt"
STAMPS = ".stamps.json"

_Item = TypeVar("_Item")


class AssetError(UserError):
    """An asset that cannot be had, or a cache folder that cannot be written."""


def _file_path(path: str) -> str:
    if not is_inside(path):
        raise ValueError(f"{path!r} leaves the asset's folder")
    if path in (LICENCE, STAMPS):
        raise ValueError(f"{path!r} is written by headstart itself")
    return path


def _source(text: str) -> str:
    Source.parse(text)
    return text


def _some(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    # pydantic's own min_length also counts items that failed, so one fault shows twice.
    if not items:
        raise ValueError("at least one is needed")
    return items


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AssetFile:
    """One file of an asset.

    Attributes:
        path: Where it goes inside the asset's folder.
        sha256: Hash of its content, lower-case hexadecimal.
        size: Bytes.
        sources: Where it can be had, tried in order; see :class:`~.fetch.Source`.
    """

    path: Annotated[str, AfterValidator(_file_path)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    sources: Annotated[
        tuple[Annotated[str, AfterValidator(_source)], ...], AfterValidator(_some)
    ]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Asset:
    """A named set of files with one licence.

    Attributes:
        name: Unique among all plugins, e.g. ``minilm-l6``.
        package: Import name of the plugin whose manifest has it.
        summary: One line for lists.
        licence: SPDX identifier where there is one.
        files: What belongs to it.
        licence_url: Where the licence stands.
        note: What a reader should know, e.g. that a data set is small.
        read: For data: how to read it, as settings of the plugin's data module; the
            file's own name is under ``file``.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    package: str
    summary: str
    licence: str
    files: Annotated[tuple[AssetFile, ...], AfterValidator(_some)]
    licence_url: str = ""
    note: str = ""
    read: dict[str, Any] = Field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


_ASSET = TypeAdapter(Asset)


def load_manifest(package: str) -> dict[str, Asset]:
    """The assets of a plugin, from the ``assets.toml`` in its package.

    Returns:
        Assets by name; empty when the package has no manifest.

    Raises:
        PluginError: The manifest is not valid; all its faults are listed.
    """
    source = resources.files(package) / MANIFEST
    where = f"{package}/{MANIFEST}"
    if not source.is_file():
        return {}
    try:
        tables = tomllib.loads(source.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginError(f"not valid TOML: {error}", where=where) from None
    assets: dict[str, Asset] = {}
    faults: list[Fault] = []
    for name, table in tables.items():
        try:
            fields = table if isinstance(table, dict) else {}
            asset = _ASSET.validate_python({**fields, "name": name, "package": package})
        except ValidationError as error:
            faults += [_fault(where, name, dict(found)) for found in error.errors()]
            continue
        paths = [file.path for file in asset.files]
        for path in sorted({path for path in paths if paths.count(path) > 1}):
            faults.append(Fault(f"{path!r} is there twice", f"{where}: {name}.files"))
        assets[name] = asset
    if faults:
        raise PluginError(*faults)
    return assets


def find_asset(name: str, packages: Iterable[str]) -> Asset:
    """The asset of that name in the manifests of some plugins.

    Raises:
        AssetError: There is none; the nearest name is offered.
        PluginError: Two plugins have one of that name, or a manifest is not valid.
    """
    known: dict[str, Asset] = {}
    for package in packages:
        for asset in load_manifest(package).values():
            if asset.name in known and asset.name == name:
                both = f"{known[name].package} and {package}"
                raise PluginError(f"two assets are called {name!r}", where=both)
            known[asset.name] = asset
    if name not in known:
        hint = nearest(name, known) or "no plugin that is installed has assets"
        raise AssetError(f"there is no asset {name!r}", fix=hint)
    return known[name]


def cache_folder() -> Path:
    """``$HEADSTART_CACHE``, else ``headstart`` in the user's cache folder."""
    if chosen := os.environ.get("HEADSTART_CACHE"):
        return Path(chosen).expanduser().absolute()
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore a relative path.
    return (user if user.is_absolute() else Path.home() / ".cache") / "headstart"


def asset_folder(asset: Asset) -> Path:
    """Where an asset's files are, or will be."""
    return cache_folder() / "assets" / asset.name


def is_present(asset: Asset) -> bool:
    """Whether every file is in the cache, with the right hash.

    A file is hashed when it is new or changed (size, time of change) since the last
    look, so files put there by hand are taken in.
    """
    return not _missing(asset)


def offline() -> bool:
    """Whether ``HEADSTART_OFFLINE`` forbids the network."""
    return os.environ.get("HEADSTART_OFFLINE", "0") not in ("", "0")


def fetch(asset: Asset, *, progress: Progress | None = None) -> Path:
    """The folder with an asset's files, brought from the first source that has them.

    Each file appears under its name only once it is complete and its hash is right.
    Needs no network, and no writable cache, when all are there already.

    Args:
        asset: What to fetch.
        progress: Told about transfers.

    Raises:
        AssetError: No source could deliver, the network is forbidden, or the cache
            folder cannot be written.
    """
    folder = asset_folder(asset)
    if is_present(asset):
        return folder
    if offline():
        raise AssetError(
            f"asset {asset.name!r} is not in the cache and the network is forbidden",
            where=str(folder),
            why="HEADSTART_OFFLINE is set",
            fix=f"fetch it where there is a network, or {_by_hand(asset)}",
        )
    work = cache_folder() / "downloads" / asset.name
    try:
        with locked(asset, progress):
            # Another process may have brought some of them while this one waited.
            missing = _missing(asset)
            with Fetcher(work, progress) as fetcher:
                for file in missing:
                    _bring(asset, file, fetcher, work)
            (folder / LICENCE).write_text(_licence(asset), "utf-8")
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise _unwritable(error) from error
    return folder


def verify(asset: Asset) -> list[Fault]:
    """Hash every file of an asset again.

    Returns:
        What is missing or differs; empty when all is well.
    """
    folder = asset_folder(asset)
    faults = []
    for file in asset.files:
        path = folder / file.path
        if not path.is_file():
            what = "is missing"
        elif (found := path.stat().st_size) != file.size:
            what = f"has {found} bytes, {file.size} expected"
        elif (digest := _sha256(path)) != file.sha256:
            what = f"has the hash {digest}, {file.sha256} expected"
        else:
            continue
        fix = f"remove {asset.name!r} from the cache and fetch it again"
        faults.append(Fault(what, where=str(path), fix=fix))
    return faults


def remove(asset: Asset) -> None:
    """Delete an asset's files and what is left of interrupted transfers.

    Raises:
        AssetError: The cache folder cannot be written.
    """
    try:
        with locked(asset):
            for kind in ("assets", "downloads", "unpacked"):
                with suppress(FileNotFoundError):
                    shutil.rmtree(cache_folder() / kind / asset.name)
    except OSError as error:
        raise _unwritable(error) from error


def _bring(asset: Asset, file: AssetFile, fetcher: Fetcher, work: Path) -> None:
    final = asset_folder(asset) / file.path
    final.parent.mkdir(parents=True, exist_ok=True)
    arrived = work / file.sha256[:16] / final.name
    failed: list[str] = []
    for source in file.sources:
        try:
            fetcher.deliver(source, file.size, arrived)
        except SourceError as error:
            failed.append(f"{source}: {error}")
            continue
        if (digest := _sha256(arrived)) == file.sha256:
            with arrived.open("rb+") as done:
                os.fsync(done.fileno())
            os.replace(arrived, final)
            _stamp(asset, file)
            return
        arrived.unlink()
        failed.append(f"{source}: wrong hash {digest}, {file.sha256} expected; deleted")
    raise AssetError(
        f"{file.path!r} of asset {asset.name!r} cannot be fetched",
        where=str(asset_folder(asset)),
        why="every source failed:" + "".join(f"\n    {line}" for line in failed),
        fix="check the network or point the client of a source to a mirror (pip's "
        f"index, npm's registry, HF_ENDPOINT), or {_by_hand(asset)}",
    )


def _by_hand(asset: Asset) -> str:
    missing = [f"{f.path} ({f.size} bytes)" for f in _missing(asset)]
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return f"put by hand into {asset_folder(asset)}: {', '.join(missing[:8])}{more}"


def _missing(asset: Asset) -> list[AssetFile]:
    stamps = _stamps(asset)
    missing = []
    for file in asset.files:
        path = asset_folder(asset) / file.path
        try:
            state = path.stat()
        except OSError:
            missing.append(file)
            continue
        if state.st_size != file.size:
            missing.append(file)
        elif stamps.get(file.path) == _seen(file, state):
            continue
        elif _sha256(path) == file.sha256:
            # A read-only cache serves too; it is only hashed every time.
            with suppress(OSError):
                _stamp(asset, file)
        else:
            missing.append(file)
    return missing


def _stamps(asset: Asset) -> dict[str, Any]:
    try:
        found = json.loads((asset_folder(asset) / STAMPS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stamp(asset: Asset, file: AssetFile) -> None:
    state = (asset_folder(asset) / file.path).stat()
    stamps = {**_stamps(asset), file.path: _seen(file, state)}
    path = asset_folder(asset) / STAMPS
    draft = path.with_name(f"{STAMPS}.{os.getpid()}")
    draft.write_text(json.dumps(stamps, indent=1), "utf-8")
    os.replace(draft, path)


def _seen(file: AssetFile, state: os.stat_result) -> dict[str, Any]:
    return {
        "sha256": file.sha256,
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
    }


@contextmanager
def locked(asset: Asset, progress: Progress | None = None) -> Iterator[None]:
    """Within it, no other process changes what the cache has of an asset."""
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / asset.name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                progress(0, 0, f"waiting for another process to fetch {asset.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unwritable(error: OSError) -> AssetError:
    fix = "set HEADSTART_CACHE to a folder that can be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "make room, or set HEADSTART_CACHE to a folder on a larger disk"
    return AssetError(
        f"the cache folder cannot be written: {error.strerror or error}",
        where=str(error.filename or cache_folder()),
        why=f"assets are kept in {cache_folder()}",
        fix=fix,
    )


def _licence(asset: Asset) -> str:
    lines = [
        f"{asset.name}: {asset.summary}",
        f"Licence: {asset.licence}",
        f"Licence text: {asset.licence_url}" if asset.licence_url else "",
        asset.note,
        "Sources:",
        *sorted({source for file in asset.files for source in file.sources}),
    ]
    return "".join(f"{line}\n" for line in lines if line)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(where: str, name: str, found: dict[str, Any]) -> Fault:
    steps = [f"[{s}]" if isinstance(s, int) else f".{s}" for s in found["loc"]]
    fix = ""
    if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = AssetFile if "files" in found["loc"] else Asset
        fix = nearest(str(found["loc"][-1]), known.__dataclass_fields__)
    text = str(found["msg"]).removeprefix("Value error, ")
    return Fault(text, where=f"{where}: {name}{''.join(steps)}", fix=fix)
