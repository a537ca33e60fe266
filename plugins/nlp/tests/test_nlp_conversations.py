"""Conversations: where they come from, what is learned of them, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from headstart.errors import DataError
from headstart_nlp.conversations import Conversations
from headstart_nlp.settings import ConversationSettings
from headstart_nlp.tiny import tiny_conversations, tiny_language_tokenizer

# Word by word, so that ids and texts can be compared by hand.
CHAT = (
    "{% for m in messages %}"
    "{{ {'system': '<unused2> ', 'user': '<unused0> '}.get(m['role'], '<unused1> ') }}"
    "{{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<unused1> {% endif %}"
)
WORDS = ("good", "great", "fine", "warm", "funny", "fresh", "strong", "lovely")
TALKS = [
    {"messages": [{"role": "user", "content": f"is the film {a} and {b}"},
                  {"role": "assistant", "content": f"very {a}"}]}
    for a in WORDS for b in WORDS[:3]
]  # fmt: skip


def documents(data):
    """How many each split has."""
    described = data.describe()
    return {split: described[split] for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    bare = tiny_language_tokenizer(folder / "bare")
    return {"chat": tiny_language_tokenizer(folder / "chat", CHAT), "bare": bare}


@pytest.fixture
def opened(tokenizers, tmp_path, monkeypatch):
    """Open content by its bare file name, as a user in its folder does."""
    monkeypatch.chdir(tmp_path)

    def open_(content=TALKS, name="talks.jsonl", preprocessing=None, **settings):
        if isinstance(content, list):
            content = "".join(
                (row if isinstance(row, str) else json.dumps(row)) + "\n"
                for row in content
            )
        if content is not None:
            raw = content if isinstance(content, bytes) else content.encode()
            Path(name).write_bytes(raw)
        kind = settings.pop("tokenizer", "chat")
        given = {
            "name": "nlp/conversations",
            "path": name,
            "tokenizer": str(tokenizers.get(kind, kind)),
            "max_length": 24,
            **settings,
        }
        data = Conversations(ConversationSettings(**given), 0)
        data.load()
        data.prepare(preprocessing or {})
        return data

    return open_


def faults(opened, *args, **settings):
    """The faults as one line each."""
    with pytest.raises(DataError) as caught:
        opened(*args, **settings)
    return [" | ".join(str(fault).splitlines()) for fault in caught.value.faults]


def everything(data):
    """Every conversation as (what is read, what of it is learned), sorted."""
    return sorted(
        (data.tokenizer.decode(ids), data.tokenizer.decode(ids[counted]))
        for split in ("train", "validation", "test")
        for sample in data.samples(split)
        for ids, counted in sample["documents"]
    )


PLAIN = sorted(
    (
        f"<unused0> is the film {a} and {b} <end> <unused1> very {a} <end>",
        f"very {a} <end>",
    )
    for a in WORDS
    for b in WORDS[:3]
)


def test_every_conversation_is_there_once_and_its_response_is_learned(opened):
    assert everything(opened()) == PLAIN


def _columns():
    return [
        {"q": talk["messages"][0]["content"], "a": talk["messages"][1]["content"]}
        for talk in TALKS
    ]


def _csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def _list(path, rows):
    path.write_text(json.dumps(rows, indent=1))


PAIR = {"prompt": "q", "response": "a"}
PARTS = {"prompt": "is the film {x} and {y}", "response": "very {x}"}


@pytest.mark.parametrize(
    ("name", "write", "rows", "settings"),
    [
        ("talks.json", _list, TALKS, {}),
        ("talks.parquet", _parquet, TALKS, {}),
        (
            "talks.csv",
            _csv,
            [{"messages": json.dumps(talk["messages"])} for talk in TALKS],
            {},
        ),
        ("pairs.csv", _csv, _columns(), PAIR),
        ("pairs.json", _list, _columns(), PAIR),
        ("pairs.parquet", _parquet, _columns(), PAIR),
        (
            "parts.csv",
            _csv,
            [{"x": a, "y": b} for a in WORDS for b in WORDS[:3]],
            PARTS,
        ),
    ],
)
def test_every_source_gives_the_same_conversations(
    opened, tmp_path, name, write, rows, settings
):
    write(tmp_path / name, rows)
    assert everything(opened(None, name, **settings)) == PLAIN


def test_bins_are_words_for_scores_and_rows_outside_are_left_out(opened):
    rows = "score\tfilm\n" + "".join(f"{i - 10}\tplot {w}\n" for i, w in
                                     enumerate(WORDS * 3))  # fmt: skip
    data = opened(
        rows,
        "scores.tsv",
        prompt="is the {film}",
        response="{label} {score}",
        label="score",
        bins={"bad": (-10, -3), "good": (3, 20)},
    )
    # Scores -10 … 13: 8 up to -3, 11 from 3 on, five between them.
    assert data.describe()["outside bins"] == 5
    learned = sorted(said for _, said in everything(data))
    assert learned == ["bad bad <end>"] * 8 + ["good good <end>"] * 11


def test_numbers_are_written_as_people_write_them_and_braces_can_be_doubled(opened):
    numbers = [3, 4.0, 2.5, True, -0.25, "007"]
    data = opened(
        [{"n": n} for n in numbers],
        prompt="is {{ film }} {n}",
        response="very {n}",
        test_size=2,
        validation_size=1,
    )
    documents = [d for part in data._documents.values() for d in part]
    assert {d.content[0]["content"] for d in documents} == {
        f"is {{ film }} {n}" for n in ("3", "4", "2.5", "True", "-0.25", "007")
    }


def test_the_system_speaks_first_unless_a_conversation_says_it_itself(opened):
    own = {"messages": [{"role": "system", "content": "cold"}, *TALKS[0]["messages"]]}
    found = [text for text, _ in everything(opened([*TALKS[1:], own], system="warm"))]
    assert (
        sum(text.startswith("<unused2> warm <end> <unused0>") for text in found) == 23
    )
    assert sum(text.startswith("<unused2> cold <end> <unused0>") for text in found) == 1


def test_what_follows_the_last_response_is_not_read(opened):
    rest = [{"role": "user", "content": "and the end"}]
    longer = [{"messages": talk["messages"] + rest} for talk in TALKS]
    assert everything(opened(longer)) == PLAIN


def test_every_response_of_a_conversation_is_learned(opened):
    twice = [{"messages": talk["messages"] * 2} for talk in TALKS]
    for text, said in everything(opened(twice)):
        assert text.count("<unused0>") == 2
        assert said.count("very") == said.count("<end>") == 2


def test_a_model_without_template_reads_plain_lines(opened):
    assert everything(opened(tokenizer="bare", template="plain")) == sorted(
        (f"is the film {a} and {b} very {a} <end>", f"very {a} <end>")
        for a in WORDS
        for b in WORDS[:3]
    )


def test_a_template_of_ones_own_goes_before_the_models(opened, tmp_path):
    (tmp_path / "own.jinja").write_text(CHAT.replace("<unused0> ", "a film "))
    data = opened(chat_template="own.jinja")
    assert all(text.startswith("a film is the film") for text, _ in everything(data))
    assert Path(data.settings.chat_template).is_absolute()
    other = opened(tokenizer="bare", chat_template="own.jinja")
    assert other.fingerprint() == data.fingerprint()
    assert data.fingerprint() != opened().fingerprint()


@pytest.mark.parametrize("long", ["drop", "cut"])
def test_conversations_that_are_too_long_are_dropped_or_cut_and_counted(opened, long):
    tall = {"messages": [TALKS[0]["messages"][0],
                         {"role": "assistant", "content": "very " * 40}]}  # fmt: skip
    data = opened([*TALKS, tall, tall], long=long, max_length=16)
    assert data.describe()[f"too long ({long})"] == 2
    [warning] = [w for w in data.findings.warnings if w.where == "data.max_length"]
    assert "2 of 26 conversations" in warning.what
    found = everything(data)
    if long == "drop":
        assert found == PLAIN
        return
    # 8 tokens of the prompt and its end, one that opens the answer, 7 of the answer.
    cut = [said for _, said in found if said.count("very") > 1]
    assert cut == ["very very very very very very very"] * 2


def test_conversations_are_packed_and_none_is_divided(opened):
    data = opened(max_length=24)
    for sample in data.samples("train"):
        assert sum(len(ids) for ids, _ in sample["documents"]) <= 24
    # 12 tokens each: two fill a row.
    assert {len(s["documents"]) for s in data.samples("train")[:-1]} <= {1, 2}
    assert len(data.samples("train")) == (24 - 2 - 1 + 1) // 2
    batch = data.collate(data.samples("train")[:1])
    learned = batch["labels"][0][batch["labels"][0] >= 0].tolist()
    assert data.tokenizer.decode(learned).split()[::3] == ["very", "very"]


def test_prompts_of_the_report_are_held_out_and_end_before_the_response(opened):
    data = opened(prompts=2, test_size=4)
    held = {s["id"]: s["documents"][0] for s in data.samples("test")}
    prompts = data.task["probe"]["prompts"]
    assert len(prompts) == 2
    starts = {
        tuple(ids[: int(np.argmax(counted))].tolist()) for ids, counted in held.values()
    }
    for probe in prompts:
        assert tuple(probe["ids"]) in starts
        assert probe["text"].startswith("is the film")
        assert probe["reference"] == f"very {probe['text'].split()[3]}"
    assert data.task["kind"] == "conversation"
    json.dumps(data.task)


def test_inputs_are_turns_of_the_user_messages_or_columns(opened):
    data = opened(system="warm")
    expected = "<unused2> warm <end> <unused0> the plot <end> <unused1>"
    turns = [{"role": "user", "content": "the plot"}]
    samples = data.from_inputs(
        ["the plot", {"messages": turns}, {"prompt": "the plot", "id": "a"}]
    )
    for sample in samples:
        [(ids, counted)] = sample["documents"]
        assert data.tokenizer.decode(ids) == expected
        assert not counted.any()
    assert [s["id"] for s in samples] == ["1", "2", "a"]
    assert [data.input_name(s) for s in samples] == ["the plot"] * 3
    assert data.show(samples[0])["prompt"].endswith("the plot <unused1>")
    assert (data.collate(samples)["labels"] == -100).all()
    pairs = opened(_columns(), "pairs.jsonl", **PAIR)
    parts = opened(
        [{"x": w, "y": v} for w in WORDS for v in WORDS], "parts.jsonl", **PARTS
    )
    for data, given in ((pairs, {"q": "is the film good and bad"}),
                        (parts, {"x": "good", "y": "bad"}),
                        (parts, "is the film good and bad")):  # fmt: skip
        [sample] = data.from_inputs([given])
        assert data.tokenizer.decode(sample["documents"][0][0]) == (
            "<unused0> is the film good and bad <end> <unused1>"
        )


def test_predictions_need_no_data_and_leave_the_task_alone(opened, tokenizers):
    settings = opened().settings
    data = Conversations(settings, 0)
    data.task = {"kind": "conversation", "probe": {"prompts": []}}
    data.prepare({"tokenizer": str(tokenizers["chat"])})
    assert data.from_inputs(["the plot"])[0]["prompt"] == "the plot"
    assert data.task == {"kind": "conversation", "probe": {"prompts": []}}


def test_bad_inputs_are_named_all_together(opened):
    data = opened(preprocessing={"max_positions": 24, "vocab_size": 64})
    given = [
        "",
        {"text": "a film"},
        {"messages": TALKS[0]["messages"]},
        {"messages": [{"role": "usr", "content": "a"}]},
        "film " * 40,
        7,
    ]
    with pytest.raises(DataError) as caught:
        data.from_inputs(given)
    found = [" | ".join(str(fault).splitlines()) for fault in caught.value.faults]
    expected = [
        ["input 1: empty prompt"],
        ["input 2: there is no 'prompt'", "it has 'text'"],
        ["input 3: the last turn is the assistant's"],
        ["input 4: unknown role 'usr' in turn 1", "did you mean 'user'?"],
        ["input 6: the prompt is not a string: 7"],
        # <unused0>, 40 words, <end>, <unused1>: 43 tokens, and one for the answer.
        ["input 5: the prompt has 43 tokens, 20 too many"],
    ]
    for parts in expected:
        assert any(all(part in fault for part in parts) for fault in found), parts
    assert len(found) == len(expected)


def turn(role, content):
    return {"role": role, "content": content}


# name of the case: the bad row, what the message must have.
ROWS = {
    "unknown role": ([turn("usr", "a"), turn("assistant", "b")],
                     ["unknown role 'usr' in turn 1", "did you mean 'user'?"]),
    "role of another format": ([turn("human", "a"), turn("assistant", "b")],
                               ["unknown role 'human'", "known: assistant, system"]),
    "no response": ([turn("user", "a")], ["no response", "its turns are user"]),
    "empty content": ([turn("user", " "), turn("assistant", "b")],
                      ["empty content of turn 1"]),
    "empty response": ([turn("user", "a"), turn("assistant", "")],
                       ["empty content of turn 2"]),
    "missing content": ([turn("user", "a"), turn("assistant", None)],
                        ["empty content of turn 2"]),
    "content of parts": ([turn("user", [{"type": "image"}]), turn("assistant", "b")],
                         ["the content of turn 1 is not a string"]),
    "assistant first": ([turn("assistant", "a"), turn("user", "b")],
                        ["the first turn is the assistant's"]),
    "no messages": ([], ["empty messages"]),
    "null": (None, ["empty messages"]),
    "no list": (5, ["the messages are no list: 5"]),
    "text": ("hello", ["the messages are not JSON: 'hello'"]),
    "no message": (["hello"], ["turn 1 is no message: 'hello'"]),
    "other keys": ([{"from": "human", "value": "a"}],
                   ["turn 1 has no role and no content", "it has 'from', 'value'"]),
    "half a character": ([turn("user", "\ud83d"), turn("assistant", "b")],
                         ["half a character", "content of turn 1"]),
    "NUL": ([turn("user", "a\0"), turn("assistant", "b")], ["NUL byte"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_conversation_is_named_with_its_line(opened, case):
    messages, parts = ROWS[case]
    [fault] = faults(opened, [*TALKS[:4], {"messages": messages}, *TALKS[4:]])
    assert fault.startswith("talks.jsonl, line 5: ")
    assert all(part in fault for part in parts), fault


def test_all_bad_conversations_are_named_together_or_left_out(opened):
    bad = [{"messages": messages} for messages, _ in ROWS.values()]
    assert len(faults(opened, [*TALKS, *bad])) == len(ROWS)
    data = opened([*TALKS, bad[0]], bad="skip")
    assert everything(data) == PLAIN
    assert [str(f).splitlines()[0] for f in data.findings.left_out] == [
        "talks.jsonl, line 25: unknown role 'usr' in turn 1"
    ]


def test_assistants_that_call_tools_may_say_nothing(opened):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "a"}]}
    talk = [TALKS[0]["messages"][0], call, turn("tool", "good"), turn("assistant", "b")]
    assert len(everything(opened([*TALKS, {"messages": talk}]))) == 25


PAIRS = _columns()
# name of the case: rows, settings, what the message must have.
CASES = {
    "misspelt column": (TALKS, {"messages": "mesages"},
                        ["no column 'mesages' (data.messages)", "'messages'"]),
    "misspelt placeholder": (PAIRS, {"prompt": "is {qq}?", "response": "a"},
                             ["no column 'qq' (data.prompt)", "data.prompt"]),
    "placeholder by case": (PAIRS, {"prompt": "is {Q}?", "response": "a"},
                            ["no column 'Q' (data.prompt)", "write {q} in"]),
    "no response": (PAIRS, {"prompt": "q"}, ["data.response is empty"]),
    "no prompt": (PAIRS, {"response": "a"}, ["data.prompt is empty"]),
    "open brace": (PAIRS, {"prompt": "is {q", "response": "a"},
                   ["data.prompt:", "a brace itself twice"]),
    "empty brace": (PAIRS, {"prompt": "is {}", "response": "a"},
                    ["data.prompt: '{}' names no column"]),
    "bins without response": (TALKS, {"bins": {"good": (0, 1)}},
                              ["data.bins: there is nothing to bin"]),
    "bins upside down": (PAIRS, {**PAIR, "bins": {"good": (1, 0)}},
                         ["the range of 'good' is upside down"]),
    "score that is none": (PAIRS, {**PAIR, "label": "q", "bins": {"good": (1, 2)}},
                           ["line 1: the label is not a number"]),
    "empty cell": ([*PAIRS, {"q": "a", "a": None}], PAIR,
                   ["line 25: empty a"]),
    "cell of a list": ([*PAIRS, {"q": ["a"], "a": "b"}], PAIR,
                       ["line 25: the q is not a string", "check data.prompt"]),
    "duplicate ids": ([{**PAIRS[0], "i": 1}, {**PAIRS[1], "i": 1}], {**PAIR, "id": "i"},
                      ["line 2: duplicate id: '1'", "line 1 has it already"]),
    "broken line": ([*PAIRS, "{"], PAIR, ["line 25: not a JSON object"]),
    "broken list": ("[{]", PAIR, ["this is one JSON list that is broken"]),
    "mixed encodings": (
        b'{"q": "a", "a": "b"}\n{"q": "caf\xe9", "a": "b"}\n', PAIR,
        ["line 2: bad utf-8: byte 0xe9", 'data.encoding="latin-1"']),
    "no such template": (TALKS, {"chat_template": "own.jinja"},
                         ["own.jinja: there is no such file", "data.chat_template"]),
    "no chat template": (TALKS, {"tokenizer": "bare"},
                         ["the model has no chat template", 'data.template="plain"',
                          "data.chat_template=FILE"]),
    "everything too long": (TALKS, {"max_length": 8},
                            ["nothing can be learned", "data.max_length"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_data_and_settings_are_named_with_a_way_out(opened, case):
    content, settings, parts = CASES[case]
    found = faults(opened, content, **settings)
    assert any(all(part in fault for part in parts) for fault in found), found


def test_a_broken_template_is_named_with_its_line(opened, tmp_path):
    (tmp_path / "own.jinja").write_text("{{ bos_token }}\n{% for m in %}")
    [fault] = faults(opened, chat_template="own.jinja")
    assert "own.jinja, line 2: this is not a Jinja template" in fault


def test_a_template_s_refusal_is_named_for_each_conversation(opened, tmp_path):
    refusal = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}"
    )
    (tmp_path / "own.jinja").write_text(refusal + "{% endif %}" + CHAT)
    own = {"messages": [turn("system", "a"), *TALKS[0]["messages"]]}
    settings = {"chat_template": "own.jinja", "test_size": 2, "validation_size": 2}
    found = faults(opened, [*TALKS, own], **settings, rows=None)
    assert len(found) == 1
    assert found[0].startswith("talks.jsonl, line 25: the chat template refuses")
    assert "no system" in found[0]
    data = opened([*TALKS, own], **settings, bad="skip")
    assert len(everything(data)) == 24
    assert [f.where for f in data.findings.left_out] == ["talks.jsonl, line 25"]
    with pytest.raises(DataError, match="input 1: the chat template refuses"):
        data.from_inputs([{"messages": [turn("system", "a"), turn("user", "b")]}])


def test_a_tokenizer_without_end_of_text_is_refused_unless_the_model_has_one(
    opened, tokenizers, tmp_path
):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast.from_pretrained(tokenizers["chat"])
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "endless")
    given = {"tokenizer": str(tmp_path / "endless")}
    [fault] = faults(opened, **given)
    assert "end-of-text token" in fault
    end = opened().tokenizer.eos_token_id
    data = opened(preprocessing={"eos_token_id": end}, **given)
    assert everything(data) == PLAIN


def test_special_tokens_in_what_people_said_are_reported(opened):
    forged = {"messages": [turn("user", "a <end> film"), turn("assistant", "b")]}
    data = opened([*TALKS, forged])
    [warning] = data.findings.warnings
    assert "1 of 25 conversations hold a special token" in warning.what


def test_of_a_long_prompt_the_end_is_shown(opened):
    [sample] = opened().from_inputs(["good " * 60 + "plot"])
    shown = opened().show(sample)["prompt"]
    assert len(shown) == 200
    assert shown.startswith("…")
    assert shown.endswith("good good plot <unused1>")


def test_the_tiny_conversations_show_what_is_asked_and_answered(tmp_path):
    data = Conversations(ConversationSettings(**tiny_conversations(tmp_path)), 0)
    data.load()
    data.prepare({})
    shown = [data.show(sample) for sample in data.samples("test")]
    assert {s["response"] for s in shown} == {"very good", "very bad"}
    assert all(s["prompt"].endswith("<unused1>") for s in shown)
    assert sum(documents(data).values()) == 60
    learned = [c for s in data.samples("test") for _, c in s["documents"]]
    assert all(c.sum() % 3 == 0 for c in learned)
