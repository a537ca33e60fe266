"""Vectors of the items' titles: from a file, or computed by a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart import assets
from headstart.data import Findings
from headstart.errors import DataError, Fault, UserError
from headstart.settings import DataSettings
from headstart.weights.tensors import files_sha256, tensor_files
from headstart_recsys.embeddings import ITEMS, Table, read_embeddings
from headstart_recsys.kept import digest, kept, kept_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headstart.fetch.http import Progress
    from headstart_recsys.catalogue import Catalogue
    from headstart_recsys.settings import InteractionSettings

BATCH = 64
LONGEST = 256
"""Tokens of a title that are read."""
FEW = 5
EPS = 1e-6
"""Variances below this share of the largest count as none."""


def item_vectors(
    settings: InteractionSettings,
    catalogue: Catalogue | None,
    item_ids: Sequence[str],
    progress: Progress | None = None,
    findings: Findings | None = None,
) -> np.ndarray | None:
    """The text vectors that ``[data]`` asks for, in the order of the items.

    Args:
        settings: ``text`` names a file of vectors, or an encoder (``asset:NAME``,
            ``hf:ORG/NAME``, ``file:FOLDER``, a folder); ``whiten`` whitens.
        catalogue: Its titles, in the order of the items.
        item_ids: The items.
        progress: Told about transfers.
        findings: Takes a warning about items without text.

    Returns:
        float32 ``(items, width)``, zeros for items without text; ``None`` when no text
        is asked for.

    Raises:
        DataError: The file is faulty, or more items than ``bad_cap`` have no text.
        UserError: The encoder cannot be had.
    """
    reference = settings.text
    if not reference:
        return None
    findings = findings if findings is not None else Findings()
    path = Path(reference.removeprefix("file:")).expanduser()
    if reference.startswith(("asset:", "hf:")) or path.is_dir():
        titles = list(catalogue.titles) if catalogue is not None else []
        titles = [title.strip() for title in titles] or [""] * len(item_ids)
        lacking = [i for i, title in enumerate(titles) if not title]
        _tell_lacking(lacking, item_ids, settings, findings, "has a title")
        vectors = encode_items(titles, reference, progress)
    else:
        vectors = read_text_vectors(path, item_ids, settings, findings)
    return whiten(vectors) if settings.whiten else vectors


def read_text_vectors(
    path: Path,
    item_ids: Sequence[str],
    settings: DataSettings | None = None,
    findings: Findings | None = None,
) -> np.ndarray:
    """The vectors of some items from a file that knows its rows' ids.

    Args:
        path: See :mod:`headstart_recsys.embeddings`.
        item_ids: The items, in the order of the result.
        settings: ``bad`` and ``bad_cap`` say what happens to bad rows and how many
            items may be without a vector.
        findings: Takes warnings.

    Returns:
        float32 ``(items, width)``, zeros for items that the file does not know.

    Raises:
        DataError: All faults of the file, or too many items are not in it.
    """
    settings = settings or DataSettings(name="text")
    findings = findings if findings is not None else Findings()
    found = Findings()
    tables = read_embeddings(path, settings, found)
    findings.warnings += found.warnings
    findings.left_out += found.left_out
    if ITEMS not in tables:
        raise DataError(
            "has no vectors of items",
            where=str(path),
            fix="name them 'vectors' and their ids 'item_ids'",
        )
    table = tables[ITEMS]
    places = {identity: row for row, identity in enumerate(table.ids)}
    rows = np.array([places.get(identity, -1) for identity in item_ids], dtype=np.int64)
    lacking = np.flatnonzero(rows < 0).tolist()
    _tell_lacking(lacking, item_ids, settings, findings, f"is in {path.name}")
    vectors = np.zeros((len(item_ids), table.vectors.shape[1]), dtype=np.float32)
    vectors[rows >= 0] = table.vectors[rows[rows >= 0]]
    return vectors


def _tell_lacking(
    lacking: Sequence[int],
    item_ids: Sequence[str],
    settings: DataSettings,
    findings: Findings,
    what: str,
) -> None:
    """Warn of items without text; too many are an error."""
    if not lacking:
        return
    names = ", ".join(repr(item_ids[i]) for i in lacking[:FEW])
    names += f" and {len(lacking) - FEW} more" if len(lacking) > FEW else ""
    share = len(lacking) / len(item_ids)
    head = f"{len(item_ids) - len(lacking)} of {len(item_ids)} items {what}"
    head = head.replace("items has", "items have").replace("items is", "items are")
    mend = (
        "mend data.items_path or the file of vectors (are its ids those of the data?)"
    )
    if len(lacking) == len(item_ids) and what == "has a title":
        mend = "name a file of the items' titles with data.items_path"
    if share > settings.bad_cap:
        raise DataError(
            f"only {head}; not {names}",
            where="data.text",
            why=f"at most {settings.bad_cap:.1%} of the items may be without text",
            fix=f"{mend}, or raise data.bad_cap if you know why",
        )
    why = "nothing is known about them from text: their vectors are zeros"
    findings.warnings.append(Fault(f"{head}; not {names}", "data.text", why))


def encode_items(
    texts: Sequence[str], reference: str, progress: Progress | None = None
) -> np.ndarray:
    """Texts as vectors of a transformers encoder, kept in the cache.

    The mean of the last layer over a text's tokens, at unit length, as sentence
    encoders are used (Reimers and Gurevych, Sentence-BERT, 2019).

    Args:
        texts: Empty ones get zeros.
        reference: ``asset:NAME`` of this plugin, ``hf:ORG/NAME``, or a folder as
            ``save_pretrained`` writes it, with or without ``file:``.
        progress: Told about transfers.

    Returns:
        float32 ``(texts, width)``.

    Raises:
        UserError: The encoder cannot be had, or transformers is not installed.
    """
    folder = _encoder_folder(reference, progress)
    files = tensor_files(folder)
    if any(path.suffix != ".safetensors" for path in files):
        raise UserError(
            "the text encoder is no safetensors file",
            where=reference,
            fix="choose one that is, or convert it with save_pretrained",
        )
    small = sorted(path for path in folder.glob("*.json") if path.is_file())
    contents = [path.read_bytes() for path in small]
    key = digest("mean", files_sha256(files), *contents, list(texts))

    def make() -> dict[str, Table]:
        from headstart.console import Counter

        with Counter("encoding titles") as bar:
            vectors = _encode(folder, reference, texts, bar)
        return {"item_text": Table(vectors, ())}

    return kept_vectors(kept("encoded", key, make), "item_text")


def _encoder_folder(reference: str, progress: Progress | None) -> Path:
    scheme, colon, rest = reference.partition(":")
    if scheme == "asset" and colon:
        package = __package__ or "headstart_recsys"
        return assets.fetch(assets.find_asset(rest, [package]), progress=progress)
    if scheme == "hf" and colon:
        from headstart.weights.hub import fetch_model

        return fetch_model(rest).folder
    return Path(reference.removeprefix("file:")).expanduser()


def _encode(
    folder: Path,
    reference: str,
    texts: Sequence[str],
    told: Callable[[int, int], None],
) -> np.ndarray:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "computing text vectors needs transformers, which is not installed",
            where=f"data.text = {reference!r}",
            fix="pip install 'headstart-recsys[text]', or give a file of vectors",
        ) from error
    import torch

    # Its own bar comes even for a file that is read in a moment.
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        model: Any = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            "cannot be opened as a text encoder",
            where=reference,
            why=str(error).strip().splitlines()[0] if str(error).strip() else "",
            fix="a folder with config.json, tokenizer.json and model.safetensors is "
            "needed",
        ) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    longest = min(tokenizer.model_max_length, LONGEST)
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    # Texts of like length together: little padding.
    order = sorted((i for i, t in enumerate(texts) if t), key=lambda i: -len(texts[i]))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        told(start + len(rows), len(order))
    return vectors


def whiten(vectors: np.ndarray) -> np.ndarray:
    """Vectors with mean 0, uncorrelated dimensions and variance 1, as close as can be.

    ZCA: of all whitening transforms the one that turns vectors least (Kessy, Lewin and
    Strimmer, Optimal Whitening and Decorrelation, 2018). Directions in which nothing
    varies stay at 0. Rows of zeros stand for no text: they do not count and stay.

    Args:
        vectors: float32 ``(rows, width)``.

    Returns:
        The same shape.
    """
    known = vectors.any(axis=1)
    result = np.zeros(vectors.shape, dtype=np.float32)
    if known.sum() < 2:
        return result
    rows = vectors[known].astype(np.float64)
    rows -= rows.mean(axis=0)
    variances, directions = np.linalg.eigh(rows.T @ rows / len(rows))
    some = variances > EPS * variances[-1]
    inverse = np.zeros_like(variances)
    inverse[some] = variances[some] ** -0.5
    result[known] = rows @ (directions * inverse) @ directions.T
    return result


def match_norms(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Vectors times one number, so that their mean length is the reference's.

    Args:
        vectors: ``(rows, width)``; rows of zeros do not count.
        reference: ``(other rows, other width)``.
    """
    lengths, wanted = (np.linalg.norm(x, axis=1) for x in (vectors, reference))
    if not lengths.any() or not wanted.any():
        return vectors
    factor = wanted[wanted > 0].mean() / lengths[lengths > 0].mean()
    scaled: np.ndarray = (vectors * factor).astype(np.float32)
    return scaled
