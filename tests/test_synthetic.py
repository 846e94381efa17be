"""The synthetic sets: the same bytes everywhere, known wrong labels, the forms of the real sets."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from fer2013_files import refused
from PIL import Image

from data.sets import load_set
from data.synthetic.cross import draw_ck48, draw_jaffe
from data.synthetic.fer2013 import (
    CLASS_COLUMNS,
    DEFAULT_COUNTS,
    SHARES,
    VOTE_COLUMNS,
    WRONG_SHARE,
    draw_fer2013,
    draw_records,
    draw_votes,
)
from data.synthetic.writers import (
    PALETTE_EVERY,
    write_ck48,
    write_folder,
    write_jaffe,
)
from data.types import CK_CLASSES, CLASSES, SPLITS, Split
from tools.synthetic import FORMS, build_parser, main

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
def whole() -> dict[str, Split]:
    """The default set."""
    return draw_fer2013()


@pytest.fixture(scope="module")
def small() -> dict[str, Split]:
    return draw_fer2013(counts=SMALL)


def test_bytes_of_seed_0(small):
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    again = draw_fer2013(counts=SMALL)
    assert (np.random.get_state()[1] == before).all()
    for splits in (small, again):
        arrays = [
            array
            for name, drawing in draw_records(counts=SMALL).items()
            for array in (splits[name].images, splits[name].labels, drawing.true_labels)
        ]
        assert digest(*arrays, *draw_votes(counts=SMALL).values()) == SMALL_HASH
    for drawn, expected in ((draw_ck48(), CK48_HASH), (draw_jaffe(takes=1), JAFFE_HASH)):
        assert digest(drawn.images, drawn.labels) == expected
    other = draw_fer2013(seed=1, counts=SMALL)
    assert (other["Training"].images != small["Training"].images).any(dim=(1, 2, 3)).all()
    absent = draw_fer2013(counts={"Training": 8})
    assert len(absent["Training"].images) == 8
    assert absent["PublicTest"].images.shape == (0, 1, 48, 48)


def test_default_set(whole):
    splits, drawings = whole, draw_records()
    assert list(splits) == list(SPLITS)
    for name, split in splits.items():
        count = DEFAULT_COUNTS[name]
        assert split.images.shape == (count, 1, 48, 48)
        assert split.images.dtype == torch.uint8
        true_labels = torch.from_numpy(drawings[name].true_labels)
        assert split.labels.dtype == true_labels.dtype == torch.int64
        found = torch.bincount(true_labels, minlength=len(CLASSES)) / count
        assert torch.allclose(found, torch.tensor(SHARES) / 100.0, atol=1 / count)
        # Not sorted by class.
        assert len(true_labels[:50].unique()) == len(CLASSES)
        wrong = int((split.labels != true_labels).sum())
        assert wrong == (round(WRONG_SHARE * count) if name == "Training" else 0)
    for name, votes in draw_votes().items():
        assert votes.shape == (DEFAULT_COUNTS[name], len(VOTE_COLUMNS))
        assert (votes.sum(axis=1) == 10).all()
        assert (votes >= 0).all()
        winners = votes[:, CLASS_COLUMNS].argmax(axis=1)
        assert 0.75 < (winners == drawings[name].true_labels).mean() < 0.95
    images = torch.cat([split.images for split in splits.values()]).flatten(1).numpy()
    assert len(np.unique(images, axis=0)) == len(images)
    assert images.min() == 0
    assert images.max() == 255
    assert (images.std(axis=1) > 8).all()


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
    happy = CLASSES.index("happy")
    for of, other in ((2, 5), (4, 6)):  # fear as surprise, sad as neutral
        assert pairs.count((of, other)) > 2 * pairs.count((of, happy))


def test_ck48_sequences():
    drawn = draw_ck48()
    assert len(set(drawn.subjects)) == 20
    assert set(drawn.labels.tolist()) == set(range(len(CK_CLASSES)))
    numbers = np.array([int(name[9:17]) for name in drawn.names]).reshape(60, 3)
    assert (np.diff(numbers) == 1).all()
    # A later frame lies farther from the sequence's first, as the intensity rises.
    frames = drawn.images.float().reshape(60, 3, -1)
    steps = (frames[:, 1:] - frames[:, :1]).abs().mean(dim=2).mean(dim=0)
    assert steps[1] > steps[0]


@pytest.mark.parametrize("form", [form for form, row in FORMS.items() if row[1] is draw_fer2013])
def test_every_form_is_read_back(tmp_path, small, form):
    path = tmp_path / FORMS[form][0]
    FORMS[form][2](small, path)
    read = load_set(path).splits
    for name in SPLITS:
        assert torch.equal(read[name].labels, small[name].labels)
        assert torch.equal(read[name].images, small[name].images)


def test_files_of_other_sets(tmp_path):
    ck48, jaffe = draw_ck48(subjects=4, sequences=8), draw_jaffe(takes=1)
    write_ck48(ck48, tmp_path / "CK+48")
    write_jaffe(jaffe, tmp_path / "jaffe")
    assert len(list(tmp_path.glob("CK+48/*/*.png"))) == 24
    folders = [f"CK+48/{CK_CLASSES[label]}" for label in ck48.labels] + ["jaffe"] * 70
    modes = []
    for folder, name, image in zip(
        folders, [*ck48.names, *jaffe.names], [*ck48.images, *jaffe.images], strict=True
    ):
        with Image.open(tmp_path / folder / name) as read:
            modes.append(read.mode)
            assert (np.asarray(read.convert("L")) == image[0].numpy()).all()
    assert modes[:24] == ["L"] * 24
    assert modes.count("P") == 70 // PALETTE_EVERY
    assert modes.count("L") == 94 - modes.count("P")


def test_what_cannot_be_written(tmp_path, small):
    (tmp_path / "mine.txt").write_text("keep")
    assert "is not empty" in refused(write_folder, small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    text = refused(main, build_parser().parse_args([]))
    assert "expected --out FOLDER or --sheet FILE.png" in text


def test_command(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    words = f"--out {tmp_path}/sets --form votes --sheet {sheet}".split()
    written = main(build_parser().parse_args(words))
    assert written == {"votes": tmp_path / "sets" / FORMS["votes"][0], "sheet": sheet}
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in written.values())
    assert len(pd.read_csv(written["votes"])) == sum(DEFAULT_COUNTS.values())
    with Image.open(sheet) as read:
        # Frames around wrong labels are the only colour.
        assert (np.asarray(read) == (255, 0, 0)).all(axis=2).any()
