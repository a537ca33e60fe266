"""Where clips come from: manifests, folders and assets, told apart by a look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from headstart.errors import Fault
from headstart_speech import folders
from headstart_speech.audio import ENDINGS, missing, shown
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
    return str(Path(path).expanduser().absolute())


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
    several = len(paths) > 1 or bool(settings.validation_path or settings.test_path)
    clips: list[Clip] = []
    for path in paths:
        clips += read_clips(settings, path, findings, prefixed=several)
    for split, key in _GIVEN.items():
        if path := getattr(settings, key):
            found = read_clips(settings, path, findings, prefixed=several, key=key)
            for clip in found:
                clip.split = split
            clips += found
    return _unique(clips, findings)


def read_clips(
    settings: AudioSettings,
    path: str,
    findings: Findings,
    *,
    prefixed: bool = False,
    key: str = "path",
) -> list[Clip]:
    """The clips that one path stands for; their audio is not yet looked at.

    Args:
        settings: ``format``, columns, and whether transcripts are needed.
        path: Manifest, folder, or ``asset:NAME``.
        findings: Takes the faults.
        prefixed: Begin identities that are made of file names with the path's own.
        key: The setting that names it, for faults.
    """
    if path.startswith(ASSET):
        return _read_asset(settings, path, findings)
    root = Path(path).expanduser()
    if not root.exists():
        findings.fatal.append(missing(root, f"data.{key}"))
        return []
    clips = _read_format(settings, root, findings, f"data.{key}")
    _name(clips, root, root.stem if prefixed else "")
    return clips


def _read_format(
    settings: AudioSettings, root: Path, findings: Findings, key: str
) -> list[Clip]:
    form = settings.format if settings.format != "asterisk" else "auto"
    if root.is_file():
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
        inside = [p.name for p in folders.walk(root) if is_manifest(p, settings)]
        why = f"it has {', '.join(inside[:4])}" if inside else ""
        fix = f"name the file in it: {key}"
        findings.fatal.append(Fault("a folder, not a manifest", shown(root), why, fix))
        return []
    if form == "librispeech" or (form == "auto" and folders.is_librispeech(root)):
        clips = folders.read_librispeech(root, settings, findings)
        if not clips and not findings.fatal:
            why = f"no file's name ends in {folders.TRANSCRIPTS}"
            what = "not the layout of LibriSpeech"
            findings.fatal.append(Fault(what, shown(root), why))
        return clips
    voices = folders.is_common_voice_folder(root)
    if form == "common-voice" or (form == "auto" and voices):
        return folders.read_common_voice(root, settings, findings)
    return folders.read_audio_folder(root, settings, findings)


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
        name = path.with_suffix("").as_posix()
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
