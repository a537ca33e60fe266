"""Bad annotations: each fault is told with file and annotation, all together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.errors import DataError
from headstart_vision.annotations import voc
from headstart_vision.objects import ObjectData
from headstart_vision.settings import ObjectSettings

LETTERS = "abcdefghijkl"


def opened(path=".", **settings):
    given = {"name": "vision/objects", "path": str(path), **settings}
    data = ObjectData(ObjectSettings(**given), 0)
    data.load()
    return data


def faults(path=".", **settings):
    """The faults as one line each."""
    with pytest.raises(DataError) as caught:
        opened(path, **settings)
    assert caught.value.exit_code == 3
    return [" | ".join(str(fault).splitlines()) for fault in caught.value.faults]


def save_image(file, value, size=(48, 64)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file)


@pytest.fixture
def content(tmp_path, monkeypatch):
    """Ten images, and a COCO file about them that has no fault."""
    monkeypatch.chdir(tmp_path)
    images, annotations = [], []
    for i, letter in enumerate(LETTERS[:10]):
        save_image(tmp_path / f"{letter}.png", 20 * i)
        entry = {"id": i + 1, "file_name": f"{letter}.png"}
        images.append({**entry, "width": 64, "height": 48})
        annotations.append(
            {
                "id": 100 + i,
                "image_id": i + 1,
                "category_id": 1 + i % 2,
                "bbox": [5, 6, 10, 20],
                "segmentation": [[5, 6, 15, 6, 15, 26]],
            }
        )
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": names}


def write(content, name="coco.json"):
    Path(name).write_text(json.dumps(content))


def change(at, key, value):
    def changed(content):
        content[at[0]][at[1]][key] = value

    return changed


ONE = ("annotations", 0)
BAD_RLE = {"size": [48, 64], "counts": [10, 5]}
WIDE = {"size": [64, 48], "counts": [10, 5, 3057]}

# name of the case: what is done, settings, what one of the faults must have.
CASES = {
    "zero width": (
        change(ONE, "bbox", [5, 6, 0, 20]),
        {},
        ["coco.json, annotation 100 (a.png): a box without area: 0 wide, 20 high"],
    ),
    "negative height": (
        change(ONE, "bbox", [5, 6, 10, -2]),
        {},
        ["annotation 100 (a.png): a box without area: 10 wide, -2 high",
         "left, top, width, height"],
    ),
    "outside": (
        change(ONE, "bbox", [50, 6, 20, 20]),
        {},
        ["annotation 100 (a.png): a box outside its image: 50, 6 to 70, 26",
         "the image is 64 x 48", "data.outside=1"],
    ),
    "wholly outside within the tolerance": (
        change(ONE, "bbox", [64, 6, 1, 20]),
        {},
        ["annotation 100 (a.png): a box outside its image"],
    ),
    "NaN": (
        change(ONE, "bbox", [math.nan, 6, 10, 20]),
        {},
        ["coco.json, annotation 100 (a.png): a box with NaN or infinity"],
    ),
    "infinite": (
        change(ONE, "bbox", [5, 6, math.inf, 20]),
        {},
        ["annotation 100 (a.png): a box with NaN or infinity"],
    ),
    "three numbers": (
        change(ONE, "bbox", [5, 6, 10]),
        {},
        ["annotation 100 (a.png): a box that is not 4 numbers: [5, 6, 10]"],
    ),
    "no box": (
        change(ONE, "bbox", None),
        {},
        ["annotation 100 (a.png): a box that is not 4 numbers: None"],
    ),
    "number that no float holds": (
        change(ONE, "bbox", [5, 6, 10**400, 4]),
        {},
        ["annotation 100 (a.png): a box that is not 4 numbers"],
    ),
    "unknown category": (
        change(ONE, "category_id", 7),
        {},
        ["annotation 100 (a.png): category id 7 is not in the list",
         "it has 1 'cat', 2 'dog'", "add the class"],
    ),
    "category without number": (
        change(ONE, "category_id", "cat"),
        {},
        ["annotation 100 (a.png): no category id: 'cat'"],
    ),
    "background": (
        lambda c: c["categories"].append({"id": 3, "name": "__background__"}),
        {},
        ["'__background__' is listed as a class", "data.labels"],
    ),
    "category named twice": (
        change(("categories", 1), "name", "cat"),
        {},
        ["coco.json: two classes are called 'cat'"],
    ),
    "duplicate category id": (
        change(("categories", 1), "id", 1),
        {},
        ["coco.json, categories[1]: duplicate category id: 1", "'cat' has it"],
    ),
    "duplicate image id": (
        change(("images", 1), "id", 1),
        {},
        ["coco.json, image 1: duplicate image id: 1", "'a.png'", "'b.png'"],
    ),
    "duplicate annotation id": (
        change(("annotations", 1), "id", 100),
        {},
        ["coco.json, annotation 100: duplicate annotation id: 100"],
    ),
    "duplicate file name": (
        change(("images", 1), "file_name", "a.png"),
        {},
        ["coco.json, image 2: duplicate file name: 'a.png'", "images 1 and 2"],
    ),
    "annotation of no image": (
        change(ONE, "image_id", 77),
        {},
        ["coco.json, annotation 100: an annotation of no listed image: image_id 77"],
    ),
    "image without name": (
        change(("images", 3), "file_name", None),
        {},
        ["coco.json, images[3]: an image without id or file_name"],
    ),
    "missing image": (
        change(("images", 3), "file_name", "dd.png"),
        {},
        ["coco.json, image 4: dd.png: there is no such image"],
    ),
    "another size": (
        lambda c: c["images"][0].update(width=640, height=480),
        {},
        ["coco.json, image 1: a.png: the image's size is 64 x 48, and 640 x 480"],
    ),
    "size of the image as it is stored": (
        lambda c: c["images"][0].update(width=48, height=64),
        {},
        ["the image's size is 64 x 48, and 48 x 64 is stated", "EXIF orientation"],
    ),
    "two points": (
        change(ONE, "segmentation", [[5, 6, 15, 26]]),
        {"kind": "instances"},
        ["annotation 100 (a.png): a polygon with 2 points"],
    ),
    "half a point": (
        change(ONE, "segmentation", [[5, 6, 15, 6, 15, 26, 3]]),
        {"kind": "instances"},
        ["annotation 100 (a.png): a polygon with half a point: 7 numbers"],
    ),
    "polygon with NaN": (
        change(ONE, "segmentation", [[5, 6, 15, 6, math.nan, 26]]),
        {"kind": "instances"},
        ["annotation 100 (a.png): a polygon with NaN or infinity"],
    ),
    "polygon of words": (
        change(ONE, "segmentation", [["a"]]),
        {},
        ["annotation 100 (a.png): a polygon that is not a list of numbers: ['a']"],
    ),
    "no mask": (
        change(ONE, "segmentation", []),
        {"kind": "instances"},
        ["annotation 100 (a.png): no mask", "give it an outline"],
    ),
    "run lengths that do not fit": (
        change(ONE, "segmentation", BAD_RLE),
        {"kind": "instances"},
        ["annotation 100 (a.png): an RLE that does not fit: its counts are of 15"],
    ),
    "run lengths of another size": (
        change(ONE, "segmentation", WIDE),
        {"kind": "instances"},
        ["annotation 100 (a.png): an RLE of another size than its image: 48 x 64"],
    ),
    "no objects at all": (
        lambda c: c.update(annotations=[]),
        {},
        ["coco.json: no image has an object"],
    ),
    "only one image": (
        lambda c: c.update(images=c["images"][:1], annotations=c["annotations"][:1]),
        {},
        ["only one image"],
    ),
    "label that nobody knows": (
        lambda c: None,
        {"labels": ("cat", "dogs")},
        ["data.labels: no file knows the class 'dogs'", "did you mean 'dog'?"],
    ),
    "object of a class that is not asked for": (
        lambda c: None,
        {"labels": ("cat",)},
        ["annotation 101 (b.png): unknown class: 'dog'", "data.labels does not"],
    ),
    "background asked for": (
        lambda c: None,
        {"labels": ("Background", "cat", "dog")},
        ["data.labels: 'Background' is listed as a class"],
    ),
    "no images key": (
        lambda c: c.pop("images"),
        {},
        ["coco.json: no list 'images': this is not COCO's JSON"],
    ),
    "too large": (
        lambda c: None,
        {"max_pixels": 3000},
        ["coco.json, image 1: a.png: too large: 64 x 48", "decompression bomb"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_faults_of_coco_files(content, case):
    spoil, settings, parts = CASES[case]
    spoil(content)
    write(content)
    found = faults("coco.json", **settings)
    assert any(all(part in told for part in parts) for told in found), found


def test_all_faults_at_once_and_no_others(content):
    content["annotations"][0]["bbox"] = [5, 6, 0, 20]
    content["annotations"][1]["category_id"] = 9
    content["annotations"][2]["bbox"] = [5, 6, math.nan, 4]
    Path("d.png").unlink()
    Path("e.png").write_bytes(b"")
    whole = Path("f.png").read_bytes()
    Path("f.png").write_bytes(whole[:-30])
    Path("g.png").write_text("this is a letter")
    write(content)
    found = faults("coco.json")
    expected = [
        "annotation 100 (a.png): a box without area",
        "annotation 101 (b.png): category id 9",
        "annotation 102 (c.png): a box with NaN",
        "image 4: d.png: there is no such image",
        "image 5: e.png: the file is empty",
        "image 6: f.png: the image is",
        "image 7: g.png: not an image",
    ]
    assert len(found) == len(expected)
    for part in expected:
        assert sum(part in told for told in found) == 1, part


def test_bad_images_can_be_left_out(content):
    content["annotations"][0]["bbox"] = [5, 6, 0, 20]
    # A second object in the same image goes with it.
    content["annotations"][1]["image_id"] = 1
    Path("d.png").unlink()
    write(content)
    data = opened("coco.json", bad="skip", bad_cap=0.2)
    kept = [s for n in ("train", "validation", "test") for s in data.samples(n)]
    assert sorted(Path(s["path"]).stem for s in kept) == list("bcefghij")
    told = [str(fault) for fault in data.findings.left_out]
    assert len(told) == 2
    with pytest.raises(DataError, match=r"2 of 10 samples are bad"):
        opened("coco.json", bad="skip", bad_cap=0.1)


def test_a_double_file_name_spoils_both_entries(content):
    content["images"][1]["file_name"] = "a.png"
    write(content)
    data = opened("coco.json", bad="skip", bad_cap=0.2)
    kept = [s for n in ("train", "validation", "test") for s in data.samples(n)]
    assert sorted(Path(s["path"]).stem for s in kept) == list("cdefghij")


def test_a_little_outside_is_cut(content):
    content["annotations"][0]["bbox"] = [-0.5, 6, 65, 42.9]
    write(content)
    data = opened("coco.json")
    kept = [s for n in ("train", "validation", "test") for s in data.samples(n)]
    sample = next(s for s in kept if s["path"].endswith("a.png"))
    np.testing.assert_allclose(sample["boxes"], [[0, 6, 64, 48]])
    with pytest.raises(DataError, match="outside"):
        opened("coco.json", outside=0.25)


def test_polygons_do_not_matter_for_boxes(content):
    content["annotations"][0]["segmentation"] = [[1, 2]]
    write(content)
    assert opened("coco.json").task["kind"] == "boxes"


def test_images_that_are_listed_nowhere_are_counted(content):
    write(content)
    save_image(Path("x.png"), 250)
    save_image(Path("y.JPG"), 251)
    told = [str(w) for w in opened("coco.json").findings.warnings]
    assert any("2 images are listed nowhere: x.png, y.JPG" in t for t in told)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"images": [', ["coco.json: this is not valid JSON", "cut off"]),
        ("[]", ["a list where COCO", "results"]),
        ('"images" 7', ["not valid JSON"]),
        ("7", ["this is not COCO's JSON of instances"]),
        ("[" * 100_000, ["not valid JSON"]),
        (b"\xff\xfe\x00", ["not UTF-8"]),
    ],
)
def test_files_that_are_no_coco(content, text, parts):
    raw = text if isinstance(text, bytes) else text.encode()
    Path("coco.json").write_bytes(raw)
    told = faults("coco.json")[0]
    assert all(part in told for part in parts), told


def test_a_wrong_folder_is_one_fault(content):
    Path("sub").mkdir()
    write(content, "sub/coco.json")
    for image in content["images"]:
        Path(image["file_name"]).rename(Path("sub", "x" + image["file_name"]))
    (told,) = faults("sub/coco.json")
    assert "sub/coco.json: none of its images is found" in told
    assert "'a.png'" in told
    assert "data.images" in told


def test_odd_entries_are_told_and_nothing_breaks(content):
    content["images"] += [None, 3, {"id": [1], "file_name": "x"}]
    content["annotations"] += [None, "x", {"id": {}, "image_id": []}]
    write(content)
    found = faults("coco.json")
    assert sum("an image without id" in told for told in found) == 3
    assert sum("annotation of no listed image" in told for told in found) == 3
    assert len(found) == 6


def test_which_file_is_meant_must_be_told(content):
    write(content, "one.json")
    write(content, "two.json")
    (told,) = faults()
    assert "it cannot be told which file is meant: one.json, two.json" in told
    assert "data.path" in told


def test_a_folder_without_annotations(content):
    found = faults()
    assert "no annotations are found" in found[0]
    assert "'a.png'" in found[0]
    assert "there is no such file" in faults("nowhere")[0]
    assert "format 'voc'" in faults(format="voc")[0]


def test_the_same_image_in_two_splits(content):
    write(content)
    other = dict(content, images=content["images"][:1])
    other["annotations"] = content["annotations"][:1]
    Path("more").mkdir()
    Path("more/z.png").write_bytes(Path("a.png").read_bytes())
    other["images"] = [{**content["images"][0], "file_name": "z.png"}]
    write(other, "more/test.json")
    (told,) = faults("coco.json", test_path="more/test.json")
    assert "the same image in train and test" in told
    assert "a.png" in told and "z.png" in told


# Which number is which class


def renumber(content, numbers, names):
    content["categories"] = [{"id": n, "name": name} for n, name in names]
    for i, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = numbers[i % len(numbers)]


@pytest.mark.parametrize(
    ("numbers", "names", "settings", "parts"),
    [
        ([0, 1], [(1, "cat"), (2, "dog")], {},
         ["annotation 100 (a.png): category id 0 is not in the list",
          'data.label_base="0"']),
        ([1, 2], [(0, "cat"), (1, "dog")], {},
         ["annotation 101 (b.png): category id 2 is not in the list",
          'data.label_base="1"']),
        ([0, 5], [(1, "cat"), (2, "dog")], {},
         ["category id 0 is not in the list", "add the class"]),
        ([1, 2], [], {}, ["coco.json: its classes have no names", "1 to 2"]),
        ([1, 2], [], {"labels": ("cat", "dog")},
         ["coco.json: it has no categories", "1 to 2", "data.label_base"]),
        ([1, 2], [], {"labels": ("cat", "dog"), "label_base": "0"},
         ["category id 2 is not in the list", 'data.label_base="1"']),
        ([1, 9], [(1, "cat"), (9, "dog")], {"label_base": "0"},
         ["data.label_base is 0, and the file's numbers have gaps"]),
    ],
)  # fmt: skip
def test_an_off_by_one_is_told(content, numbers, names, settings, parts):
    renumber(content, numbers, names)
    write(content)
    found = faults("coco.json", **settings)
    assert any(all(part in told for part in parts) for told in found), found


@pytest.fixture
def yolo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, letter in enumerate(LETTERS[:10]):
        save_image(tmp_path / "images" / f"{letter}.png", 20 * i)
        labels = tmp_path / "labels"
        labels.mkdir(exist_ok=True)
        (labels / f"{letter}.txt").write_text(f"{i % 2} 0.5 0.5 0.25 0.25\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    return tmp_path


YOLO = {
    "1-based": (
        "1 .5 .5 .2 .2\n2 .5 .5 .2 .2",
        ["labels/a.txt, line 2 (a.png): class number 2 is not in the list",
         "0 'cat', 1 'dog'"],
    ),
    "negative": ("-1 .5 .5 .2 .2", ["line 1 (a.png): class number -1"]),
    "fraction": ("0.5 .5 .5 .2 .2", ["line 1: the class is no whole number: '0.5'"]),
    "words": ("cat .5 .5 .2 .2", ["labels/a.txt, line 1: not numbers: 'cat"]),
    "too few": ("\n0 .5 .5 .2", ["labels/a.txt, line 2: too few numbers: 4"]),
    "a score": ("0 .5 .5 .2 .2 .9", ["line 1: 6 numbers, a box has 5", "score"]),
    "half a point": ("0 .1 .1 .2 .2 .3 .3 .4", ["line 1: an outline with half"]),
    "pixels": ("0 32 24 10 10", ["line 1 (a.png): a box outside", "from 0 to 1"]),
    "zero": ("0 .5 .5 0 .2", ["line 1 (a.png): a box without area: 0 wide"]),
    "NaN": ("0 nan .5 .2 .2", ["line 1 (a.png): a box with NaN"]),
    "infinite class": ("inf .5 .5 .2 .2", ["the class is no whole number"]),
    "outside": ("0 .95 .5 .2 .2", ["a box outside its image", "64 x 48"]),
}  # fmt: skip


@pytest.mark.parametrize("case", YOLO)
def test_faults_of_yolo_files(yolo, case):
    text, parts = YOLO[case]
    (yolo / "labels" / "a.txt").write_text(text)
    (told,) = faults()
    assert all(part in told for part in parts), told


def test_all_yolo_numbers_from_one_name_the_setting(yolo):
    for i, letter in enumerate(LETTERS[:10]):
        (yolo / "labels" / f"{letter}.txt").write_text(f"{1 + i % 2} .5 .5 .2 .2")
    found = faults()
    assert len(found) == 5
    assert all('start at 1: data.label_base="1"' in told for told in found)


def test_yolo_files_without_images_names_or_labels(yolo):
    (yolo / "labels" / "stray.txt").write_text("0 .5 .5 .2 .2")
    (told,) = faults()
    assert told.startswith("labels/stray.txt: a label file without an image")
    (yolo / "labels" / "stray.txt").unlink()
    (yolo / "data.yaml").unlink()
    (told,) = faults()
    assert "its classes have no names" in told
    assert "data.yaml" in told
    assert opened(labels=("cat", "dog")).task["labels"] == ["cat", "dog"]
    for file in (yolo / "labels").iterdir():
        file.unlink()
    assert any("no image has a label file" in told for told in faults())


def test_a_yolo_image_without_label_file_has_no_objects(yolo):
    (yolo / "labels" / "a.txt").unlink()
    data = opened()
    assert sum(data.describe()["images without objects"].values()) == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("names: [cat, dog]\nnc: 3", "nc is 3, and there are 2 names"),
        ("names: cat", "'names' is no list"),
        ("names: [cat, [dog]]", "'names' is no list"),
        ("names: {cat: 0}", "'names' is no list"),
        ("names: [cat, dog", "not valid YAML"),
        ("names: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("names: [cat, dog]\nkpt_shape: [17, 3]", "key points"),
        ("names: [cat, dog]\ntrain: nowhere", "no images of train: nowhere"),
        ("names: [background, dog]", "'background' is listed as a class"),
        ("names: [cat, cat]", "two classes are called 'cat'"),
    ],
)
def test_faults_of_data_yaml(yolo, text, part):
    (yolo / "data.yaml").write_text(text)
    assert any(part in told for told in faults())


@pytest.fixture
def pascal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, letter in enumerate(LETTERS[:10]):
        save_image(tmp_path / "JPEGImages" / f"{letter}.png", 20 * i)
        write_xml(letter)
    return tmp_path


def write_xml(letter, name="cat", box=(6, 7, 15, 26), size=(64, 48), filename=None):
    edges = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    Path("Annotations").mkdir(exist_ok=True)
    Path("Annotations", f"{letter}.xml").write_text(
        f"<annotation>\n<filename>{filename or f'{letter}.png'}</filename>\n"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
        f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>\n</annotation>"
    )


VOC = {
    "other file name": (
        {"filename": "b.png"},
        ["Annotations/a.xml: its <filename> is 'b.png'", "'a.png'"],
    ),
    "other size": (
        {"size": (640, 480)},
        ["Annotations/a.xml, image a: a.png: the image's size is 64 x 48"],
    ),
    "not a number": (
        {"box": ("x", 7, 15, 26)},
        ["Annotations/a.xml, line 4: <xmin> is not a number: 'x'"],
    ),
    "upside down": (
        {"box": (6, 30, 15, 26)},
        ["Annotations/a.xml, line 4 (a.png): a box without area: 10 wide, -3 high"],
    ),
    "outside": (
        {"box": (6, 7, 15, 260)},
        ["Annotations/a.xml, line 4 (a.png): a box outside its image"],
    ),
    "NaN": ({"box": ("nan", 7, 15, 26)}, ["line 4 (a.png): a box with NaN"]),
    "no name": (
        {"name": " "},
        ["Annotations/a.xml, line 4: an object without a <name"],
    ),
    "background": ({"name": "background"}, ["'background' is listed as a class"]),
}


@pytest.mark.parametrize("case", VOC)
def test_faults_of_voc_files(pascal, case):
    given, parts = VOC[case]
    write_xml("a", **given)
    (told,) = faults()
    assert all(part in told for part in parts), told


def test_a_box_of_one_pixel_has_area(pascal):
    write_xml("a", box=(6, 7, 6, 7))
    data = opened()
    kept = [s for n in ("train", "validation", "test") for s in data.samples(n)]
    sample = next(s for s in kept if s["path"].endswith("a.png"))
    assert sample["boxes"].tolist() == [[5, 6, 6, 7]]


def test_voc_without_image_and_image_without_voc(pascal):
    (pascal / "JPEGImages" / "a.png").unlink()
    (told,) = faults()
    assert told.startswith("Annotations/a.xml: ")
    assert "there is no such image" in told
    (pascal / "Annotations" / "a.xml").unlink()
    save_image(pascal / "JPEGImages" / "z.png", 255)
    told = [str(w) for w in opened().findings.warnings]
    assert any("1 images are listed nowhere: z.png" in t for t in told)


def test_an_image_with_the_id_0_is_named(content):
    content["images"][0].update(id=0, file_name="gone.png")
    content["annotations"][0]["image_id"] = 0
    write(content)
    (told,) = faults()
    assert told.startswith("coco.json, image 0: gone.png: there is no such image")


def test_boxes_alone_are_told_once_where_masks_are_learned(pascal):
    write_xml("a", box=(9, 9, 8, 8))
    told = faults(kind="instances")
    assert len(told) == 2
    assert any("objects has a mask" in t and "vision/detect" in t for t in told)
    assert any("a box without area" in t for t in told)


def test_list_of_a_split_names_a_missing_file(pascal):
    lists = pascal / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\nghost\n")
    (lists / "val.txt").write_text("d\n")
    (lists / "test.txt").write_text("e\n")
    (told,) = faults()
    assert told.startswith("ImageSets/Main/train.txt: no annotations for 'ghost'")


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>
<annotation><filename>&a;</filename></annotation>"""
FAR = '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/x.dtd"><annotation/>'


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, FAR, BOMB.encode("utf-16")])
def test_entities_in_xml_are_refused(pascal, text):
    raw = text if isinstance(text, bytes) else text.encode()
    if raw[:2] == b"\xff\xfe":
        raw = raw.decode("utf-16").replace('"1.0"', '"1.0" encoding="utf-16"')
        raw = raw.encode("utf-16")
    (pascal / "Annotations" / "a.xml").write_bytes(raw)
    with pytest.raises(ValueError, match="DOCTYPE"):
        voc.parse(raw)
    (told,) = faults()
    assert "Annotations/a.xml: this is not valid XML" in told
    assert "DOCTYPE" in told


@pytest.mark.parametrize("raw", [b"", b"<annotation>", b"\x00\x01", b"<a/>"])
def test_broken_xml_is_told(pascal, raw):
    (pascal / "Annotations" / "a.xml").write_bytes(raw)
    (told,) = faults()
    assert told.startswith("Annotations/a.xml: ")


def test_settings_that_cannot_work(content):
    write(content)
    assert "no pattern" in faults("coco.json", group="video")[0]
    told = faults("coco.json", augmentation="trivial-augment")[0]
    assert "does not move boxes" in told
