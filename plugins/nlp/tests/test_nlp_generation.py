"""Generation against transformers' own, and what ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.generation.logits_process import TopPLogitsWarper

from headstart.errors import DataError, UserError
from headstart.model import Model
from headstart_nlp import generation, language_model
from headstart_nlp.causal import build_causal
from headstart_nlp.generation import generate, open_tokenizer
from headstart_nlp.language_model import LanguageModel, build_language_model
from headstart_nlp.options import GenerationOptions
from headstart_nlp.settings import CausalSettings, LanguageModelSettings

if TYPE_CHECKING:
    from pathlib import Path

END, VOCABULARY, CONTEXT = 256, 260, 48
GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes, whose 257th token ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>"
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    found = open_tokenizer(str(folder))
    assert found.eos_token_id == END
    return found


def backbone(kind: str = "llama", **config: Any) -> Any:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": END,
        "initializer_range": 0.5,
    }
    sizes |= {"intermediate_size": 32} if kind == "llama" else {}
    settings = CausalSettings(
        name="nlp/causal", config={"model_type": kind, **sizes, **config}
    )
    torch.manual_seed(0)
    return build_causal(settings, None, {}).eval()


def speaker(tokenizer: Any, text: str) -> Any:
    """A model that says a text and its end, whatever it is asked.

    It knows the place alone: position t of GPT-2 makes byte t likeliest.
    """
    found = backbone("gpt2", hidden_size=VOCABULARY, num_hidden_layers=1)
    state = found.state_dict()
    for name, value in state.items():
        value.zero_()
        if name.endswith("norm.block.weight"):
            value.fill_(1.0)
    ids = [*tokenizer(text)["input_ids"], END]
    (tokens,) = (k for k in state if k.startswith("stages.embeddings.block"))
    (places,) = (k for k in state if k.startswith("stages.embeddings.positions"))
    # Tied: the output reads what the position wrote, one place for each token.
    state[tokens].copy_(torch.eye(VOCABULARY))
    for place, token in enumerate(ids):
        state[places][place, token] = 100.0
    return found


def ids(tokenizer: Any, *texts: str) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in texts]


def options(**values: Any) -> GenerationOptions:
    return GenerationOptions(**values)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_equals_the_librarys(kind: str, tokenizer: Any) -> None:
    model = backbone(kind)
    prompts = ids(tokenizer, "a film", "the plot was very")
    found = generate(model, prompts, options(**GREEDY), tokenizer)
    for prompt, (continuation,) in zip(prompts, found, strict=True):
        theirs = model.language_model().generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        new = theirs[0, len(prompt) :].tolist()
        new = new[: new.index(END)] if END in new else new
        assert continuation.text == tokenizer.decode(new)
        assert continuation.tokens == len(new)


def test_end_of_text_ends_it(tokenizer: Any) -> None:
    model = speaker(tokenizer, "abcdefgh")
    found = generate(model, ids(tokenizer, "x", "xyz"), options(**GREEDY), tokenizer)
    assert [each[0].text for each in found] == ["abcdefgh", "cdefgh"]
    assert [(each[0].tokens, each[0].ended) for each in found] == [
        (8, "end of text"),
        (6, "end of text"),
    ]


def test_length_ends_it(tokenizer: Any) -> None:
    model = speaker(tokenizer, "abcdefgh")
    few = options(temperature=0.0, max_tokens=3)
    ((found,),) = generate(model, ids(tokenizer, "x"), few, tokenizer)
    assert (found.text, found.tokens, found.ended) == ("abc", 3, "length")


@pytest.mark.parametrize("stop", [("def",), ("zz", "defg", "de"), ("f",)])
def test_stop_texts_end_it_and_are_cut(stop: tuple[str, ...], tokenizer: Any) -> None:
    model = speaker(tokenizer, "abcdefgh")
    asked = options(**GREEDY, stop=stop)
    found = generate(model, ids(tokenizer, "x", "xyzxyzxyz"), asked, tokenizer)
    assert found[0][0].text == "abcdefgh".partition(stop[-1])[0]
    assert found[0][0].ended == "stop"
    # The second prompt is past the stop text; the first does not end it.
    assert found[1][0].ended == "end of text"


def test_a_row_that_stopped_is_not_changed_by_longer_ones(tokenizer: Any) -> None:
    model, asked = backbone(), options(**GREEDY, stop=("e", "a", "\x00"))
    prompts = ids(tokenizer, "a film", "the plot was very", "b", "quite")
    together = generate(model, prompts, asked, tokenizer)
    alone = [generate(model, [each], asked, tokenizer)[0] for each in prompts]
    assert together == alone


def test_seed_decides_and_not_the_batch(tokenizer: Any) -> None:
    model = backbone()
    prompts = ids(tokenizer, "a film", "the plot was very")
    asked = options(temperature=1.0, max_tokens=16, seed=3, samples=2)
    found = generate(model, prompts, asked, tokenizer)
    torch.manual_seed(99)
    assert generate(model, prompts, asked, tokenizer) == found
    assert generate(model, prompts[1:], asked, tokenizer) == found[1:]
    assert found[0][0] != found[0][1]
    other = options(temperature=1.0, max_tokens=16, seed=4, samples=2)
    assert generate(model, prompts, other, tokenizer) != found


def test_draws_follow_the_probabilities(tokenizer: Any) -> None:
    """Temperature and top-p as the library applies them, over many draws."""
    model = backbone(initializer_range=0.2)
    (prompt,) = ids(tokenizer, "a")
    asked = options(temperature=0.5, top_p=0.8)
    with torch.no_grad():
        scores = model.language_model()(torch.tensor([prompt])).logits[:, -1]
    expected = F.softmax(TopPLogitsWarper(0.8)(None, scores / 0.5), -1)[0]
    count = 4000
    turns = [generation._Turn(tuple(prompt), number, 1) for number in range(count)]
    steps = generation._processors(turns, asked, torch.zeros(count, 1))
    many = torch.tensor([prompt]).expand(count, -1)
    chosen = steps(many, scores.expand(count, -1).clone()).argmax(-1)
    drawn = torch.bincount(chosen, minlength=VOCABULARY) / count
    assert drawn[expected == 0].sum() == 0
    assert (drawn - expected).abs().max() < 0.03


def test_top_k_of_one_is_greedy(tokenizer: Any) -> None:
    model, prompts = backbone(), ids(tokenizer, "a film", "b")
    first = options(temperature=2.0, top_k=1, max_tokens=12)
    greedy = generate(model, prompts, options(**GREEDY), tokenizer)
    assert generate(model, prompts, first, tokenizer) == greedy


def test_repetition_penalty_equals_the_librarys(tokenizer: Any) -> None:
    model, prompts = backbone(), ids(tokenizer, "a film", "the plot was very")
    asked = options(**GREEDY, repetition_penalty=3.0)
    found = generate(model, prompts, asked, tokenizer)
    assert found != generate(model, prompts, options(**GREEDY), tokenizer)
    for prompt, (continuation,) in zip(prompts, found, strict=True):
        theirs = model.language_model().generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=3.0,
            pad_token_id=0,
        )
        new = theirs[0, len(prompt) :].tolist()
        new = new[: new.index(END)] if END in new else new
        assert continuation.text == tokenizer.decode(new)


@pytest.mark.parametrize("stop", [(), ("ng",), ("g wi", "x")])
def test_pieces_join_to_the_text(stop: tuple[str, ...], tokenizer: Any) -> None:
    said = "ähnlich 🎬 nothing goes wing"
    model, pieces = speaker(tokenizer, said), []
    asked = options(temperature=0.0, max_tokens=44, stop=stop)
    prompts = ids(tokenizer, "x")
    ((found,),) = generate(model, prompts, asked, tokenizer, pieces.append)
    assert "".join(pieces) == found.text + "\n"
    assert found.text == min(
        (said.partition(s)[0] for s in stop), key=len, default=said
    )
    assert len(pieces) > 3, "it should come as it is made"
    assert not any(generation.UNFINISHED in piece for piece in pieces)
    assert generate(model, prompts, asked, tokenizer) == [[found]]


def test_prompts_stream_one_after_the_other(tokenizer: Any) -> None:
    model, pieces = backbone(), []
    prompts = ids(tokenizer, "a film", "the plot was very")
    asked = options(temperature=1.0, max_tokens=8)
    found = generate(model, prompts, asked, tokenizer, pieces.append)
    assert "".join(pieces) == f"{found[0][0].text}\n{found[1][0].text}\n"
    assert found == generate(model, prompts, asked, tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_context_bounds_the_text(kind: str, tokenizer: Any) -> None:
    model = backbone(kind, eos_token_id=None)
    tokenizer = _Endless(tokenizer)
    prompts = ids(tokenizer, "x" * (CONTEXT - 5), "x")
    asked = options(temperature=0.0, max_tokens=20)
    long, short = generate(model, prompts, asked, tokenizer)
    assert (long[0].tokens, short[0].tokens) == (5, 20)


class _Endless:
    """A tokenizer without an end-of-text token."""

    eos_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decode = tokenizer.decode

    def __call__(self, text: str) -> Any:
        return self.tokenizer(text)


def test_prompts_that_leave_no_room_are_refused_together(tokenizer: Any) -> None:
    prompts = [*ids(tokenizer, "x" * (CONTEXT + 2), "x"), []]
    with pytest.raises(DataError) as caught:
        generate(backbone(), prompts, options(**GREEDY), tokenizer)
    first, second = caught.value.faults
    assert (first.where, second.where) == ("prompt 1", "prompt 3")
    assert first.what == f"the prompt has {CONTEXT + 2} tokens"
    assert "by 3 tokens" in first.fix


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no tokenizer"):
        open_tokenizer("")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_tokenizer(str(tmp_path))


def model_of(kind: str, body: Any, folder: Path, **probe: Any) -> Model:
    task = {"kind": kind, "tokenizer": str(folder), "probe": probe}
    head = build_language_model(
        LanguageModelSettings(name="nlp/language-model"), body.features, task
    )
    return Model(body, head)


def batch_of(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Right-padded, as the data gives it."""
    longest = max(map(len, prompts))
    rows = [prompt + [7] * (longest - len(prompt)) for prompt in prompts]
    there = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    places = torch.arange(longest).expand(len(prompts), -1)
    segments = torch.tensor(there)
    return {
        "input_ids": torch.tensor(rows),
        "positions": places * segments,
        "segments": segments,
    }


def test_predictions_are_what_was_generated(folder: Path, tokenizer: Any) -> None:
    model = model_of("conversation", speaker(tokenizer, "abcdefgh"), folder).eval()
    head = model.head
    assert isinstance(head, LanguageModel)
    batch = batch_of(ids(tokenizer, "x", "xyz"))
    head.options = options()
    found = head.decode(head.outputs(head.infer(model, batch)))
    assert found == [
        {"text": "abcdefgh", "tokens": 8, "ended": "end of text"},
        {"text": "cdefgh", "tokens": 6, "ended": "end of text"},
    ]
    head.options = options(samples=2)
    several = head.decode(head.outputs(head.infer(model, batch)))
    assert several[0] == {"samples": [found[0]] * 2}
    pieces: list[str] = []
    head.options, head.emit = options(), pieces.append
    head.infer(model, batch_of(ids(tokenizer, "x")))
    assert "".join(pieces) == "abcdefgh\n"


def test_usual_temperature_is_the_tasks(folder: Path, tokenizer: Any) -> None:
    prompts = ids(tokenizer, "a film")
    for kind, temperature in (("text", 0.8), ("conversation", 0.0)):
        model = model_of(kind, backbone(), folder)
        model.head.options = options(max_tokens=12)
        state = model.head.infer(model.eval(), batch_of(prompts))
        asked = options(temperature=temperature, max_tokens=12)
        ((expected,),) = generate(model.backbone, prompts, asked, tokenizer)
        assert state["continuations"][0][0]["text"] == expected.text


def test_probe_gives_samples_and_loss_on_general_text(
    folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "GENERAL_TOKENS", 30)
    monkeypatch.setattr(language_model, "GENERAL_BATCH", 24)
    texts = ["a film", "the plot was very good", "b", "never read: too much"]
    documents = ids(tokenizer, *texts)
    body = backbone()
    model = model_of(
        "conversation",
        body,
        folder,
        prompts=[{"text": "a", "ids": ids(tokenizer, "a")[0], "reference": "b"}],
        general={"name": "essays", "documents": documents},
    ).train()
    found = model.head.probe(model)
    assert model.training and model.backbone.stages["norm"].training
    # "b" is one token: nothing is predicted in it. The last goes beyond 30 tokens.
    nll = 0.0
    with torch.no_grad():
        for document in documents[:2]:
            given = torch.tensor([document])
            loss = body.language_model()(input_ids=given, labels=given).loss
            nll += float(loss) * (len(document) - 1)
    assert found["general_tokens"] == len(documents[0]) + len(documents[1]) - 2
    assert found["general_documents"] == 2
    assert found["general_nll"] == pytest.approx(nll, rel=1e-4)
    asked = options(temperature=0.0, max_tokens=language_model.PROBE_TOKENS)
    ((expected,),) = generate(body, ids(tokenizer, "a"), asked, tokenizer)
    assert found["samples"] == [expected.text]
    assert model_of("text", body, folder).head.probe(model) == {}
