"""Relabelling: the rule against a plain version, and the counts of changes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain import plain_relabel
from data.types import CLASSES
from relabelling import PUBLISHED_FES, Relabelling, relabel
from runtime.run import Progress

FES = torch.from_numpy(PUBLISHED_FES)


def batch(seed, size, scale=1.0):
    """Logits with ties, labels of which about half are the second class."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(size, 7, generator=generator)
    # Coarse steps make equal logits, among them equal highest ones.
    coarse = torch.rand(size, generator=generator) < 0.5
    logits[coarse] = logits[coarse].round()
    labels = torch.randint(0, 7, (size,), generator=generator)
    near = torch.rand(size, generator=generator) < 0.5
    labels[near] = logits.topk(2, dim=1).indices[near, 1]
    return logits, labels


# --- the rule


@pytest.mark.parametrize("fes", [None, FES, FES.float()], ids=["softmax", "FES", "FES float32"])
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 64),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    threshold=st.sampled_from([0.02, 0.2, 0.75]),
    fes_threshold=st.sampled_from([0.01, 0.03, 0.05, 0.2]),
)
@settings(max_examples=60, deadline=None)
def test_rule_equals_plain_version(fes, seed, size, scale, threshold, fes_threshold):
    logits, labels = batch(seed, size, scale)
    given_labels = labels.clone()
    rule = {"threshold": threshold, "fes": fes, "fes_threshold": fes_threshold}
    new = relabel(logits, labels, **rule)
    assert new.dtype == torch.int64
    assert new.tolist() == plain_relabel(logits, labels, **rule)
    assert torch.equal(labels, given_labels)
    assert new.data_ptr() != labels.data_ptr()


def quarters(label, others):
    """Logits of p = 1/4 for `others` (four classes) and 0 for the rest, with a label."""
    logits = torch.full((1, 7), -200.0)
    logits[0, list(others)] = 0.0
    return logits, torch.tensor([label])


@pytest.mark.parametrize(
    "label, others, threshold, without, with_fes",
    [
        (5, (3, 4, 0, 6), 0.25, 5, 5),  # the gap is the threshold: not below it
        (5, (3, 4, 0, 6), 0.2500001, 0, 0),
        (4, (0, 3, 5, 6), 0.26, 0, 0),
        (4, (1, 3, 5, 6), 0.26, 1, 4),  # sad and disgust are not similar enough
        (6, (0, 1, 4, 6), 0.26, 0, 6),  # a tie with the first of the highest: gap 0
        (0, (0, 1, 4, 6), 0.26, 0, 0),
        (6, (0, 1, 4, 6), 0.0, 6, 6),  # gap 0 is not below 0
    ],
)
def test_gap_at_threshold(label, others, threshold, without, with_fes):
    logits, labels = quarters(label, others)
    for fes, expected in ((None, without), (FES, with_fes)):
        rule = {"threshold": threshold, "fes": fes, "fes_threshold": 0.03}
        assert relabel(logits, labels, **rule).item() == expected


def test_similarity_of_given_and_new_label():
    logits, labels = quarters(4, (0, 3, 5, 6))
    above, below = (torch.full((7, 7), x, dtype=torch.float64) for x in (0.5 + 1e-9, 0.5))
    one_way = torch.zeros(7, 7)
    one_way[4, 0] = 1.0
    for fes, expected in ((above, 0), (below, 4), (one_way, 0), (one_way.T, 4)):
        assert relabel(logits, labels, threshold=0.5, fes=fes, fes_threshold=0.5).item() == expected


BOTH = pytest.mark.parametrize("fes", [None, FES], ids=["softmax", "FES"])


@BOTH
def test_batch_of_all_cases(fes):
    logits, labels = batch(0, 512)
    rule = {"threshold": 0.2, "fes": fes, "fes_threshold": 0.03}
    new = relabel(logits, labels, **rule)
    assert 50 < (new != labels).sum() < 462
    ties = logits.gather(1, labels[:, None]).squeeze(1) == logits.max(dim=1).values
    assert (ties & (logits.argmax(dim=1) != labels)).sum() > 5
    hook = relabelling(fes)
    hook.begin(Progress(epoch=1))
    assert torch.equal(hook(logits, labels), new)


# --- Relabelling


def relabelling(fes=None):
    return Relabelling(CLASSES, torch.device("cpu"), threshold=0.2, fes=fes, fes_threshold=0.03)


def logits_of(labels):
    """Even labels are nearly as likely as (3 * label + 1) % 7, odd ones the likeliest."""
    new = torch.where(labels % 2 == 0, (labels * 3 + 1) % 7, labels)
    rows = torch.arange(len(labels))
    logits = torch.zeros(len(labels), 7)
    logits[rows, labels] = 2.0
    logits[rows, new] = 2.1
    return logits, new


def run(hook, labels):
    for part in labels.split(20):
        logits, new = logits_of(part)
        assert torch.equal(hook(logits, part), new)


def test_counts_equal_plain_counting():
    labels, hook, progress, record = torch.arange(90) % 7, relabelling(), Progress(epoch=4), {}
    hook.begin(progress)
    run(hook, labels)
    hook.keep_counts(progress)
    hook.finish(progress, record)
    pairs = Counter(zip(labels.tolist(), logits_of(labels)[1].tolist(), strict=True))
    rows = progress.extra["changes"]
    assert {row["epoch"] for row in rows} == {5}
    counts = {(CLASSES.index(r["given"]), CLASSES.index(r["new"])): r["labels"] for r in rows}
    assert {pair: count for pair, count in counts.items() if count} == dict(pairs)
    changed = sum(count for (given, new), count in pairs.items() if given != new)
    assert 0 < changed < 90
    assert record == {"labels": 90, "changed": changed}
    assert progress.extra.keys() == {"changes"}


def test_resumed_epoch_continues_the_counts():
    labels, whole, progress = torch.arange(90) % 7, relabelling(), Progress(epoch=1)
    whole.begin(progress)
    run(whole, labels)
    first, resumed = relabelling(), relabelling()
    first.begin(progress)
    run(first, labels[:40])
    first.keep_counts(progress)
    resumed.begin(progress)
    run(resumed, labels[40:])
    assert resumed.totals() == whole.totals()
    whole.begin(Progress(epoch=2))
    assert sum(map(sum, whole.totals())) == 0


def test_counts_of_any_classes():
    own = ("bored", "calm", "tense", "tired")
    rule = {"threshold": 2.0, "fes": None, "fes_threshold": 0.0}
    hook, progress, record = Relabelling(own, torch.device("cpu"), **rule), Progress(epoch=1), {}
    hook.begin(progress)
    logits = torch.zeros(4, 4)
    logits[:, 3] = 1.0
    assert hook(logits, torch.arange(4)).tolist() == [3, 3, 3, 3]
    hook.keep_counts(progress)
    hook.finish(progress, record)
    assert record == {"labels": 4, "changed": 3}
    assert {"epoch": 2, "given": "bored", "new": "tired", "labels": 1} in progress.extra["changes"]
