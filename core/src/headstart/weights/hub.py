"""Models from the Hugging Face hub, through its own client and into its own cache.

``HF_ENDPOINT`` (a mirror), ``HF_HOME`` or ``HF_HUB_CACHE``, ``HF_TOKEN`` and
``HF_HUB_OFFLINE`` mean what they mean to the client.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.errors import Fault, UserError
from headstart.weights.tensors import file_sha256, tensor_files

if TYPE_CHECKING:
    from collections.abc import Iterable

REFERENCE = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>\S+))?", re.ASCII)
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]
"""What a repository is asked for beside tensors: configuration, vocabulary, licence.
Code is not among it."""
IN_FOLDERS = ["*/*"]
"""What is below a repository's root: transformers keeps a model in the root."""


class Snapshot(NamedTuple):
    """A model as it is at one commit, in the client's cache."""

    folder: Path
    files: tuple[Path, ...]
    commit: str
    licence: str


def fetch_model(reference: str) -> Snapshot:
    """Download a model, or take it from the cache.

    The hub is asked which commit a branch or tag is at; a commit that is in the cache
    needs no network. The hash of each tensor file is compared with the one that the
    hub announced for it, which its client does not do.

    Args:
        reference: ``ORG/NAME`` or ``ORG/NAME@REVISION`` (commit, tag or branch).

    Raises:
        UserError: It does not exist, may not be read, cannot be reached and is not in
            the cache, or what arrived is not what was announced.
    """
    hub = _Hub(reference)
    folder = hub.snapshot(hub.revision, SMALL_FILES, quiet=True)
    commit = folder.name
    files = tensor_files(folder, lambda patterns: hub.bring(commit, patterns))
    _check_announced(files, f"hf:{reference}")
    return Snapshot(folder, files, commit, _licence(folder))


def fetch_files(reference: str, patterns: list[str]) -> Snapshot:
    """Download some files of a repository, those in its folders too.

    For sources that know another layout than transformers'; else as
    :func:`fetch_model`.

    Args:
        reference: ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        patterns: Which files, as glob patterns of paths; ``*`` also matches slashes.

    Raises:
        UserError: See :func:`fetch_model`.
    """
    hub = _Hub(reference)
    wanted = [*patterns, "README.md"]
    folder = hub.snapshot(hub.revision, wanted, ignored=None)
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = tuple(
        path
        for path in found
        if any(fnmatch(path.relative_to(folder).as_posix(), p) for p in patterns)
    )
    _check_announced(files, f"hf:{reference}")
    return Snapshot(folder, files, folder.name, _licence(folder))


class _Hub:
    """One repository, and whether its hub can be reached."""

    def __init__(self, reference: str) -> None:
        from huggingface_hub import constants, get_session

        found = REFERENCE.fullmatch(reference)
        if not found:
            raise UserError(
                "is no name of a model on a hub",
                where=f"hf:{reference}",
                fix="write hf:ORG/NAME or hf:ORG/NAME@REVISION",
            )
        self.repo = found["repo"]
        self.revision = found["revision"] or "main"
        # The client reads these when it is imported; a program may set them later.
        self.endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        home = os.environ.get("HF_HOME")
        default = Path(home) / "hub" if home else Path(constants.HF_HUB_CACHE)
        self.cache = Path(os.environ.get("HF_HUB_CACHE", default)).expanduser()
        self.unreachable = ""
        if constants.HF_HUB_OFFLINE:
            self.unreachable = "HF_HUB_OFFLINE is set"
            return
        try:
            # For a listing the client tries half a minute to reach a host that does
            # not exist; one question by its own session, any answer will do.
            get_session().head(self.endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:
            self.unreachable = f"{self.endpoint} cannot be reached: {error}"

    def bring(self, commit: str, patterns: list[str]) -> None:
        self.snapshot(commit, patterns)

    def snapshot(
        self,
        revision: str,
        patterns: list[str],
        *,
        ignored: list[str] | None = IN_FOLDERS,
        quiet: bool = False,
    ) -> Path:
        """The folder of a commit, with the files that match."""
        from huggingface_hub import snapshot_download

        try:
            path = snapshot_download(
                self.repo,
                revision=revision,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                allow_patterns=patterns,
                ignore_patterns=ignored,
                local_files_only=bool(self.unreachable),
                tqdm_class=_silent() if quiet else None,
            )
        except Exception as error:
            # The client passes on its own errors and, by its version, those of one
            # of two HTTP libraries.
            raise UserError(self._fault(error)) from error
        return Path(path)

    def _fault(self, error: Exception) -> Fault:
        from huggingface_hub import errors

        where = f"hf:{self.repo}@{self.revision}"
        page = f"{self.endpoint}/{self.repo}"
        log_in = "log in with `hf auth login` or set HF_TOKEN"
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return Fault(
                "the model is gated",
                where,
                "its owners ask who you are before they hand it out",
                f"accept the terms on {page}, then {log_in}",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return Fault(
                f"the model has no revision {self.revision!r}",
                where,
                fix=f"choose a commit, tag or branch of {page}/commits/main",
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            return Fault(
                f"{self.endpoint} has no model {self.repo!r} that you may read",
                where,
                "it does not exist or it is private; a hub does not say which",
                f"check the name (ORG/NAME, case matters), or {log_in}",
            )
        if isinstance(error, errors.LocalEntryNotFoundError):
            return Fault(
                "the model is not, or not whole, in the cache and the hub is out of "
                "reach",
                where,
                self.unreachable or first,
                "connect once; or set HF_ENDPOINT to a mirror; or copy the model here "
                "and name it file:FOLDER; or use an asset: (see `headstart assets`)",
            )
        if isinstance(error, OSError) and error.errno is not None:
            return Fault(
                f"the hub's cache cannot be written: {error.strerror}",
                str(error.filename or self.cache),
                f"models of hf: are kept in {self.cache}",
                "make room, or set HF_HOME to a folder that can be written",
            )
        return Fault(
            "the download failed",
            where,
            f"{type(error).__name__}: {first}",
            "run it again; what has arrived whole is kept",
        )


def _check_announced(files: Iterable[Path], where: str) -> None:
    """Compare each tensor file with the hash that the hub announced for it.

    In the client's cache a snapshot's file is a link to a blob, whose name is the
    entity tag; for large files that is their sha256. What differs is deleted.
    """
    faults = []
    for path in files:
        announced = Path(os.readlink(path)).name if path.is_symlink() else ""
        if not re.fullmatch(r"[0-9a-f]{64}", announced):
            continue
        digest = file_sha256(path.resolve())
        if digest != announced:
            (path.parent / os.readlink(path)).unlink()
            path.unlink()
            faults.append(
                Fault(
                    f"{path.name} has a wrong hash and was deleted",
                    where,
                    f"the hub announced {announced}, the file has {digest}",
                    "run it again; if it stays so, the hub or what is between is at "
                    "fault",
                )
            )
    if faults:
        raise UserError(*faults)


def _licence(folder: Path) -> str:
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    try:
        found = metadata_load(card) if card.is_file() else None
    except Exception:
        # A card that is no valid YAML says nothing; it is no reason to stop.
        return ""
    licence = (found or {}).get("license", "")
    return licence if isinstance(licence, str) else ", ".join(map(str, licence))


def _silent() -> type:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings["disable"] = True
            super().__init__(*args, **settings)  # type: ignore[no-untyped-call]

    return Silent
