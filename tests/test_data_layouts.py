"""Every layout in docs/data.md is read with the right labels, splits and counts, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fer2013_files import (
    archived,
    folder_images,
    image_bytes,
    logged,
    refused,
    small_set,
    write_folder,
)
from PIL import Image
from runs import ROOT

from data.reading.layouts import CLASSES_8, class_of, split_of
from data.sets import load_set
from data.types import CLASSES, SPLITS

RAF = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
FER_PLUS = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")
SYNONYMS = ("Anger", "disgusted", "FEARFUL", "Happiness", "sadness", "surprised", "Neutral")
EACH = 3
THREE = {"train": 0, "val": 1, "test": 2}


def gray(name, split, number):
    """The gray of an image, which says its class and split; the classes of a set sort by it."""
    return 25 * number + 5 * split + 2


def picture(value, side=48, form="PNG", mode="L"):
    return image_bytes(Image.new("L", (side, side), value).convert(mode), form)


def zipped(files):
    return archived(".zip", files)


def tree(parts, folders, meant, file="{0}.png", each=EACH, **how):
    """Images `part/folder/file`; `meant` are the classes that the folders mean, in their order."""
    order = list(CLASSES_8) if set(meant) <= set(CLASSES_8) else sorted(meant)
    files = {}
    for part, split in parts.items():
        for folder, name in zip(folders, meant, strict=True):
            for k in range(each):
                path = f"{part}/{folder}/{file.format(k, part=part, split=SPLITS[split])}"
                value = gray(name, split, order.index(name))
                files[path.strip("/")] = picture(value, **how)
    return files


def table(labels=range(7), splits=SPLITS, usage=True, header="emotion,pixels,Usage", sep=","):
    """A table of rows whose grays say label and split."""
    lines = [header]
    for split, usage_name in enumerate(splits):
        if usage_name == "":
            continue
        for number, label in enumerate(labels):
            pixels = " ".join(48 * 48 * [str(gray(label, split, number))])
            fields = [str(label), pixels, usage_name]
            lines += EACH * [sep.join(fields if usage else fields[:2])]
    return ("\n".join(lines) + "\n").encode()


def raf_list(suffix=""):
    files, lines = {}, []
    for split, part in ((0, "train"), (2, "test")):
        for number, name in enumerate(RAF, 1):
            value = gray(name, split, CLASSES.index(name))
            for k in range(EACH):
                file = f"{part}_{number}{k}"
                path = f"basic/Image/{suffix or 'original'}/{file}{suffix and '_aligned'}.jpg"
                files[path] = picture(value, 100, "JPEG", "RGB")
                lines.append(f"{file}.jpg {number}")
    return files | {"basic/EmoLabel/list_patition_label.txt": "\n".join(lines).encode()}


FER2013 = table()
FER2013_FOLDER = tree({"train": 0, "test": 2}, CLASSES, CLASSES)
PUBLISHED = {"train": 0, "PublicTest": 1, "PrivateTest": 2}
OWN = ("bored", "calm", "tense", "tired")
CHALLENGE = "challenges-in-representation-learning-facial-expression-recognition-challenge.zip"

# The files below --data by the layout as in docs/data.md.
LAYOUTS = {
    "`fer2013.csv`": {"fer2013.csv": FER2013},
    "`FER2013/fer2013.csv`, `archive/fer2013.csv`": {"FER2013/fer2013.csv": FER2013},
    "`icml_face_data.csv`": {"icml_face_data.csv": table(header="emotion, pixels, Usage")},
    "table separated by `;`, tabs or bars":
        {"a.csv": table(sep=";", header="Emotion;Pixels;USAGE")},
    "labels `3.0`, usages `train`, `val`, `test`":
        {"fer2013.csv": table([f"{n}.0" for n in range(7)], THREE)},
    "`ckextended.csv`": {"ckextended.csv": table(range(8))},
    "`train.csv` + `test.csv`":
        {"train.csv": table(splits=SPLITS[:1], usage=False, header="emotion,pixels"),
         "test.csv": table(splits=["", "", "x"], usage=False, header="emotion,pixels")},
    "`train.csv` without labels for `test.csv`":
        {"train.csv": table(splits=SPLITS[:1], usage=False, header="emotion,pixels"),
         "test.csv": b"pixels\n1 2 3\n"},
    "`challenges-in-....zip`":
        {CHALLENGE: zipped({"train.csv": table(splits=SPLITS[:1], usage=False),
            "test.csv": b"pixels\n1 2 3\n", "icml_face_data.csv": FER2013,
            "fer2013.tar.gz": b"\x1f\x8b"})},
    "`train/<class>/Training_1.jpg`, `test/<class>/PublicTest_1.jpg`":
        {path: content for split, part in enumerate(("train", "test", "test"))
         for path, content in tree({part: split}, CLASSES, CLASSES, "{split}_{0}.png").items()},
    "`FER_2013/train/0..6`, `PublicTest/0..6`, `PrivateTest/0..6`":
        tree({f"FER_2013/{part}": s for part, s in PUBLISHED.items()}, range(7), CLASSES),
    "`images/train/angry`, `images/validation/angry`":
        tree({"images/train": 0, "images/validation": 2}, CLASSES, CLASSES),
    "`train/angry`, `test/angry`": FER2013_FOLDER,
    "`Training/Anger`, `PublicTest/...`, `PrivateTest/...`":
        tree(dict(zip(SPLITS, range(3), strict=True)), SYNONYMS, CLASSES),
    "`0_angry`, `1-disgust`":
        tree(THREE, [f"{n}{'_-'[n % 2]}{name}" for n, name in enumerate(CLASSES)], CLASSES),
    "any of these folders in `archive.zip`":
        {"archive (2).zip": zipped(tree({"x/y/train": 0, "x/y/test": 2}, CLASSES, CLASSES))},
    "tar, known by its content": {"fer2013.zip": archived(".tar.bz2", FER2013_FOLDER)},
    "images of other sizes, modes and formats":
        tree(THREE, CLASSES, CLASSES, "{0}.bmp", side=96, form="BMP", mode="RGB"),
    "RAF-DB `basic/EmoLabel/list_patition_label.txt`, `basic/Image/aligned`": raf_list("aligned"),
    "RAF-DB `basic/Image/original`": raf_list(),
    "RAF-DB `DATASET/train/1..7`, `DATASET/test/1..7`":
        tree({"DATASET/train": 0, "DATASET/test": 2}, range(1, 8), RAF, "x_{0}_aligned.png",
             side=100),
    "FER+ `FER2013Train/<class>`, `FER2013Valid`, `FER2013Test`":
        tree({"FER2013Train": 0, "FER2013Valid": 1, "FER2013Test": 2}, CLASSES_8, CLASSES_8),
    "FER+ `FER2013Train/0..7`":
        tree({"FER2013Train": 0, "FER2013Valid": 1, "FER2013Test": 2}, range(8), FER_PLUS),
    "AffectNet `train/0..7`, `val/0..7`":
        tree({"train": 0, "val": 2}, range(8), AFFECTNET, side=224),
    "AffectNet `train_class/class001..class008`, `val_class/...`":
        tree({"train_class": 0, "val_class": 2}, [f"class{n:03d}" for n in range(1, 9)], AFFECTNET),
    "own classes `train/<any name>`, `test/<any name>`":
        tree({"mine/train": 0, "mine/test": 2}, OWN, OWN),
    "own classes `<any name>/1.jpg`": tree({"mine": 0}, OWN, OWN, each=20),
}  # fmt: skip


def read(path, files):
    """The set of `files` below `path`, and the lines that are logged."""
    write_folder(path, files)
    with logged() as lines:
        return load_set(path), lines


ROWS = [line.strip("| ").split(" | ") for line in (ROOT / "docs/data.md").read_text().splitlines()]
DOCUMENTED = {row[0]: row[1:] for row in ROWS}
DRAWN = {"all three": (), "PublicTest drawn": (1,), "PublicTest and PrivateTest drawn": (1, 2)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_read(layout, tmp_path, capsys):
    kind, *rest = DOCUMENTED[layout]
    classes = {"FER2013's 7": CLASSES, "these and contempt": CLASSES_8, "own": OWN}[kind]
    drawn = DRAWN[rest[0]]
    found, lines = read(tmp_path / "data", LAYOUTS[layout])
    assert found.classes == classes
    assert tuple(found.splits) == SPLITS
    present = [split for split in range(3) if split not in drawn]
    for index, split in enumerate(found.splits.values()):
        values = split.images.float().mean(dim=(1, 2, 3)).round().long()
        numbers, of = values // 25, values % 25 // 5
        assert torch.equal(numbers, split.labels)
        assert of.unique().tolist() == ([index] if index in present else [0])
        each = torch.bincount(split.labels, minlength=len(classes)).tolist()
        assert len(set(each)) == 1, each
    total = sum(len(split.labels) for split in found.splits.values())
    rows = 20 if len(present) == 1 and layout.startswith("own") else EACH * len(present)
    assert total == rows * len(classes)
    assert sum("drawn from Training" in line for line in lines) == (len(drawn) > 0)
    assert capsys.readouterr().err == ""  # no progress without a terminal
    same, again = read(tmp_path / "data", {})
    assert torch.equal(same.splits["Training"].images, found.splits["Training"].images)
    assert [line for line in lines if "cache written" not in line] == again


REFUSED = {
    "no image to train on": ({"test/happy/1.png": picture(1), "test/sad/1.png": picture(1)},
                             "holds no Training image"),
    "one class": (tree({"train": 0, "test": 2}, ["happy"], ["happy"]), "no FER2013 there"),
    "images in no class folder": ({"train/1.png": picture(1), "test/2.png": picture(2)},
                                  "no FER2013 there"),
    "a table in other columns": ({"fer2013.csv": b"emotion:pixels:Usage\n0:1 2:Training\n"},
                                 "line 1: no column emotion, pixels, or several, in 'emotion:"),
    "FER+ votes without classes": (
        {"FER2013Train/fer0.png": picture(1), "FER2013Train/label.csv":
            b'fer0.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0\n'}, "no FER2013 there"),
    "an archive in an archive": ({"fer2013.zip": zipped({"fer2013.tar.gz": b"\x1f\x8b"})},
                                 "no FER2013 there"),
    "a class of a table beyond 7": ({"fer2013.csv": table(range(9))},
                                    "emotion '8', expected a class of 0 to 6, or 7 for contempt"),
    "labels of a table in words": ({"fer2013.csv": table(SYNONYMS)}, "emotion 'Anger'"),
    "CK+ or JAFFE in `data/`": (
        {"CK+48/anger/S010_004_00000017.png": picture(1),
         "CK+48/fear/S010_004_00000018.png": picture(1), "jaffe/happy/1.png": picture(1),
         "jaffe/sad/1.png": picture(1)}, "no FER2013 there"),
    "`.rar` and `.7z`": ({"fer2013.rar": b"Rar!\x1a\x07\x01\0"}, "no FER2013 there"),
}  # fmt: skip


@pytest.mark.parametrize("layout", REFUSED)
def test_layout_is_refused(layout, tmp_path):
    files, said = REFUSED[layout]
    assert layout in DOCUMENTED
    assert said in refused(read, tmp_path / "data", files)


# --- choosing one of several


@pytest.mark.parametrize("taken, others", [
    ("fer2013.zip", ["fer2013 (1).zip"]),
    ("fer2013.csv", ["fer2013 (1).csv", "ckextended.csv", "archive.zip"]),
    ("FER-2013.zip", ["archive.zip", "archive (1).zip"]),
    ("archive.zip", ["archive (1).zip"]),
    ("archive.zip", ["archive - Copy.zip"]),
    ("fer2013 (1).zip", []),
    ("Archive (3).zip", []),
])  # fmt: skip
def test_one_of_several_is_taken_and_said(taken, others, tmp_path):
    for name in (taken, *others):
        # An image more of angry in the set that is to be taken.
        mark = {"train/angry/x.png": picture(1)} if name == taken else {}
        content = zipped(FER2013_FOLDER | mark)
        if name.endswith(".csv"):
            content = FER2013 + (FER2013.splitlines(True)[1] if name == taken else b"")
        (tmp_path / name).write_bytes(content)
    found, lines = read(tmp_path, {})
    labels = torch.cat([split.labels for split in found.splits.values()])
    assert (labels == 0).sum() == (labels == 1).sum() + 1
    several = [line for line in lines if "holds several sets" in line]
    assert len(several) == bool(others)
    for line in several:
        assert f"{tmp_path}: holds several sets; {taken} is read (" in line
        assert all(other in line for other in others)


def test_other_candidates(tmp_path):
    faces = {f"CK+48/{name}/S010_004_0000001{n}.png": picture(n) for n, name in enumerate(CLASSES)}
    archives = {"archive.zip": zipped(faces), "archive (1).zip": zipped({"fer2013.csv": FER2013})}
    found, lines = read(tmp_path / "of another set", archives)
    assert found.classes == CLASSES
    assert not any("several" in line for line in lines)
    files = folder_images(small_set())
    twice = zipped(files | {f"again/{name}": content for name, content in files.items()})
    found, lines = read(tmp_path / "in one archive", {"fer2013.zip": twice})
    assert len(found.splits["Training"].labels) == 14
    assert any("holds several sets; . is read" in line and "not again" in line for line in lines)
    backup = {"backup.zip": zipped(tree(THREE, OWN, OWN))}
    found, lines = read(tmp_path / "in a set", tree({"": 0}, CLASSES, CLASSES, each=20) | backup)
    assert found.classes == CLASSES
    assert any("; . is read" in line for line in lines)


# --- details


def test_drawn_split_is_the_same_for_all_runs(tmp_path):
    files = tree({"train": 0, "test": 2}, OWN, OWN, each=20)
    write_folder(tmp_path, {name: picture(number) for number, name in enumerate(files)})
    # The second is read from the cache.
    first, again = (load_set(tmp_path).splits["PublicTest"] for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.bincount(first.labels).tolist() == [2, 2, 2, 2]


def test_what_is_changed_is_said(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (96, 48))
    files = {"train/angry/0.png": image_bytes(stripes), "train/joy/1.png": picture(77)}
    found, lines = read(tmp_path, FER2013_FOLDER | files)
    assert found.classes == CLASSES
    images = torch.cat([split.images for split in found.splits.values()]).float()
    (striped,) = [image for image in images if image.std() > 0]
    assert abs(float(striped.mean()) - 127.5) < 1
    assert striped.std() < 10
    said = [line for line in lines if "resized" in line]
    assert said == [f"{tmp_path}: 1 images of other sizes (96x96) resized to 48x48"]
    assert f"{tmp_path}: happy and joy are happy" in lines


def test_classes_and_splits_are_known_by_many_names():
    for names, meant in (
        (("Anger", "angry", "0_angry", "ANGRY "), "angry"),
        (("Happiness", "3-happy", "happy", "joy"), "happy"),
        (("contemptuous", "Contempt"), "contempt"),
        (("bored", "12", ""), None),
    ):
        assert {class_of(name) for name in names} == {meant}
    for names, meant in (
        (("train", "Training", "TRAIN", "train_class", "FER2013Train", "train-images"), 0),
        (("val", "Validation", "valid", "public_test", "PublicTest", "FER2013Valid"), 1),
        (("test", "Private Test", "testing", "test_set"), 2),
    ):
        assert {split_of(name) for name in names} == {SPLITS[meant]}
    assert [split_of(name) for name in ("angry", "images", "data", "contest", "")] == [None] * 5


def test_split_in_file_names_counts_if_all_have_it(tmp_path):
    some = tree({"": 0}, OWN, OWN, "img_{0}.png", each=20) | {"calm/test_7.png": picture(0)}
    every = {f"{name}/{part}_{k}.png": picture(k) for name in OWN for k in range(4)
             for part in THREE}  # fmt: skip
    for name, files, counts in (("some", some, [65, 8, 8]), ("all", every, [16, 16, 16])):
        found, _ = read(tmp_path / name, files)
        assert [len(split.labels) for split in found.splits.values()] == counts


def test_moved_set_and_cache_say_the_new_place(tmp_path):
    read(tmp_path / "a" / "set", tree({"train": 0, "test": 2}, OWN, OWN))
    (tmp_path / "a").rename(tmp_path / "b")
    _, lines = read(tmp_path / "b" / "set", {})
    assert f"{tmp_path}/b/set: 4 classes: bored, calm, tense, tired" in lines
    assert not any("/a/" in line or "cache written" in line for line in lines)


def test_folder_of_other_sets_may_be_named(tmp_path):
    files = {f"{name}/S{k:03d}_004_00000017.png": picture(k)
             for name in ("anger", "contempt", "fear") for k in range(9)}  # fmt: skip
    assert read(tmp_path / "CK+48", files)[0].classes == ("angry", "contempt", "fear")
