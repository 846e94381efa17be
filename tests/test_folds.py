"""Folds of cross-validation: by subject, and as published."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from fer2013_files import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ck48 import COUNTS
from data.folds import (
    leave_one_subject_out,
    overlap,
    published_ck48_folds,
    random_folds,
    subject_folds,
)
from runtime.errors import UserError

# The real set's shape: 981 images, three of each of 327 sequences, 118 subjects, made up.
LABELS = torch.repeat_interleave(torch.arange(7), torch.tensor(COUNTS))
_OWNERS = np.random.default_rng(0).permutation(np.arange(327) % 118)
SUBJECTS = [f"S{owner:03d}" for owner in np.repeat(_OWNERS, 3)]
SEQUENCES = [f"{subject}_{row // 3:03d}" for row, subject in enumerate(SUBJECTS)]


def assert_complementary(folds, count):
    for train, test in folds:
        assert train.dtype == test.dtype == torch.int64
        assert len(train) > 0
        assert len(test) > 0
        assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(count))


def assert_disjoint(folds, subjects):
    """Each image is tested once and no subject is in both parts."""
    assert_complementary(folds, len(subjects))
    assert set(times_tested(folds, len(subjects)).tolist()) == {1}
    assert all(overlap(train, test, subjects) == 0 for train, test in folds)


def times_tested(folds, count):
    return torch.bincount(torch.cat([test for _, test in folds]), minlength=count)


# --- by subject


@pytest.mark.parametrize("folds", [2, 10])
def test_subjects_are_disjoint(folds):
    pairs = subject_folds(SUBJECTS, LABELS, folds, 0)
    assert len(pairs) == folds
    assert_disjoint(pairs, SUBJECTS)
    for _, test in pairs:  # with classes in about equal shares
        shares = torch.bincount(LABELS[test], minlength=7) / torch.tensor(COUNTS) * folds
        assert shares.min() > 0.0
        assert shares.max() < 2.5


def test_folds_depend_on_seed():
    first, again, other = (subject_folds(SUBJECTS, LABELS, 10, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_folds_are_the_same_everywhere():
    """A rule of our own: no library's version or generator changes them."""
    subjects = [f"S{row // 3 * 7 % 118:03d}" for row in range(981)]
    folds = subject_folds(subjects, LABELS, 10, 3)
    text = " ".join(str(row) for _, test in folds for row in [*test.tolist(), -1])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "74306e8cd5bfd671"
    assert max(len(test) for _, test in folds) - min(len(test) for _, test in folds) <= 9


@settings(deadline=None, max_examples=50)
@given(
    people=st.lists(st.integers(0, 5), min_size=12, max_size=40),
    folds=st.integers(2, 4),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_subjects_are_disjoint_in_any_set(people, folds, seed, data):
    labels = data.draw(st.lists(st.integers(0, 6), min_size=len(people), max_size=len(people)))
    subjects = [f"S{person}" for person in people]
    if folds > min(len(set(subjects)), max(map(labels.count, labels))):
        with pytest.raises(UserError, match=f"--folds {folds}"):
            subject_folds(subjects, torch.tensor(labels), folds, seed)
        return
    pairs = subject_folds(subjects, torch.tensor(labels), folds, seed)
    assert len(pairs) == folds
    assert_disjoint(pairs, subjects)


# --- as published


def test_published_folds_overlap():
    pairs = published_ck48_folds(LABELS)
    assert len(pairs) == 10
    assert_complementary(pairs, 981)
    assert {len(test) for _, test in pairs} == {99}
    assert torch.bincount(times_tested(pairs, 981)).tolist() == [24, 981 - 24 - 33, 33]
    for train, test in pairs:
        assert overlap(train, test, SEQUENCES) == 0
        assert overlap(train, test, SUBJECTS) > len(test) // 3


def test_published_folds_are_runs():
    pairs = published_ck48_folds(LABELS)
    last = pairs[9][1]
    for label, run in enumerate((12, 18, 9, 21, 9, 24, 6)):
        whole = torch.nonzero(label == LABELS).flatten()
        for fold in range(8):  # in the others runs exceed their class
            tested = pairs[fold][1]
            assert torch.equal(tested[LABELS[tested] == label], whole[fold * run :][:run])
        assert torch.equal(last[LABELS[last] == label], whole[-run:])
    # The ninth run of fear goes on in happy.
    fear, happy = sum(COUNTS[:2]), sum(COUNTS[:3])
    own = [row for row in pairs[8][1].tolist() if fear <= row < happy + 21]
    assert own == [*range(fear + 72, happy), *range(happy, happy + 6)]


@pytest.mark.parametrize("folds", [2, 8, 11, 20])
def test_other_numbers_of_published_folds(folds):
    pairs = published_ck48_folds(LABELS, folds)
    assert len(pairs) == folds
    assert_complementary(pairs, 981)
    sizes = [len(test) for _, test in pairs]
    assert max(abs(size - 981 / folds) for size in sizes) <= 10.5  # 7 classes, half a sequence
    for train, test in pairs:
        assert overlap(train, test, SEQUENCES) == 0
    # Half a sequence a fold and class is the most that the last run can leave out or go over.
    assert (times_tested(pairs, 981) == 1).sum() >= 981 - 10.5 * folds


# --- leave one subject out, overlap


def test_leave_one_subject_out():
    subjects = ["KL", "KA", "YM", "KA", "KL", "YM", "KA"]
    pairs = leave_one_subject_out(subjects)
    assert_complementary(pairs, 7)
    assert [test.tolist() for _, test in pairs] == [[1, 3, 6], [0, 4], [2, 5]]


SIX = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("function, arguments, found", [
    (subject_folds, (SUBJECTS, LABELS, 1, 0), "--folds 1: expected 2 to 118, the subjects"),
    (subject_folds, (SUBJECTS, LABELS, 119, 0), "--folds 119: expected 2 to 118"),
    (subject_folds, (list("abcdef"), SIX, 3, 0), "--folds 3: expected 2 to 2, "),
    (published_ck48_folds, (LABELS, 1), "--folds 1: fold 1 has no image to train on"),
    (published_ck48_folds, (SIX[1:3], 2), "--folds 2: fold 1 has no image to train on"),
    (leave_one_subject_out, (["KA", "KA"],), "fold 1 has no image to train on"),
    (random_folds, (LABELS, 76, 0), "--folds 76: expected 2 to 54"),
])  # fmt: skip
def test_impossible_folds(function, arguments, found):
    assert found in refused(function, *arguments)


def test_overlap():
    groups = ["a", "a", "b", "c", "b", "b"]
    assert overlap(torch.tensor([0, 2]), torch.tensor([1, 3, 4, 5]), groups) == 3
    assert overlap(torch.tensor([3]), torch.tensor([0, 1, 2]), groups) == 0


def test_random_folds_are_stratified():
    labels = torch.arange(213) % 7
    folds = random_folds(labels, 10, seed=0)
    assert_complementary(folds, 213)
    assert set(times_tested(folds, 213).tolist()) == {1}
    for _, test in folds:
        assert set(torch.bincount(labels[test], minlength=7).tolist()) <= {3, 4}
    assert all(a[1].equal(b[1]) for a, b in zip(folds, random_folds(labels, 10, 0), strict=True))
    assert not folds[0][1].equal(random_folds(labels, 10, 1)[0][1])
