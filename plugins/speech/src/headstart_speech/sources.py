"""Where clips come from: manifests, folders and assets, told apart by a look."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from headstart.errors import Fault
from headstart_speech import folders
from headstart_speech.audio_faults import (
    ENDINGS,
    exists,
    expanded,
    missing,
    shown,
)
from headstart_speech.manifests import is_common_voice, is_manifest, read_manifest
from headstart_speech.settings import AudioSettings

if TYPE_CHECKING:
    from headstart.assets import Asset
    from headstart.data import Findings, Split
    from headstart_speech.clips import Clip

ASSET = "asset:"
AnySettings = TypeVar("AnySettings", bound=AudioSettings)
_GIVEN: dict[Split, str] = {"validation": "validation_path", "test": "test_path"}


def completed(settings: AnySettings) -> AnySettings:
    """The settings with absolute paths, so that a run folder works from everywhere."""
    given = settings.model_dump(include=settings.model_fields_set)
    for key in ("path", *_GIVEN.values()):
        if isinstance(paths := given.get(key), tuple | list):
            given[key] = tuple(map(_absolute, paths))
        elif paths:
            given[key] = _absolute(paths)
    return type(settings).model_validate(given)


def _absolute(path: str) -> str:
    if path.startswith(ASSET) or not path:
        return path
    return str(expanded(path).absolute())


def paths_of(settings: AudioSettings) -> tuple[str, ...]:
    """``data.path``, one or several."""
    path = settings.path
    return tuple(filter(None, (path,) if isinstance(path, str) else path))


def name_of(path: str) -> str:
    """What to call it in a report."""
    return path.removeprefix(ASSET) if path.startswith(ASSET) else Path(path).name


def read_all(settings: AudioSettings, findings: Findings) -> list[Clip]:
    """The clips of all paths of a recipe, in order; ``split`` as the paths say.

    Args:
        settings: The recipe's ``[data]``.
        findings: Takes the faults.
    """
    paths = paths_of(settings)
    if not paths and not settings.test_path:
        fix = "give your data, e.g. data.path=clips.csv"
        findings.fatal.append(Fault("data.path is empty", "data.path", fix=fix))
        return []
    held = {key: getattr(settings, key) for key in _GIVEN.values()}
    prefixes = _prefixes([*paths, *filter(None, held.values())])
    clips: list[Clip] = []
    for path in paths:
        clips += read_clips(settings, path, findings, prefix=prefixes[path])
    for split, key in _GIVEN.items():
        if path := held[key]:
            prefix = prefixes[path]
            found = read_clips(settings, path, findings, prefix=prefix, key=key)
            for clip in found:
                clip.split = split
            clips += found
    if settings.format == "auto" and not findings.fatal:
        _tell_left([*paths, *filter(None, held.values())], clips, settings, findings)
    return _unique(clips, findings)


def read_split(
    settings: AudioSettings, split: Split, findings: Findings
) -> list[Clip] | None:
    """The clips of the path that is given for one split; ``None`` without one."""
    key = _GIVEN.get(split, "")
    path = getattr(settings, key, "")
    if not path:
        return None
    clips = read_clips(settings, path, findings, key=key)
    for clip in clips:
        clip.split = split
    if settings.format == "auto" and not findings.fatal:
        _tell_left([path], clips, settings, findings)
    return _unique(clips, findings)


def _tell_left(
    paths: list[str], clips: list[Clip], settings: AudioSettings, findings: Findings
) -> None:
    """Warn of what is in a folder and is not read."""
    named = [expanded(path) for path in paths if not path.startswith(ASSET)]
    for root in named:
        if root.is_dir() and (fault := folders.left_over(root, clips, named, settings)):
            findings.warnings.append(fault)


def _prefixes(paths: list[str]) -> dict[str, str]:
    """What the identities of a path's clips begin with, of several paths.

    As many of its last parts as tell it from the others.
    """
    if len(paths) < 2:
        return dict.fromkeys(paths, "")
    places = {path: Path(path).parent / Path(path).stem for path in paths}
    if len(set(places.values())) < len(places):
        places = {path: Path(path) for path in paths}
    depth = max(len(place.parts) for place in places.values())
    for count in range(1, depth + 1):
        found = {p: "/".join(at.parts[-count:]) for p, at in places.items()}
        if len(set(found.values())) == len(places):
            break
    return found


def read_clips(
    settings: AudioSettings,
    path: str,
    findings: Findings,
    *,
    prefix: str = "",
    key: str = "path",
) -> list[Clip]:
    """The clips that one path stands for; their audio is not yet looked at.

    Args:
        settings: ``format``, columns, and whether transcripts are needed.
        path: Manifest, folder, or ``asset:NAME``.
        findings: Takes the faults.
        prefix: What identities that are made of file names begin with.
        key: The setting that names it, for faults.
    """
    if path.startswith(ASSET):
        return _read_asset(settings, path, findings)
    root = expanded(path)
    if not exists(root):
        fault = _pattern(path, f"data.{key}") or missing(root, f"data.{key}")
        findings.fatal.append(fault)
        return []
    clips = _read_format(settings, root, findings, f"data.{key}")
    _name(clips, root, prefix)
    return clips


def _read_format(
    settings: AudioSettings, root: Path, findings: Findings, key: str
) -> list[Clip]:
    form: str = settings.format
    if not root.is_dir():
        if form in ("librispeech", "folder"):
            what, fix = f"a file, and data.format={form!r} is a folder", "name a folder"
            findings.fatal.append(Fault(what, shown(root), f"{key} names it", fix))
            return []
        if form == "auto" and not is_manifest(root, settings):
            findings.fatal.append(_no_manifest(root, key))
            return []
        common_voice = form == "common-voice" or (
            form == "auto" and is_common_voice(root, settings)
        )
        return read_manifest(root, settings, findings, common_voice=common_voice)
    if form == "manifest":
        inside = [shown(p) for p in folders.walk(root) if is_manifest(p, settings)]
        why = f"it has {', '.join(inside[:4])}" if inside else ""
        fix = f"name the file: {key}={inside[0]}" if inside else "name a file"
        findings.fatal.append(Fault("a folder, not a manifest", shown(root), why, fix))
        return []
    if form == "auto":
        form = folders.layout(root)
    if form == "librispeech":
        clips = folders.read_librispeech(root, settings, findings)
        if not clips and not findings.fatal:
            why = f"no file's name ends in {folders.TRANSCRIPTS}"
            what = "not the layout of LibriSpeech"
            findings.fatal.append(Fault(what, shown(root), why))
        return clips
    if form == "common-voice":
        return folders.read_common_voice(root, settings, findings)
    return folders.read_audio_folder(root, settings, findings, key)


def _pattern(path: str, key: str) -> Fault | None:
    """Of a path with wildcards; ``None`` of any other."""
    if not set("*?[") & set(path):
        return None
    found = sorted(map(Path, glob.glob(str(expanded(path)))))
    fix = "name one path"
    if key == "data.path":
        example = found[:6] or [Path("a.csv"), Path("b.csv")]
        fix = f"give a list: {folders.several(example)}"
    what = "wildcards are not read here"
    fit = f"{len(found)} paths fit" if found else "nothing fits"
    why = f"{key} takes names, and {fit} the pattern"
    return Fault(what, shown(path), why, fix)


def _no_manifest(path: Path, key: str) -> Fault:
    audio = path.suffix.lower() in ENDINGS
    what = f"the format of {path.name!r} is not known by its ending"
    fix = 'name the separator if it is a table: data.delimiter=","'
    if audio:
        what, fix = "this is one audio file", "name its folder, or a manifest"
    why = f"{key} takes folders and .csv, .tsv and .jsonl files"
    return Fault(what, shown(path), why, fix)


def _read_asset(settings: AudioSettings, path: str, findings: Findings) -> list[Clip]:
    from headstart.assets import fetch, find_asset
    from headstart.unpacking import unpacked

    asset: Asset = find_asset(path.removeprefix(ASSET), ("headstart_speech",))
    read = {"name": asset.name, **asset.read}
    if read.get("format") != "asterisk":
        fix = "`headstart assets` shows what each one is"
        what = "this asset is not a data set of speech"
        findings.fatal.append(Fault(what, path, fix=fix))
        return []
    folder = fetch(asset)
    return folders.read_asterisk(
        unpacked(asset, read["audio"]),
        folder / read["transcripts"],
        read,
        settings,
        findings,
    )


def _name(clips: list[Clip], root: Path, prefix: str) -> None:
    """Identities for clips whose data set has none: the file's name where that is one.

    Several pieces of one file are called after the manifest's line.
    """
    folder = root if root.is_dir() else root.parent
    counts: dict[Path, int] = {}
    for clip in clips:
        counts[clip.path] = counts.get(clip.path, 0) + 1
    for clip in clips:
        if clip.id:
            continue
        inside = clip.path.is_relative_to(folder)
        path = clip.path.relative_to(folder) if inside else clip.path
        name = (path.parent / path.stem).as_posix()
        if counts[clip.path] > 1:
            name = f"{root.name}:{clip.where[1]}"
        clip.id = f"{prefix}/{name}" if prefix else name


def _unique(clips: list[Clip], findings: Findings) -> list[Clip]:
    """Clips with an identity of their own; the others have a fault."""
    seen: dict[str, Clip] = {}
    kept = []
    for clip in clips:
        other = seen.setdefault(clip.id, clip)
        if other is clip:
            kept.append(clip)
            continue
        why = f"{other.place} has it already"
        fix = "read each clip once, or name a column of identities: data.id"
        fault = Fault(f"duplicate id: {clip.id!r}", clip.place, why, fix)
        findings.sample(*clip.where, fault)
    return kept
