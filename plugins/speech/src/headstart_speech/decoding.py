"""From frames to characters: the likeliest path, or a beam search for the best text."""

from __future__ import annotations

import tempfile
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headstart.errors import UserError
from headstart_speech.audio_faults import expanded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from headstart_speech.options import TranscribeOptions

BLANK = 0
SPACES = ("|", "▁", "<space>", "<sp>")
"""What language models of characters call the space between words; the first where
nobody knows."""
UNSAID = "\ue000"
"""A space by another name: a character of the private use area."""
UNKNOWN = "<unk>"
KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
MARKS = frozenset({"<s>", "</s>", UNKNOWN, "<UNK>"})


def greedy(log_probs: Tensor, frames: Sequence[int]) -> list[list[int]]:
    """The characters of the likeliest class of each frame, repeats and blanks removed.

    Args:
        log_probs: (clips, frames, classes).
        frames: How many of them count, of each clip.
    """
    best = log_probs.argmax(-1).tolist()
    return [
        [k for k, _ in groupby(path[:n]) if k != BLANK]
        for path, n in zip(best, frames, strict=True)
    ]


def spelled(labels: Iterable[int], vocabulary: Sequence[str]) -> str:
    """Labels as text, single spaces between words.

    Args:
        labels: Classes; negative ones are behind the end.
        vocabulary: The classes, the blank first.
    """
    text = "".join(vocabulary[label] for label in labels if label > BLANK)
    return " ".join(text.split())


class BeamSearch:
    """torchaudio's CTC decoder, with a language model where one is given.

    A language model of characters scores every character; one of words lets only its
    words be said, each spelled with the vocabulary's characters.

    Args:
        options: The width of the beam, language model, words and weights.
        vocabulary: The classes, the blank first.

    Raises:
        UserError: A library or a file is missing, or they do not fit the vocabulary.
    """

    def __init__(self, options: TranscribeOptions, vocabulary: Sequence[str]) -> None:
        build = _library()
        self._space = vocabulary.index(" ") if " " in vocabulary else None
        units = _unigrams(Path(options.lm)) if options.lm else None
        words = _words(Path(options.words)) if options.words else None
        if words is None and units is not None and not _are_characters(units):
            words = units
        if words is not None and units is not None:
            words = _known(words, units, options)
        tokens = _names(vocabulary, units if words is None and units else ())
        space = tokens[self._space or BLANK]
        self._closed = words is not None and self._space is not None
        with tempfile.TemporaryDirectory() as folder:
            lexicon, listed = Path(folder) / "lexicon.txt", Path(folder) / "tokens.txt"
            if words is not None:
                ending = space if self._closed else ""
                _write_lexicon(lexicon, words, vocabulary, ending, options)
            # Without this list torchaudio numbers what the language model scores in
            # an order of its own, and looks it up by the numbers of the classes.
            listed.write_text("\n".join([*tokens, UNKNOWN]), encoding="utf-8")
            scores_tokens = bool(options.lm) and words is None
            try:
                self._decoder: Any = build(
                    lexicon=str(lexicon) if words is not None else None,
                    tokens=tokens,
                    lm=str(expanded(options.lm)) if options.lm else None,
                    lm_dict=str(listed) if scores_tokens else None,
                    beam_size=options.beam_size,
                    lm_weight=options.lm_weight,
                    word_score=options.word_score,
                    # A text's paths add up; the likeliest alone are the greedy ones.
                    log_add=True,
                    blank_token=tokens[BLANK],
                    sil_token=space,
                    unk_word=UNKNOWN,
                )
            except RuntimeError as error:
                raise UserError(
                    f"the language model {options.lm!r} cannot be read",
                    where="--lm",
                    # Its first line says where in KenLM's code.
                    why=str(error).strip().splitlines()[-1],
                    fix="give an ARPA file, or a binary file of KenLM",
                ) from error
        if scores_tokens:
            _check_characters(self._decoder.lm, vocabulary)

    def __call__(self, log_probs: Tensor, frames: Sequence[int]) -> list[list[int]]:
        """The characters of the best text of each clip.

        Args:
            log_probs: (clips, frames, classes) float32 on the CPU.
            frames: How many of them count, of each clip.
        """
        found = []
        for clip, count in zip(log_probs, frames, strict=True):
            heard = clip[:count]
            if self._closed:
                # Each word ends with a space, the last one too.
                end = heard.new_full((1, heard.shape[1]), -1e4)
                end[0, self._space] = 0.0
                heard = torch.cat([heard, end])
            best = self._decoder(heard[None].contiguous())[0]
            labels = best[0].tokens.tolist() if best else []
            found.append(_trimmed(labels, self._space))
        return found


def _trimmed(labels: list[int], space: int | None) -> list[int]:
    """Without spaces at both ends."""
    while labels and labels[0] == space:
        labels = labels[1:]
    while labels and labels[-1] == space:
        labels = labels[:-1]
    return labels


def _library() -> Any:
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "beam search needs flashlight-text, which is not installed",
            where="--decoder beam",
            why=str(error),
            fix="pip install 'headstart-speech[beam]', or --decoder greedy",
        ) from error
    return ctc_decoder


def _unigrams(path: Path) -> list[str] | None:
    """What an ARPA file gives probabilities to, without its marks.

    Returns:
        Its words or characters; ``None`` for a binary file of KenLM, which does not
        tell.
    """
    with _opened(path, "--lm") as file:
        if file.read(len(KENLM_MAGIC)) == KENLM_MAGIC:
            return None
        file.seek(0)
        units = [line.split("\t")[1] for line in _unigram_lines(file) if "\t" in line]
    if not units:
        raise UserError(
            f"{str(path)!r} is no language model",
            where="--lm",
            why="it is neither an ARPA file (\\data\\, \\1-grams:) nor KenLM's binary",
            fix="build one with KenLM's lmplz; unpack it if it is compressed",
        )
    return [unit for unit in units if unit not in MARKS]


def _unigram_lines(file: Any) -> Iterator[str]:
    inside = False
    for raw in file:
        line = raw.decode("utf-8", "replace").strip()
        if inside and line.startswith("\\"):
            return
        if inside:
            yield line
        inside = inside or line == "\\1-grams:"


def _words(path: Path) -> list[str]:
    """The different words of a text file, in order."""
    with _opened(path, "--words") as file:
        raw = file.read()
    try:
        return list(dict.fromkeys(raw.decode("utf-8-sig").split()))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(path)!r} is no text in UTF-8", where="--words", why=str(error)
        ) from error


def _opened(path: Path, option: str) -> Any:
    try:
        return expanded(path).open("rb")
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be read", where=option, why=error.strerror or ""
        ) from error


def _are_characters(units: Sequence[str]) -> bool:
    """Whether a language model is one of characters."""
    return all(len(unit) == 1 or unit in SPACES for unit in units)


def _names(vocabulary: Sequence[str], units: Iterable[str]) -> list[str]:
    """The classes as a language model of these characters calls them.

    Many are all in capitals. No two classes have one name, and none is a space, which
    would end it where the library reads it.
    """
    there, taken = set(units), set(vocabulary)
    names = []
    for own in vocabulary:
        forms = SPACES if own == " " else (own, own.upper(), own.lower())
        rest = (SPACES[0], UNSAID) if own == " " else (own,)
        name = next(
            form
            for form in (*(form for form in forms if form in there), *rest)
            if form == own or form not in taken
        )
        taken.add(name)
        names.append(name)
    return names


def _check_characters(model: Any, vocabulary: Sequence[str]) -> None:
    """That a language model tells at least some characters from unknown ones.

    Raises:
        UserError: It knows none, so that it would have no say.
    """
    start = model.start(False)
    _, unknown = model.score(start, len(vocabulary))
    for label, character in enumerate(vocabulary):
        if label == BLANK or character == " ":
            continue
        if model.score(start, label)[1] != unknown:
            return
    raise UserError(
        "the language model knows none of the model's characters",
        where="--lm",
        why=f"these are {''.join(vocabulary[1:])!r}",
        fix="give one in the language of the training data; of one of words in KenLM's "
        "binary format, give the words, too (--words)",
    )


def _known(
    words: Sequence[str], units: Sequence[str], options: TranscribeOptions
) -> list[str]:
    """The words that the language model knows; others could never be said."""
    there = set(units)
    known = [word for word in words if word in there]
    if not known:
        raise UserError(
            f"the language model knows none of the {len(words)} words",
            where="--words",
            why=f"it knows {', '.join(map(repr, units[:3]))} …, "
            f"{options.words!r} has {', '.join(map(repr, words[:3]))} …",
            fix="give a language model of words in the same letters, or leave out "
            "--words",
        )
    return known


def _write_lexicon(
    path: Path,
    words: Sequence[str],
    vocabulary: Sequence[str],
    ending: str,
    options: TranscribeOptions,
) -> None:
    """One line a word: the word, and the characters that it is spelled with."""
    known = set(vocabulary[1:])
    lines = []
    for word in words:
        # Language models are often all in capitals.
        for spelling in (word, word.lower(), word.upper()):
            if known.issuperset(spelling):
                lines.append(f"{word} {' '.join(spelling)} {ending}\n")
                break
    if not lines:
        raise UserError(
            f"none of {len(words)} words can be spelled with the model's characters",
            where="--words" if options.words else "--lm",
            why=f"it knows {''.join(sorted(known - {' '}))!r}, "
            f"and the words are {', '.join(map(repr, words[:3]))} …",
            fix="give words in the language of the training data",
        )
    path.write_text("".join(lines), encoding="utf-8")
