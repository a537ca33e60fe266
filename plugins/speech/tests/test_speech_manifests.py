"""Clips from manifests, LibriSpeech, Common Voice, folders and Asterisk's prompts."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from headstart.data import Findings
from headstart.errors import DataError
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe, parse_overrides
from headstart_speech import folders, sources
from headstart_speech.settings import UnlabelledSettings, UtteranceSettings
from headstart_speech.utterances import Utterances


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(path=".", kind=UtteranceSettings, **given):
    settings = kind(name="x", path=str(path), **given)
    findings = Findings()
    return sources.read_all(settings, findings), findings


def good(*args, **given):
    clips, findings = read(*args, **given)
    assert not findings.fatal
    assert not findings.samples
    return clips


def fatal(*args, **given):
    clips, findings = read(*args, **given)
    assert clips == []
    (fault,) = findings.fatal
    return fault


def put(tmp_path, name, content=""):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


CSV = """path,text,speaker,start,end,rate
a.wav,"Yes, sir",ann,0.5,1.25,8000
b.wav,No,,,,
"""


def test_csv(tmp_path):
    put(tmp_path, "data/clips.csv", CSV)
    one, two = good("data/clips.csv")
    assert (one.id, one.text, one.speaker) == ("a", "Yes, sir", "ann")
    assert (one.start, one.stop, one.rate) == (0.5, 1.25, 8000)
    assert one.path == sources.Path("data/a.wav")
    assert one.where == ("data/clips.csv", 2)
    assert (two.speaker, two.start, two.stop, two.rate) == (None, None, None, None)


def test_tsv_has_no_quotes(tmp_path):
    put(tmp_path, "clips.tsv", 'path\ttext\na.wav\t"Who" is it\n')
    assert good("clips.tsv")[0].text == '"Who" is it'


def test_json_lines_and_columns_of_other_names(tmp_path):
    rows = [{"file": "a.wav", "said": "one", "key": 7}, {"file": "b.wav", "key": 8}]
    put(tmp_path, "clips.jsonl", "\n".join(map(json.dumps, rows)))
    one, two = good("clips.jsonl", audio="file", text="said", id="key")
    assert (one.id, one.text, one.where) == ("7", "one", ("clips.jsonl", 1))
    assert two.text == ""


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    put(tmp_path, "clips.csv", "\ufeffpath,text\n\na.wav,yes\n")
    assert good("clips.csv")[0].where == ("clips.csv", 3)


def test_pieces_of_one_file_are_called_after_their_line(tmp_path):
    put(tmp_path, "c.csv", "path,text,start,end\na.wav,x,0,1\na.wav,y,1,2\nb.wav,z,,\n")
    assert [clip.id for clip in good("c.csv")] == ["c.csv:2", "c.csv:3", "b"]


def test_a_wrong_column_names_the_nearest(tmp_path):
    put(tmp_path, "clips.csv", "path,transcript,speaker\na.wav,x,y\n")
    fault = fatal("clips.csv", text="transcripts")
    assert fault.what == "there is no column 'transcripts' (data.text)"
    assert "'transcript'" in fault.fix
    # A column that is not named is used where it is there; a named one must be.
    fault = fatal("clips.csv", text="transcript", rate="hertz")
    assert "data.rate" in fault.what


def test_unlabelled_clips_need_no_text(tmp_path):
    put(tmp_path, "clips.csv", "path\na.wav\n")
    (clip,) = good("clips.csv", kind=UnlabelledSettings)
    assert clip.text is None


def test_wrong_separator_encoding_and_ending(tmp_path):
    put(tmp_path, "semi.csv", "path;text\na.wav;x\n")
    fault = fatal("semi.csv")
    assert fault.what == "',' does not separate its columns"
    assert fault.fix == 'name what does: data.delimiter=";"'
    assert good("semi.csv", delimiter=";")[0].text == "x"
    put(tmp_path, "tabs.csv", "path\ttext\na.wav\tx, y, z\n")
    assert fatal("tabs.csv").fix == r'name what does: data.delimiter="\t"'
    # As a shell gives it.
    assert good("tabs.csv", delimiter=r"\t")[0].text == "x, y, z"
    assert "embedded null" in fatal("semi.csv", encoding="utf\0").why
    (tmp_path / "latin.csv").write_bytes("path,text\na.wav,été\n".encode("latin-1"))
    fault = fatal("latin.csv")
    assert "line 2 has the byte 0xe9" in fault.why
    assert good("latin.csv", encoding="latin-1")[0].text == "été"
    put(tmp_path, "a.wav", "x")
    assert fatal("a.wav").what == "this is one audio file"
    put(tmp_path, "empty.csv", "\n")
    assert fatal("empty.csv").what == "the file is empty"
    put(tmp_path, "none.csv", "path,text\n")
    assert fatal("none.csv").what == "no clips"
    assert "clipz.csv" in fatal("clipz.csv").where


def test_bad_rows_are_told_together(tmp_path):
    rows = (
        "a.wav,x,1,0,1\na.wav,x,1,1,2\n,x,2,0,1\nb.wav,x,3,2,1\nc.wav,x,4,no,1\nd.wav"
    )
    put(tmp_path, "c.csv", f"path,text,id,start,end\n{rows}\n")
    clips, findings = read("c.csv")
    assert [clip.id for clip in clips] == ["1"]
    told = {row: faults[0].what for (_, row), faults in findings.samples.items()}
    assert told == {
        7: "too few fields: 1 of 5",
        3: "duplicate id: '1'",
        4: "no audio file: 'path' is empty",
        5: "it ends before it begins: from 2 s to 1 s",
        6: "'start' is no number from 0 on: 'no'",
    }


def test_texts_and_numbers_of_json_are_such(tmp_path):
    rows = [
        {"path": "a.wav", "text": ["a"]},
        {"path": "b.wav", "text": True},
        {"path": "c.wav", "text": "a", "start": True},
        {"path": "d.wav", "text": 12, "start": 1},
        {"path": "e.wav", "text": None, "speaker": 7},
    ]
    put(tmp_path, "c.jsonl", "\n".join(map(json.dumps, rows)))
    clips, findings = read("c.jsonl")
    assert [(c.text, c.start, c.speaker) for c in clips] == [
        ("12", 1.0, None),
        ("", None, "7"),
    ]
    assert [faults[0].what for faults in findings.samples.values()] == [
        "'text' is no text: [\"a\"]",
        "'text' is no text: true",
        "'start' is no number from 0 on: 'True'",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # NeMo, Hugging Face's audio folder, SpeechBrain.
        (
            "train.json",
            '{"audio_filepath": "a.wav", "duration": 1.5, "text": "yes", '
            '"speaker": "ann"}',
        ),
        ("metadata.csv", "file_name,transcription,speaker\na.wav,yes,ann\n"),
        ("train.csv", "ID,duration,wav,spk_id,wrd\nx1,1.5,a.wav,ann,yes\n"),
    ],
)
def test_well_known_columns_are_taken(tmp_path, name, content):
    put(tmp_path, name, content)
    (clip,) = good(name)
    assert (clip.path.name, clip.text, clip.speaker) == ("a.wav", "yes", "ann")
    assert (clip.start, clip.stop) == (None, None)


def test_nemo_tells_a_clip_by_its_offset_and_duration(tmp_path):
    row = {"audio_filepath": "a.wav", "offset": 2.5, "duration": 1.5, "text": "yes"}
    put(tmp_path, "train.jsonl", json.dumps(row))
    (clip,) = good("train.jsonl")
    assert (clip.start, clip.stop) == (2.5, 4.0)


def test_columns_that_are_not_clear_are_asked_for(tmp_path):
    put(tmp_path, "c.csv", "wav,file_name,text\na.wav,b.wav,yes\n")
    assert fatal("c.csv").fix == "say which column it is, e.g. data.audio=file_name"
    assert good("c.csv", audio="wav")[0].path.name == "a.wav"
    # The usual name is taken before a well-known one, a named one before both.
    put(tmp_path, "c.csv", "path,wav,text\na.wav,b.wav,yes\n")
    assert good("c.csv")[0].path.name == "a.wav"
    assert good("c.csv", audio="wav")[0].path.name == "b.wav"
    put(tmp_path, "c.csv", "n,clip,said\n7,a.wav,yes sir\n")
    _, findings = read("c.csv")
    assert [fault.fix for fault in findings.fatal] == [
        "say which column it is, e.g. data.audio=clip",
        "say which column it is, e.g. data.text=said",
    ]


@pytest.mark.parametrize(
    "content",
    ["a.wav,yes\nb.wav,no\n", "x1,it is all the same to me,it is\nx2,so,so\n"],
)
def test_a_missing_header_is_told(tmp_path, content):
    put(tmp_path, "c.csv", content)
    fault = fatal("c.csv")
    assert fault.what == "the header is missing: its first line has no names of columns"
    assert content.split(",")[0] in fault.why


def test_a_folder_names_the_manifest_in_it(tmp_path):
    put(tmp_path, "csv/a.wav")
    put(tmp_path, "csv/clips.csv", "path,text\na.wav,yes\n")
    fault = fatal("csv")
    assert fault.what == "no transcripts"
    assert fault.fix == "name the manifest in it: data.path=csv/clips.csv"
    assert "data.path=csv/clips.csv" in fatal("csv", format="manifest").fix
    # Its audio may be elsewhere.
    (tmp_path / "csv/a.wav").unlink()
    put(tmp_path, "csv/more.tsv", "path\ttext\na.wav\tyes\n")
    fault = fatal("csv")
    assert fault.what == "no audio files"
    assert fault.fix.endswith("data.path=csv/clips.csv (also csv/more.tsv)")


def test_wildcards_are_not_read(tmp_path):
    for name in ("a.csv", "b.csv"):
        put(tmp_path, f"csv/{name}", "path,text\na.wav,yes\n")
    fault = fatal("csv/*.csv")
    assert fault.what == "wildcards are not read here"
    given = '\'data.path=["csv/a.csv", "csv/b.csv"]\''
    assert fault.fix == f"give a list: {given}"
    # And that is what the command line takes.
    overrides = parse_overrides([given.strip("'")])
    recipe = load_recipe("speech/transcribe", overrides, registry=load_plugins())
    assert recipe.data.path == ("csv/a.csv", "csv/b.csv")


def test_a_missing_path_is_told_alone(tmp_path):
    put(tmp_path, "c.csv", "path,text\na.wav,yes\n")
    for given in ({"path": "no.csv"}, {"path": "c.csv", "test_path": "no.csv"}):
        module = Utterances(UtteranceSettings(name="x", **given), seed=0)
        with pytest.raises(DataError) as caught:
            module.load()
        faults = [str(fault) for fault in caught.value.faults]
        assert sum("no.csv" in fault for fault in faults) == 1
        assert len(faults) == len(given)


def test_what_is_left_of_a_mixed_folder_is_told(tmp_path):
    put(tmp_path, "mix/ls/19/8/19-8.trans.txt", "19-8-0 NORTHANGER ABBEY\n")
    put(tmp_path, "mix/ls/19/8/19-8-0.flac")
    put(tmp_path, "mix/csv/clips.csv", "path,text\na.wav,yes\n")
    put(tmp_path, "mix/csv/a.wav")
    head = "client_id\tpath\tsentence\n"
    put(tmp_path, "mix/cv/train.tsv", f"{head}me\tb.mp3\tHello.\n")
    put(tmp_path, "mix/cv/clips/b.mp3")
    put(tmp_path, "mix/plain/c.wav")
    put(tmp_path, "mix/plain/c.txt", "yes")
    clips, findings = read("mix")
    assert [clip.id for clip in clips] == ["19-8-0"]
    (warning,) = findings.warnings
    assert warning.what == "of this folder its LibriSpeech part alone is read"
    assert warning.why == (
        "left: mix/csv/clips.csv, mix/cv, 3 audio files (mix/csv/a.wav …)"
    )
    paths = ("mix", "mix/csv/clips.csv", "mix/cv", "mix/plain")
    assert warning.fix == f"to read them too: 'data.path={json.dumps(paths)}'"
    # Who does so is told of nothing.
    findings = Findings()
    settings = UtteranceSettings(name="x", path=paths)
    assert len(sources.read_all(settings, findings)) == 4
    assert not findings.warnings and not findings.fatal


def test_the_usual_folders_leave_nothing(tmp_path):
    head = "client_id\tpath\tsentence\n"
    for name in ("train", "invalidated"):
        put(tmp_path, f"cv/{name}.tsv", f"{head}me\t{name}.mp3\tHello.\n")
        put(tmp_path, f"cv/clips/{name}.mp3")
    put(tmp_path, "d/a.wav")
    put(tmp_path, "d/a.txt", "yes")
    for path in ("cv", "d"):
        _, findings = read(path)
        assert not findings.warnings
    put(tmp_path, "d/list.csv", "path,text\na.wav,yes\n")
    _, findings = read("d")
    assert "d/list.csv" in findings.warnings[0].why
    _, findings = read("d", kind=UnlabelledSettings)
    assert not findings.warnings


@pytest.mark.parametrize("name", ["a\0.wav", "~nobody-1/a.wav", "~a", ".", "x" * 300])
def test_a_name_that_no_file_can_have_is_left_to_the_check_of_files(tmp_path, name):
    put(tmp_path, "c.csv", f"path,text\n{name},x\n")
    (clip,) = good("c.csv")
    assert clip.text == "x"


def test_a_path_of_a_home_that_does_not_exist(tmp_path):
    assert fatal("~nobody-1/c.csv").what == "there is no such file or folder"
    settings = UtteranceSettings(name="x", path="~nobody-1/c.csv")
    assert sources.completed(settings).path == str(tmp_path / "~nobody-1/c.csv")


def test_a_bad_number_names_the_setting_of_its_column(tmp_path):
    put(tmp_path, "c.csv", "path,text,from\na.wav,x,soon\n")
    _, findings = read("c.csv", start="from")
    ((fault,),) = findings.samples.values()
    assert fault.what == "'from' is no number from 0 on: 'soon'"
    assert fault.fix.endswith("data.start")


def test_common_voice(tmp_path):
    head = "client_id\tpath\tsentence\tup_votes\n"
    for name, row in {"train": "a", "dev": "b", "test": "c"}.items():
        put(tmp_path, f"cv/{name}.tsv", f"{head}me\t{row}.mp3\tHello {row}.\t2\n")
    put(tmp_path, "cv/clips/a.mp3")
    one, two, three = good("cv")
    assert one.path == sources.Path("cv/clips/a.mp3")
    assert (one.id, one.text, one.speaker) == ("clips/a", "Hello a.", "me")
    assert [c.split for c in (one, two, three)] == ["train", "validation", "test"]
    # Beside the clips of another folder, as a part of it was made.
    put(tmp_path, "part/some.tsv", f"{head}me\tb.mp3\tHello b.\t2\n")
    assert good("part/some.tsv")[0].path == sources.Path("part/b.mp3")
    # One of its files, given as such.
    (alone,) = good("cv/dev.tsv")
    assert (alone.path.name, alone.split, alone.text) == ("b.mp3", None, "Hello b.")


def test_common_voice_without_a_train_file_trains_on_what_is_validated(tmp_path):
    head = "client_id\tpath\tsentence\n"
    rows = [f"me\t{name}.mp3\tHello {name}.\n" for name in "abc"]
    put(tmp_path, "cv/validated.tsv", head + "".join(rows))
    put(tmp_path, "cv/test.tsv", head + rows[1])
    put(tmp_path, "cv/clips/a.mp3")
    found = [(clip.path.stem, clip.split) for clip in good("cv")]
    assert found == [("b", "test"), ("a", None), ("c", None)]


def test_an_ending_that_was_left_out_is_mp3(tmp_path):
    put(tmp_path, "a.mp3")
    put(tmp_path, "c.csv", "path,text\na,x\nb,y\n")
    assert [clip.path.name for clip in good("c.csv")] == ["a.mp3", "b"]


def test_quotes_that_do_not_pair_are_told_with_their_line(tmp_path):
    put(tmp_path, "c.csv", 'path,text\na.wav,x\nb.wav,"yes" he said\n')
    fault = fatal("c.csv")
    assert fault.what.startswith("quotes that do not pair")
    assert fault.where == "c.csv, line 3"
    put(tmp_path, "c.csv", 'path,text\na.wav,"x\nb.wav,y\n')
    assert fatal("c.csv").where == "c.csv, line 2"


def test_librispeech(tmp_path):
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        put(
            tmp_path,
            f"ls/{part}/19/198/19-198.trans.txt",
            f"19-198-{part[:2]}0 NORTHANGER ABBEY\n19-198-{part[:2]}1 THIS\n",
        )
        put(tmp_path, f"ls/{part}/19/198/19-198-{part[:2]}0.flac")
    clips = good("ls")
    assert len(clips) == 6
    first = next(clip for clip in clips if clip.id == "19-198-tr0")
    assert first.text == "NORTHANGER ABBEY"
    assert first.speaker == "19"
    assert first.path.name == "19-198-tr0.flac"
    assert {clip.split for clip in clips} == {"train", "validation", "test"}


def test_a_folder_with_a_text_beside_each_file(tmp_path):
    put(tmp_path, "d/x/a.wav")
    put(tmp_path, "d/x/a.txt", "\ufeffHello\n")
    put(tmp_path, "d/b.flac")
    one, two = sorted(good("d"), key=lambda clip: clip.id, reverse=True)
    assert (one.id, one.text) == ("x/a", "Hello\n")
    assert (two.id, two.text) == ("b", None)
    assert [c.text for c in good("d", kind=UnlabelledSettings)] == [None, None]
    (tmp_path / "d/x/a.txt").unlink()
    assert fatal("d").what == "no transcripts"
    (tmp_path / "e").mkdir()
    assert fatal("e").what == "no audio files"


def test_a_link_to_a_folder_that_was_read_adds_nothing(tmp_path):
    put(tmp_path, "d/b/a.wav")
    (tmp_path / "d/b/round").symlink_to(tmp_path / "d")
    (tmp_path / "d/c").symlink_to(tmp_path / "d/b")
    put(tmp_path, "other/e.wav")
    (tmp_path / "d/o").symlink_to(tmp_path / "other")
    assert [c.id for c in good("d", kind=UnlabelledSettings)] == ["b/a", "o/e"]


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    put(tmp_path, "d/a.wav")
    put(tmp_path, "d/closed/b.wav")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="d/closed: the folder cannot be read"):
        read("d", kind=UnlabelledSettings)


def test_paths_of_one_name_are_told_apart(tmp_path):
    for language in ("en", "fr"):
        put(tmp_path, f"{language}/clips.csv", "path,text\na.wav,x\n")
    put(tmp_path, "en/clips.tsv", "path\ttext\na.wav\tx\n")

    def ids(*paths, **given):
        settings = UtteranceSettings(name="x", path=paths, **given)
        return [clip.id for clip in sources.read_all(settings, Findings())]

    assert ids("en/clips.csv", "fr/clips.csv") == ["en/clips/a", "fr/clips/a"]
    assert ids("en/clips.csv", test_path="fr/clips.csv") == ["en/clips/a", "fr/clips/a"]
    assert ids("en/clips.csv", "en/clips.tsv") == ["clips.csv/a", "clips.tsv/a"]
    assert ids("en/clips.csv") == ["a"]


def test_several_paths_and_given_splits(tmp_path):
    for folder in ("one", "two", "held"):
        put(tmp_path, f"{folder}/a.wav")
    settings = UnlabelledSettings(
        name="x", path=("one", "two"), test_path="held", validation_path=""
    )
    findings = Findings()
    clips = sources.read_all(settings, findings)
    assert [(c.id, c.split) for c in clips] == [
        ("one/a", None),
        ("two/a", None),
        ("held/a", "test"),
    ]
    assert sources.completed(settings).path == (
        str(tmp_path / "one"),
        str(tmp_path / "two"),
    )


def test_the_same_data_read_twice_has_duplicate_ids(tmp_path):
    put(tmp_path, "c.csv", "path,text,id\na.wav,x,1\n")
    _, findings = read("c.csv", test_path="c.csv")
    ((fault,),) = findings.samples.values()
    assert fault.what == "duplicate id: '1'"


PROMPTS = """; Core sounds

activated: Activated.
beep: a beep
digits/2:  two
dir-welcome:
letters/at: at [@]
silence/1: (1 second of silence)
vm-intro: Leave your message. (tone)
nobody: has no sound
"""


@pytest.mark.parametrize("inner", ["", "en_US/"])
def test_asterisk(tmp_path, inner):
    for name in (
        "activated beep digits/2 dir-welcome letters/at silence/1 vm-intro new".split()
    ):
        put(tmp_path, f"s/{inner}{name}.wav")
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress(PROMPTS.encode("utf-8-sig")))
    read = {"name": "prompts-en", "speaker": "Ann"}
    settings, findings = UtteranceSettings(name="x"), Findings()
    given = (tmp_path / "s", path, read)
    clips = folders.read_asterisk(*given, settings, findings)
    assert {clip.id: clip.text for clip in clips} == {
        "prompts-en/activated": "Activated.",
        "prompts-en/digits/2": "two",
        "prompts-en/letters/at": "at",
    }
    assert {clip.speaker for clip in clips} == {"Ann"}
    assert clips[0].where == ("t.txt.gz", 3)
    (warning,) = findings.warnings
    assert warning.what == "5 of 8 prompts are left out"
    read["speaker"] = "one"
    (speaker,) = {c.speaker for c in folders.read_asterisk(*given, settings, findings)}
    assert speaker == "prompts-en"
    unlabelled = UnlabelledSettings(name="x")
    found = folders.read_asterisk(*given, unlabelled, Findings())
    assert {clip.id.rsplit("/")[-1] for clip in found} == {
        *("activated", "2", "at", "vm-intro", "new"),
    }
    assert all(clip.text is None for clip in found)
