"""Chat templates: what the model reads, and which tokens the assistant says."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headstart.errors import DataError
from headstart_nlp.chat import prompt, render

OPEN = "{% for m in messages %}<|start|>{{ m['role'] }}\n"
GENERATED = (
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}"
)
ASKS = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
TAGGED = OPEN + GENERATED + "{{ '\n' }}{% endfor %}" + ASKS
CHAT = OPEN + "{{ m['content'] }}<|end|>\n{% endfor %}" + ASKS
# As Qwen3 does it: thoughts are written in the last turn only.
FORGETFUL = (
    OPEN + "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}"
)

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what  is\nblüe?"},
    {"role": "assistant", "content": "the sky 🌊 "},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "\n the sea"},
]


def byte_tokenizer(chat_template=CHAT, eos="<|end|>", bos=None, **options):
    """Every byte is a token, so what is counted can be read back exactly.

    Options: ``merges`` puts byte pairs together, ``trim`` leaves white space out of the
    offsets of tokens, as GPT-2's own tokenizer does.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = options.get("merges", [])
    words = [*alphabet, *("".join(pair) for pair in merges)]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.ByteLevel(trim_offsets=options.get("trim", False))
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=eos,
        bos_token=bos,
        additional_special_tokens=["<|start|>", "<|end|>"],
    )
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = chat_template
    return tokenizer


def said(tokenizer, ids, counted):
    """What is counted, as one text for each run of tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], counted, [0]])))
    return [
        tokenizer.decode(ids[start:stop])
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]


def test_the_assistant_s_turns_and_their_ends_are_counted_and_nothing_else():
    tokenizer = byte_tokenizer()
    ids, counted = render(tokenizer, TALK, "chat")
    assert ids.dtype == np.int32
    assert counted.dtype == np.bool_
    assert tokenizer.decode(ids) == (
        "<|start|>system\nbe brief<|end|>\n<|start|>user\nwhat  is\nblüe?<|end|>\n"
        "<|start|>assistant\nthe sky 🌊 <|end|>\n<|start|>user\nand?<|end|>\n"
        "<|start|>assistant\n\n the sea<|end|>\n"
    )
    assert said(tokenizer, ids, counted) == ["the sky 🌊 <|end|>", "\n the sea<|end|>"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trim": True, "merges": [("Ġ", "Ġ"), ("Ġ", "s"), ("t", "h"), ("th", "e")]},
        {"bos": "<s>"},
    ],
    ids=["bytes", "merged", "bos"],
)
def test_what_is_counted_is_what_transformers_marks_in_a_tagged_template(options):
    upstream = byte_tokenizer(TAGGED, **options).apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    assert sum(upstream["assistant_masks"]) > 10
    for template in (CHAT, TAGGED):
        ids, counted = render(byte_tokenizer(template, **options), TALK, "chat")
        assert ids.tolist() == upstream["input_ids"]
        assert counted.astype(int).tolist() == upstream["assistant_masks"]


def test_the_prompt_is_what_stands_before_the_response():
    tokenizer = byte_tokenizer()
    for template in ("chat", "plain"):
        ids, counted = render(tokenizer, TALK[:3], template)
        first = int(np.flatnonzero(counted)[0])
        np.testing.assert_array_equal(
            prompt(tokenizer, TALK[:2], template), ids[:first]
        )


def test_a_template_that_rewrites_turns_is_refused_by_turn_or_marked():
    rest = "{{ m['content'] }}<|end|>\n{% endfor %}" + ASKS
    with pytest.raises(DataError, match="turn 3 is written differently") as caught:
        render(byte_tokenizer(FORGETFUL + rest), TALK, "chat")
    assert "{% generation %}" in str(caught.value)
    tokenizer = byte_tokenizer(FORGETFUL + GENERATED + "\n{% endfor %}" + ASKS)
    found = said(tokenizer, *render(tokenizer, TALK, "chat"))
    assert found == ["the sky 🌊 <|end|>", "\n the sea<|end|>"]
    tokenizer = byte_tokenizer(FORGETFUL + rest)
    assert said(tokenizer, *render(tokenizer, TALK[:3], "chat")) == [
        "<think></think>the sky 🌊 <|end|>"
    ]


def test_the_last_response_ends_with_end_of_text_whatever_the_template_writes():
    tokenizer = byte_tokenizer(eos="<eos>")
    ids, counted = render(tokenizer, TALK, "chat")
    assert said(tokenizer, ids, counted) == [
        "the sky 🌊 <|end|>",
        "\n the sea<|end|><eos>",
    ]
    assert tokenizer.decode(ids).endswith("sea<|end|><eos>")
    # Marked without the end of the turn, which must be learned nevertheless.
    short = TAGGED.replace("<|end|>{% endg", "{% endg").replace(
        "endgeneration %}{% else", "endgeneration %}<|end|>{% else"
    )
    tokenizer = byte_tokenizer(short)
    assert said(tokenizer, *render(tokenizer, TALK, "chat")) == [
        "the sky 🌊 ",
        "\n the sea<|end|>",
    ]


def test_plain_conversations_are_lines_and_end_with_end_of_text():
    tokenizer = byte_tokenizer(None, eos="<eos>")
    ids, counted = render(tokenizer, TALK, "plain")
    assert tokenizer.decode(ids) == (
        "be brief\nwhat  is\nblüe?\nthe sky 🌊 <eos>and?\n\n the sea<eos>"
    )
    assert said(tokenizer, ids, counted) == ["the sky 🌊 <eos>", "\n the sea<eos>"]


def test_plain_conversations_begin_as_the_tokenizer_begins_every_text():
    tokenizer = byte_tokenizer(None, eos="<eos>", bos="<s>")
    ids, counted = render(tokenizer, TALK[1:3], "plain")
    assert tokenizer.decode(ids) == "<s>what  is\nblüe?\nthe sky 🌊 <eos>"
    assert said(tokenizer, ids, counted) == ["the sky 🌊 <eos>"]


def test_the_first_token_is_never_counted():
    tokenizer = byte_tokenizer(None, eos="<eos>")
    ids, counted = render(tokenizer, [{"role": "assistant", "content": "sky"}], "plain")
    assert tokenizer.decode(ids) == "sky<eos>"
    assert counted.tolist() == [False, True, True, True]


def test_a_template_s_own_refusal_is_passed_on_with_the_turns():
    refusing = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
    )
    with pytest.raises(DataError) as caught:
        render(byte_tokenizer(refusing), TALK, "chat")
    assert "System role not supported" in str(caught.value)
    assert "system, user, assistant, user, assistant" in str(caught.value)
    with pytest.raises(DataError, match="System role not supported"):
        prompt(byte_tokenizer(refusing), TALK[:2], "chat")


def test_a_template_that_leaves_the_response_out_is_refused():
    silent = (
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(DataError, match="no token of the response is left"):
        render(byte_tokenizer(silent), TALK[1:3], "chat")
