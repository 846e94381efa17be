"""FES from votes: the formula image by image, the stored matrices, and malformed files."""

from __future__ import annotations

import numpy as np
import pytest
from fer2013_files import refused
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from runs import ROOT

from data.synthetic.fer2013 import CLASS_COLUMNS, VOTE_COLUMNS, draw_votes
from data.synthetic.writers import write_votes
from data.types import CLASSES, SPLITS
from data.votes import load_votes
from relabelling import PUBLISHED_FES, TRAINING_FES, fes_matrix, load_fes, save_fes
from tools import fes

REAL_VOTES = ROOT.parent / "shared" / "fer2013new.csv"

COUNTS = {"Training": 40, "PublicTest": 20, "PrivateTest": 10}
DRAWN = draw_votes(counts=COUNTS)
HEADER = ",".join(("Usage", "Image name", *VOTE_COLUMNS))
ROW = "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0"
PAIRS = [(i, j) for i in range(7) for j in range(7) if i != j]


def similarity(votes, i, j):
    """The definition, image by image."""
    both = [(row[i], row[j]) for row in votes.tolist() if row[i] > 0 and row[j] > 0]
    return sum(min(pair) / max(pair) for pair in both) / len(votes)


def write(path, content):
    path.write_text(content, encoding="latin1")
    return path


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "fer2013new.csv"
    write_votes(DRAWN, path)
    return path


# --- the formula


@given(arrays(np.int64, st.tuples(st.integers(1, 12), st.just(7)), elements=st.integers(0, 10)))
@example(np.array([[2, 4, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]))
@settings(max_examples=50, deadline=None)
def test_matrix_equals_definition(votes):
    matrix, of_more = fes_matrix(votes), fes_matrix(votes, 2 * len(votes))
    assert matrix.dtype == np.float64
    assert (np.diag(matrix) == 1.0).all()
    assert (np.diag(of_more) == 1.0).all()
    assert (matrix == matrix.T).all()
    for i, j in PAIRS:
        assert matrix[i, j] == pytest.approx(similarity(votes, i, j), abs=1e-12)
        assert of_more[i, j] == pytest.approx(similarity(votes, i, j) / 2, abs=1e-12)


# --- the stored matrices


def test_stored_matrices_are_similarities():
    for matrix in (PUBLISHED_FES, TRAINING_FES):
        assert matrix.shape == (7, 7)
        assert (np.diag(matrix) == 1.0).all()
        assert (matrix == matrix.T).all()
        assert ((matrix > 0) & (matrix <= 1)).all()
    assert 0 < abs(TRAINING_FES - PUBLISHED_FES).max() < 0.005
    # At the threshold of the relabelling commands, the same pairs of classes may change.
    assert ((TRAINING_FES > 0.03) == (PUBLISHED_FES > 0.03)).all()
    sad, neutral = CLASSES.index("sad"), CLASSES.index("neutral")
    assert (PUBLISHED_FES[sad, neutral], TRAINING_FES[sad, neutral]) == (0.13838511, 0.14288130)


# --- reading votes


@pytest.mark.parametrize("usage", [None, *SPLITS])
def test_rows_of_usage(usage, table):
    header, *lines = table.read_text().splitlines()
    mixed = [*lines[1::2], "", *lines[::2]]
    order = [*range(1, len(lines), 2), *range(0, len(lines), 2)]
    table.write_text("\n".join([header, *mixed]) + "\n")
    usages, votes = np.repeat([*COUNTS], [*COUNTS.values()]), np.concatenate([*DRAWN.values()])
    expected = [votes[row, CLASS_COLUMNS] for row in order if usage in (None, usages[row])]
    found = load_votes(table, usage)
    assert found.dtype == np.int64
    assert (found == expected).all()


@pytest.mark.parametrize(
    "row, found",
    [
        (ROW.replace(",4,", ",-4,"), "neutral is '-4', expected a whole number of 0"),
        (ROW.replace(",3,", f",{'9' * 30},"), "anger is '999"),
        (ROW.replace("Training", "Test"), "Usage is 'Test', expected Training, PublicTest, Priv"),
        ("Training,fer0000000.png,4,0,0", "anger is '', expected"),
    ],
)
def test_bad_row_is_named_by_line(row, found, tmp_path):
    path = write(tmp_path / "votes.csv", "\n".join([HEADER, ROW, "", row, ROW]) + "\n")
    assert f"{path}, line 4: {found}" in refused(load_votes, path, "PublicTest")
    write(path, f"{HEADER}\n{ROW}\n")
    expected = f"{path}: no PublicTest rows found, expected at least one"
    assert refused(load_votes, path, "PublicTest") == expected


@pytest.mark.parametrize(
    "content, found",
    [
        (f"{HEADER}\n", "no image rows found, expected at least one"),
        (f"{ROW}\n{ROW}\n", "line 1: no column Usage, anger"),
        (f"{HEADER}\n{ROW}\n{ROW},1\n", "Expected 12 fields in line 3, saw 13; expected a table"),
    ],
)
def test_malformed_table(content, found, tmp_path):
    path = write(tmp_path / "votes.csv", content)
    text = refused(load_votes, path)
    assert text.startswith(str(path))
    assert found in text


@pytest.mark.parametrize("load", [load_votes, load_fes])
def test_unreadable_file(tmp_path, load):
    assert "absent.csv: no such file" in refused(load, tmp_path / "absent.csv")
    assert "cannot be read (Is a directory)" in refused(load, tmp_path)
    (tmp_path / "no.zip").write_bytes(b"PK")
    assert "no.zip" in refused(load, tmp_path / "no.zip")


# --- the matrix as a file


def test_matrix_is_read_back(tmp_path, table):
    for matrix in (fes_matrix(load_votes(table)), PUBLISHED_FES):
        save_fes(matrix, tmp_path / "fes.csv")
        assert (load_fes(tmp_path / "fes.csv") == matrix).all()
    assert (tmp_path / "fes.csv").read_text().startswith(",angry,disgust,fear,happy,sad,surprise,")


def edited(row, column, word):
    rows = [["", *CLASSES]]
    rows += [[name, *map(str, values)] for name, values in zip(CLASSES, PUBLISHED_FES, strict=True)]
    rows[row][column] = word
    return "\n".join(map(",".join, rows)) + "\n"


@pytest.mark.parametrize(
    "content, found",
    [
        ("", "No columns to parse"),
        (edited(2, 4, "1.5"), "disgust and happy have 1.5 and 0.01147336"),
        (edited(2, 2, "-0.1"), "disgust and disgust have -0.1 and -0.1"),
        (edited(1, 7, "nan"), "angry and neutral have nan and 0.05837538"),
        (edited(1, 2, "x"), "could not convert string to float: 'x'"),
        (edited(1, 2, "0.5"), "angry and disgust have 0.5 and 0.02718851"),
        (edited(0, 3, "happy"), "columns angry,disgust,happy,happy"),
        (edited(3, 0, "sad"), "rows angry,disgust,sad,happy"),
        (edited(7, 7, "1,1"), "Expected 8 fields in line 8, saw 9"),
    ],
)
def test_malformed_matrix(content, found, tmp_path):
    path = write(tmp_path / "fes.csv", content)
    text = refused(load_fes, path)
    assert text.startswith(str(path))
    assert found in text


# --- the command and its picture


def run(*words):
    return fes.main(fes.build_parser().parse_args([*map(str, words)]))


def test_command_without_folder_only_prints(table, tmp_path, capsys):
    before, votes = set(tmp_path.iterdir()), load_votes(table)
    assert (run(table)["matrix"] == fes_matrix(votes, len(votes) + 1)).all()
    assert "FES of 70 images (all rows)" in capsys.readouterr().out
    assert set(tmp_path.iterdir()) == before
    assert "fer2013new.csv: File exists" in refused(run, table, "--out", table)


def test_command_prints_and_writes(table, tmp_path, capsys):
    written = run(table, "--usage", "Training", "--out", tmp_path / "made" / "here")
    matrix = fes_matrix(load_votes(table, "Training"))
    assert written["images"] == COUNTS["Training"]
    assert (load_fes(written["table"]) == matrix).all()
    with Image.open(written["picture"]) as picture:
        assert min(picture.size) > 600
    printed = capsys.readouterr().out
    assert "FES of 40 images (Training rows)" in printed
    assert f"{matrix[4, 6]:.8f}" in printed


def test_diagonal_is_outside_the_scale(tmp_path):
    (axes,) = fes.draw_fes(PUBLISHED_FES, CLASSES, tmp_path / "FES.png", "all rows").axes
    (image,) = axes.images
    assert image.get_clim() == (0, PUBLISHED_FES[4, 6])
    assert image.get_array().mask.tolist() == np.eye(7, dtype=bool).tolist()
    labels = {text.get_position(): text.get_text() for text in axes.texts}
    assert labels == {(i, i): "1" for i in range(7)} | {
        (i, j): f"{PUBLISHED_FES[i, j]:.4f}" for i, j in PAIRS
    }


@pytest.mark.skipif(not REAL_VOTES.is_file(), reason="the votes of FER+ are not here")
def test_real_votes_give_the_stored_matrices():
    assert abs(run(REAL_VOTES)["matrix"] - PUBLISHED_FES).max() < 1e-6
    training = run(REAL_VOTES, "--usage", "Training")["matrix"]
    assert abs(training - TRAINING_FES).max() < 1e-8
