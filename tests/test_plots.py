"""Plots: contents, overlaps, and that nothing but the file is changed."""

import itertools

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from PIL import Image

from common.cell_layout import lay_out_cell
from common.plots import (
    EDGE_LABELS,
    draw_alphas,
    draw_cell,
    draw_confusion,
    draw_curves,
    draw_decisions,
)
from genotypes import NAMED, PRIMITIVES, format_genotype, save_genotype
from runtime.errors import UserError
from tools import cells

FER = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
CELLS = {
    f"{name} {kind}": (getattr(genotype, kind), getattr(genotype, f"{kind}_concat"))
    for name, genotype in NAMED.items()
    for kind in ("normal", "reduce")
}
# Both edges of every node read one state, by the longest name there is.
CELLS["parallel"] = (tuple(("conv_7x1_1x7", node // 2) for node in range(2, 12)), (6,))
CELLS["one node"] = ((("ghost", 0), ("ghost", 0)), (2,))
CELLS["chain"] = (tuple(("max_pool_3x3", j + 1) for j in range(6) for _ in range(2)), (2, 5, 7))
DECISIONS = [
    {"epoch": 9, "cell": "normal", "edge": 3, "primitive": "sep_conv_5x5", "pruned": []},
    {"epoch": 14, "cell": "normal", "edge": 2, "primitive": "ghost", "pruned": [4]},
    {"epoch": 9, "cell": "reduce", "edge": 13, "primitive": "skip_connect", "pruned": []},
    {"epoch": 44, "cell": "reduce", "edge": 9, "primitive": "max_pool_3x3", "pruned": [10, 11, 12]},
]


def epoch(number, **others):
    return {"epoch": number, "lr": 0.025, "train_loss": 1.9, "train_accuracy": 20.0, **others}


def size(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def overlap(first, second):
    return (
        min(first.x1, second.x1) - max(first.x0, second.x0) > 0.5
        and min(first.y1, second.y1) - max(first.y0, second.y0) > 0.5
    )


def extents(artists, figure):
    renderer = figure.canvas.get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


@pytest.mark.parametrize("name", CELLS)
def test_cell_shows_every_edge_without_overlaps(name, tmp_path):
    cell, concat = CELLS[name]
    figure = draw_cell(cell, concat, tmp_path / "cell.png", f"{name} cell")
    width, height = size(tmp_path / "cell.png")
    assert 500 < width < 3500
    assert 200 < height < 1800
    (axes,) = figure.axes
    nodes = len(cell) // 2
    wanted = [primitive for primitive, _ in cell] + [str(node + 2) for node in range(nodes)]
    assert sorted(texts(axes)) == sorted([*wanted, "$c_{k-2}$", "$c_{k-1}$", "$c_{k}$"])

    rounded = [patch for patch in axes.patches if type(patch).__name__ == "FancyBboxPatch"]
    wires = [patch for patch in axes.patches if type(patch).__name__ == "FancyArrowPatch"]
    assert len(rounded) == len(cell) + nodes + 3
    assert len(wires) == len(cell) + len(concat)
    boxes = extents(rounded, figure)
    for first, second in itertools.combinations([*boxes, *extents([axes.title], figure)], 2):
        assert not overlap(first, second)
    # Each text lies inside its own box, and every box on the page.
    homes = [
        [place for place, box in enumerate(boxes) if box.contains(x0, y0) and box.contains(x1, y1)]
        for x0, y0, x1, y1 in (box.extents for box in extents(axes.texts, figure))
    ]
    assert sorted(homes) == [[place] for place in range(len(boxes))]
    first, second = (text.get_position()[1] for text in axes.texts if "k-" in text.get_text())
    assert first > second
    for box in (*boxes, *extents([axes.title], figure)):
        assert min(box.x0, box.y0) > 0
        assert box.x1 < width
        assert box.y1 < height


@st.composite
def any_cells(draw):
    nodes = draw(st.integers(1, 6))
    inputs = [draw(st.integers(0, node + 1)) for node in range(nodes) for _ in range(2)]
    return inputs, draw(st.lists(st.integers(2, nodes + 1), min_size=1, unique=True))


@given(any_cells())
@settings(max_examples=25, deadline=None)
def test_wires_join_boxes_and_cross_no_label(cell):
    inputs, concat = cell
    layout = lay_out_cell(inputs, concat, [0.9] * len(inputs))
    ends = [edge // 2 + 2 for edge in range(len(inputs))] + [len(layout.nodes) - 1] * len(concat)
    for number, (source, target) in enumerate(zip([*inputs, *concat], ends, strict=True)):
        runs = layout.wires[number]
        first, last = layout.nodes[source], layout.nodes[target]
        assert runs[0][0] == pytest.approx(first.x + first.width / 2)
        assert runs[-1][1] == pytest.approx(last.x - last.width / 2)
        assert abs(runs[0][2] - first.y) < first.height / 2
        assert abs(runs[-1][2] - last.y) < last.height / 2
        # Wires bend between columns; within a column they are horizontal and meet no other box.
        assert all(left[1] < right[0] for left, right in itertools.pairwise(runs))
        for place, box in enumerate([*layout.nodes, *layout.labels]):
            covered = [
                (x, end)
                for x, end, y in runs[1:-1]
                if x < box.x + box.width / 2
                if end > box.x - box.width / 2
                if abs(y - box.y) < box.height / 2 + 0.02
            ]
            assert len(covered) == (place == len(layout.nodes) + number)


def test_decisions_are_drawn_in_rows_of_edges(tmp_path):
    figure = draw_decisions(DECISIONS, 50, tmp_path / "decisions.png")
    assert 1200 < size(tmp_path / "decisions.png")[0] < 3000
    for axes, cell in zip(figure.axes, ("normal", "reduce"), strict=True):
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == EDGE_LABELS
        rows = {(round(text.xy[1]), text.get_text()) for text in axes.texts}
        assert rows == {(d["edge"], d["primitive"]) for d in DECISIONS if d["cell"] == cell}
        frame = axes.get_window_extent()
        for box in extents(axes.texts, figure):
            assert frame.x0 < box.x0 < box.x1 < frame.x1
        hatched = [bar for bar in axes.patches if bar.get_hatch()]
        pruned = [edge for d in DECISIONS if d["cell"] == cell for edge in d["pruned"]]
        assert [round(bar.get_y() + bar.get_height() / 2) for bar in hatched] == pruned
    # A name too long for its bar is left of the bar.
    late = figure.axes[1].texts[-1]
    bar = next(patch for patch in figure.axes[1].patches if patch.get_x() == 44)
    late_box, bar_box = extents([late, bar], figure)
    assert late_box.x1 <= bar_box.x0


def test_decisions_may_be_none(tmp_path):
    draw_decisions([], 1, tmp_path / "decisions.png")
    edges = "0→2 1→2 0→3 1→3 2→3 0→4 1→4 2→4 3→4 0→5 1→5 2→5 3→5 4→5"
    assert edges.split() == EDGE_LABELS


def test_confusion(tmp_path):
    matrix = np.diag([4, 55, 528, 879, 594, 416, 12345])
    matrix[0, 1] = 12
    matrix[5] = 0
    figure = draw_confusion(matrix, FER, tmp_path / "confusion.png", "PrivateTest, $100")
    assert min(size(tmp_path / "confusion.png")) > 800
    (axes,) = figure.axes
    shown = texts(axes)
    assert shown[:4] == ["4", "25.0 %", "12", "75.0 %"]
    assert "12,345" in shown
    recalls = shown[2 * 49 : 2 * 49 + 7]
    assert recalls == ["25.0 %", "100.0 %", "100.0 %", "100.0 %", "100.0 %", "–", "100.0 %"]
    assert "99.92 % of 14,417 images correct" in shown
    assert axes.get_yticklabels()[0].get_text() == "angry (16)"
    page = figure.bbox
    boxes = extents([*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()], figure)
    assert all(page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1) for box in boxes)
    for first, second in itertools.combinations(boxes[: len(axes.texts)], 2):
        assert not overlap(first, second)


@pytest.mark.parametrize("count, numbers, names", [
    (20, 800, 20), (21, 0, 21), (60, 0, 60), (61, 0, 0), (255, 0, 0)
])  # fmt: skip
def test_confusion_of_many_classes(count, numbers, names, tmp_path, recwarn):
    classes = ["$\\frac$", "$$", "表情", *map(str, range(count - 3))]
    figure = draw_confusion(np.eye(count, dtype=int), classes, tmp_path / "c.png", "t")
    assert max(size(tmp_path / "c.png")) < 3000
    (axes,) = figure.axes
    # Beside the numbers the recalls, their title and the accuracy.
    assert len(texts(axes)) == numbers + (names + 1 if names else 0) + 1
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == classes[:names]
    assert not recwarn.list


def test_curves_mark_first_best_epoch(tmp_path):
    accuracies = [40.0, 61.5, None, 61.5, float("nan"), 50.0]
    history = [
        epoch(number, PublicTest_accuracy=value, PublicTest_loss=1.0, PrivateTest_accuracy=42.0)
        for number, value in enumerate(accuracies, start=1)
    ]
    loss, accuracy, rate = draw_curves(history, tmp_path / "curves.png").axes
    assert size(tmp_path / "curves.png")[0] > 1500
    assert loss.get_legend_handles_labels()[1] == ["train", "PublicTest"]
    assert accuracy.get_legend_handles_labels()[1] == [
        "train", "PublicTest", "PrivateTest", "chosen epoch 2: PublicTest 61.50 %",
    ]  # fmt: skip
    assert list(rate.lines[0].get_ydata()) == [0.025] * 6


@pytest.mark.parametrize("history, curves", [
    ([epoch(0, valid_accuracy=30.0, valid_loss=1.8), epoch(1, valid_accuracy=31.0)], 2),
    ([{"epoch": 7}], 0),
])  # fmt: skip
def test_curves_of_partial_records(history, curves, tmp_path):
    figure = draw_curves(history, tmp_path / "curves.png")
    assert len(figure.axes[1].get_legend_handles_labels()[1]) == curves
    ticks = [tick for axes in figure.axes for tick in axes.get_xticks()]
    assert {float(tick).is_integer() for tick in ticks} == {True}


def test_alphas_mark_decisions(tmp_path):
    strengths = np.random.default_rng(0).dirichlet(np.ones(11), size=14)
    states = [-1] * 14
    states[3], states[4] = PRIMITIVES.index("ghost"), 0
    (axes,) = draw_alphas(strengths, tmp_path / "alphas.png", "normal cell", states).axes
    assert min(size(tmp_path / "alphas.png")) > 700
    assert [label.get_text() for label in axes.get_xticklabels()] == list(PRIMITIVES)
    assert [label.get_text() for label in axes.get_yticklabels()] == EDGE_LABELS
    assert texts(axes) == [f"{value:.2f}" for value in strengths.ravel()]
    frame, pruned = axes.patches
    assert frame.get_xy() == pytest.approx((8 - 0.5, 3 - 0.5), abs=0.05)
    assert (pruned.get_hatch() is not None, pruned.get_y()) == (True, 3.5)
    assert not draw_alphas(strengths, tmp_path / "alphas.png", "all open").axes[0].patches


def test_equal_pictures_are_equal_files_and_long_titles_fit(tmp_path):
    for name in ("first.png", "second.png"):
        figure = draw_cell(*CELLS["NASNet reduce"], tmp_path / name, "a search_$run " * 8)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert b"Software" not in (tmp_path / "first.png").read_bytes()
    (box,) = extents([figure.axes[0].title], figure)
    assert 0 < box.x0 < box.x1 < size(tmp_path / "first.png")[0]
    with pytest.raises(UserError, match=r"missing/cell\.png: cannot be written"):
        draw_cell(*CELLS["one node"], tmp_path / "missing" / "cell.png", "")


def test_pyplot_is_unchanged(tmp_path):
    pyplot.switch_backend("agg")
    held, before = pyplot.figure(), dict(matplotlib.rcParams)
    try:
        draw_cell(*CELLS["one node"], tmp_path / "x.png", "cell")
        draw_curves([epoch(1)], tmp_path / "x.png")
        assert (pyplot.get_fignums(), pyplot.gcf(), held.axes) == ([held.number], held, [])
        assert dict(matplotlib.rcParams) == before
    finally:
        pyplot.close(held)


def test_cells_command(tmp_path, capsys):
    save_genotype(NAMED["NASNet"], tmp_path / "genotype.txt")
    out = tmp_path / "made" / "here"
    for arch in ("NASNet", format_genotype(NAMED["NASNet"]), str(tmp_path)):
        written = cells.main(cells.build_parser().parse_args([arch, "--out", str(out)]))
        assert written == {
            "genotype": format_genotype(NAMED["NASNet"]),
            "normal": str(out / "normal.png"),
            "reduction": str(out / "reduction.png"),
        }
        assert min(*size(out / "normal.png"), *size(out / "reduction.png")) > 300
        assert str(out / "normal.png") in capsys.readouterr().out
