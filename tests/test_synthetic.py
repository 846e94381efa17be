"""The synthetic sets: the same bytes everywhere, known wrong labels, the forms of the real sets."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from data.sets import load_set
from data.synthetic import (
    CLASS_COLUMNS,
    DEFAULT_COUNTS,
    SHARES,
    VOTE_COLUMNS,
    WRONG_SHARE,
    draw_fer2013,
    draw_records,
    draw_votes,
)
from data.synthetic_cross import draw_ck48, draw_jaffe
from data.types import CK_CLASSES, CLASSES, SPLITS, Split
from data.writers import (
    PALETTE_EVERY,
    write_archive,
    write_ck48,
    write_csv,
    write_folder,
    write_jaffe,
    write_votes,
)
from tools.synthetic import FORMS, build_parser, main
from utils import UserError

SMALL = {"Training": 60, "PublicTest": 21, "PrivateTest": 14}
# sha256 sums that every machine and every version of numpy must give.
SMALL_HASH = "04f6fc952eebfc5f8340adcd948edf94d9cfafb57f01ab83cfd916e3fcab032f"
CK48_HASH = "3122e588a04039531b1894f2ce8ab1e89cab93991edd2147f26e3893e676d5e0"
JAFFE_HASH = "3a966d4964718794f89d050d9de3f7e444a29f1d664c5c5c454002f4662fed6c"


def digest(*arrays: torch.Tensor | np.ndarray) -> str:
    sums = hashlib.sha256()
    for array in arrays:
        sums.update(np.ascontiguousarray(array).tobytes())
    return sums.hexdigest()


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Split], float]:
    """The default set, and the CPU seconds that drawing it took."""
    start = time.process_time()
    splits = draw_fer2013()
    return splits, time.process_time() - start


@pytest.fixture(scope="module")
def small() -> dict[str, Split]:
    return draw_fer2013(counts=SMALL)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_bytes_of_seed_0(small):
    arrays = [
        array
        for name in SPLITS
        for array in (small[name].images, small[name].labels, small[name].true_labels)
    ]
    assert digest(*arrays, *draw_votes(counts=SMALL).values()) == SMALL_HASH
    drawn = draw_ck48()
    assert digest(drawn.images, drawn.labels) == CK48_HASH
    drawn = draw_jaffe(takes=1)
    assert digest(drawn.images, drawn.labels) == JAFFE_HASH


def test_other_seed(small):
    other = draw_fer2013(seed=1, counts=SMALL)
    assert (other["Training"].images != small["Training"].images).any(dim=(1, 2, 3)).all()


def test_global_generator_is_not_used(small):
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    again = draw_fer2013(counts=SMALL)
    assert torch.equal(again["Training"].images, small["Training"].images)
    assert (np.random.get_state()[1] == before).all()


def test_shapes_types_and_shares(whole):
    splits, _ = whole
    assert list(splits) == list(SPLITS)
    for name, split in splits.items():
        count = DEFAULT_COUNTS[name]
        assert split.images.shape == (count, 1, 48, 48)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == split.true_labels.dtype == torch.int64
        found = torch.bincount(split.true_labels, minlength=len(CLASSES)) / count
        assert torch.allclose(found, torch.tensor(SHARES) / 100.0, atol=1 / count)
        # Not sorted by class.
        assert len(split.true_labels[:50].unique()) == len(CLASSES)


def test_images_are_unique(whole):
    images = torch.cat([split.images for split in whole[0].values()]).flatten(1).numpy()
    assert len(np.unique(images, axis=0)) == len(images)
    assert images.min() == 0
    assert images.max() == 255
    assert (images.std(axis=1) > 8).all()


def test_wrong_labels_in_training_only(whole):
    splits, _ = whole
    wrong = splits["Training"].labels != splits["Training"].true_labels
    assert wrong.sum().item() == round(WRONG_SHARE * len(wrong))
    for name in ("PublicTest", "PrivateTest"):
        assert torch.equal(splits[name].labels, splits[name].true_labels)


def test_wrong_labels_follow_votes():
    drawing = draw_records()["Training"]
    rows = np.arange(len(drawing.labels))
    votes = drawing.votes[:, CLASS_COLUMNS]
    wrong = drawing.labels != drawing.true_labels
    given = votes[rows, drawing.labels][wrong].mean()
    others = (votes.sum(axis=1) - votes[rows, drawing.true_labels])[wrong].mean() / 6
    assert given > 1.5 * others
    agreed = votes[rows, drawing.true_labels]
    assert agreed[wrong].mean() < agreed[~wrong].mean() - 0.5
    pairs = list(zip(drawing.true_labels[wrong], drawing.labels[wrong], strict=True))
    for one, other, rarely in (("fear", "surprise", "happy"), ("sad", "neutral", "happy")):
        of = CLASSES.index(one)
        assert pairs.count((of, CLASSES.index(other))) > 2 * pairs.count(
            (of, CLASSES.index(rarely))
        )


def test_votes(whole):
    for name, votes in draw_votes().items():
        assert votes.shape == (DEFAULT_COUNTS[name], len(VOTE_COLUMNS))
        assert (votes.sum(axis=1) == 10).all()
        assert (votes >= 0).all()
        winners = votes[:, CLASS_COLUMNS].argmax(axis=1)
        agreement = (winners == whole[0][name].true_labels.numpy()).mean()
        assert 0.75 < agreement < 0.95


def test_drawing_time(whole):
    # About 1.3 s on one core; four times that leaves room for slow and busy machines.
    assert whole[1] < 5.2


def test_small_network_learns(whole, one_thread):
    splits, _ = whole
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(432, len(CLASSES))),
    )
    images, labels = splits["Training"].images / 255.0, splits["Training"].labels
    epochs, batch = 6, 50
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=6e-3, total_steps=epochs * (len(images) // batch)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        found = network(splits["PublicTest"].images / 255.0).argmax(dim=1)
    accuracy = (found == splits["PublicTest"].labels).float().mean().item()
    # Naming every face happy, the commonest class, gives 0.24.
    assert 0.55 < accuracy < 0.92


def test_absent_split_is_empty():
    splits = draw_fer2013(counts={"Training": 8})
    assert len(splits["Training"].images) == 8
    assert splits["PublicTest"].images.shape == (0, 1, 48, 48)


def test_ck48_shape():
    drawn = draw_ck48()
    assert drawn.images.shape == (180, 1, 48, 48)
    assert len(set(drawn.subjects)) == 20
    assert list(drawn.names) == sorted(set(drawn.names))
    assert set(drawn.labels.tolist()) == set(range(len(CK_CLASSES)))
    for first in range(0, len(drawn.names), 3):
        parts = [re.fullmatch(r"(S\d{3})_(\d{3})_(\d{8})\.png", n) for n in drawn.names[first:][:3]]
        assert len({part[1] for part in parts}) == len({part[2] for part in parts}) == 1
        assert parts[0][1] == drawn.subjects[first]
        assert [int(part[3]) - int(parts[0][3]) for part in parts] == [0, 1, 2]
        assert len(set(drawn.labels[first : first + 3].tolist())) == 1
    # A later frame lies farther from the sequence's first, as the intensity rises.
    frames = drawn.images.float().reshape(60, 3, -1)
    steps = (frames[:, 1:] - frames[:, :1]).abs().mean(dim=2).mean(dim=0)
    assert steps[1] > steps[0]


def test_jaffe_shape():
    drawn = draw_jaffe(takes=1)
    assert drawn.images.shape == (70, 1, 256, 256)
    assert torch.bincount(drawn.labels).tolist() == [10] * 7
    codes = ("AN", "DI", "FE", "HA", "SA", "SU", "NE")
    for number, (name, subject) in enumerate(zip(drawn.names, drawn.subjects, strict=True), 1):
        assert name == f"{subject}.{codes[drawn.labels[number - 1]]}1.{number}.tiff"
    assert len(set(drawn.subjects)) == 10


def test_csv_columns(tmp_path, small):
    write_csv(small, tmp_path / "fer2013.csv")
    write_csv(small, tmp_path / "icml_face_data.csv", kaggle=True)
    plain = pd.read_csv(tmp_path / "fer2013.csv")
    kaggle = pd.read_csv(tmp_path / "icml_face_data.csv")
    assert list(plain.columns) == ["emotion", "pixels", "Usage"]
    assert list(kaggle.columns) == ["emotion", " Usage", " pixels"]
    assert plain.Usage.value_counts().to_dict() == SMALL
    assert plain.emotion.tolist()[:60] == small["Training"].labels.tolist()
    assert (kaggle[" pixels"] == plain.pixels).all()
    pixels = np.array(plain.pixels[59].split(), np.uint8)
    assert (pixels == small["Training"].images[59].flatten().numpy()).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_folder_names(tmp_path, small, suffix):
    write_folder(small, tmp_path / "fer2013", suffix=suffix)
    files = [path.relative_to(tmp_path / "fer2013") for path in tmp_path.glob("fer2013/*/*/*")]
    assert len(files) == sum(SMALL.values())
    for file in files:
        part, group, name = file.parts
        assert group in CLASSES
        expected = "Training_" if part == "train" else "P(ublic|rivate)Test_"
        assert re.fullmatch(rf"{expected}\d+\{suffix}", name)


@pytest.mark.parametrize("form", ["folder", ".zip", ".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("table", [False, True])
def test_every_form_is_read_back(tmp_path, small, form, table):
    path = tmp_path / ("fer2013" if form == "folder" else f"fer2013{form}")
    if form != "folder":
        write_archive(small, path, table=table)
    elif table:
        path = tmp_path / "fer2013.csv"
        write_csv(small, path)
    else:
        write_folder(small, path)
    read = load_set(path).splits
    for name in SPLITS:
        assert torch.equal(read[name].labels, small[name].labels)
        assert torch.equal(read[name].images, small[name].images)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_archive_bytes_are_reproducible(tmp_path, small, suffix):
    for name in ("one", "two"):
        write_archive({"Training": small["Training"]}, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_votes_table(tmp_path):
    votes = draw_votes(counts=SMALL)
    write_votes(votes, tmp_path / "fer2013new.csv")
    table = pd.read_csv(tmp_path / "fer2013new.csv")
    assert list(table.columns) == ["Usage", "Image name", *VOTE_COLUMNS]
    assert table["Image name"].tolist() == [f"fer{row:07d}.png" for row in range(95)]
    assert table.Usage.tolist() == [name for name in SPLITS for _ in range(SMALL[name])]
    assert (table[list(VOTE_COLUMNS)].to_numpy() == np.concatenate(list(votes.values()))).all()


def test_ck48_files(tmp_path):
    drawn = draw_ck48(subjects=4, sequences=8)
    write_ck48(drawn, tmp_path / "CK+48")
    assert len(list(tmp_path.glob("CK+48/*/*.png"))) == 24
    for image, label, name in zip(drawn.images, drawn.labels, drawn.names, strict=True):
        with Image.open(tmp_path / "CK+48" / CK_CLASSES[label] / name) as read:
            assert read.mode == "L"
            assert (np.asarray(read) == image[0].numpy()).all()


def test_jaffe_palette_images(tmp_path):
    drawn = draw_jaffe(takes=1)
    write_jaffe(drawn, tmp_path / "jaffe")
    modes = []
    for image, name in zip(drawn.images, drawn.names, strict=True):
        with Image.open(tmp_path / "jaffe" / name) as read:
            modes.append(read.mode)
            assert (np.asarray(read.convert("L")) == image[0].numpy()).all()
    assert modes.count("P") == 70 // PALETTE_EVERY
    assert modes.count("L") == 70 - modes.count("P")


def test_folder_is_not_empty(tmp_path, small):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is not empty"):
        write_folder(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_unknown_archive(tmp_path, small):
    with pytest.raises(UserError, match=r"fer2013\.rar.*expected one of \.zip"):
        write_archive(small, tmp_path / "fer2013.rar")


def test_command(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["--out", str(tmp_path / "sets"), "--form", "votes", "--sheet", str(sheet)]
    written = main(build_parser().parse_args(arguments))
    assert written == {"votes": tmp_path / "sets" / FORMS["votes"], "sheet": sheet}
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in written.values())
    assert len(pd.read_csv(written["votes"])) == sum(DEFAULT_COUNTS.values())
    with Image.open(sheet) as read:
        # Frames around wrong labels are the only colour.
        assert (np.asarray(read) == (255, 0, 0)).all(axis=2).any()


def test_command_without_arguments():
    with pytest.raises(UserError, match=r"expected --out FOLDER or --sheet FILE\.png"):
        main(build_parser().parse_args([]))
