"""tools.random_cells: counts against a network and plain sums; cells of the asked size."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from genotypes import Auto_FERNet, resolve_genotype
from model import Network
from model_search import EDGES
from runtime.errors import UserError
from tools import random_cells
from tools.random_cells import CONCAT, SEARCHED, CostTable, Genotype, count_costs, draw_cell

WORDS = "--like Auto_FERNet --init_channels 8 --layers 3 --count 3".split()


def draw(*words: str) -> dict:
    return random_cells.main(random_cells.build_parser().parse_args([*WORDS, *words]))


def test_costs_of_the_papers_network():
    costs, edges = count_costs(Auto_FERNet, 36, 12)
    assert costs.tolist() == [2_164_831, 703_123_416]  # 1.41 GFLOP
    assert edges["cells.0._ops.1"].tolist() == [9 * 36 * 36 + 2 * 36, 9 * 36 * 36 * 44 * 44]
    assert edges["cells.0._ops.6"].tolist() == [0, 0]  # an identity


def test_multiply_adds_are_those_of_the_convolutions_that_run():
    # Without reductions between cells every convolution is called as a module.
    genotype = Genotype((("conv_3x3", 0), ("ghost", 1)), (2,), (("sep_conv_5x5", 0),) * 2, (2,))
    network, expected = Network(6, 7, 1, False, genotype), 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal expected
        expected += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network.eval()(torch.rand(1, 1, 44, 44))
    assert count_costs(genotype, 6, 1)[0].tolist() == [network.num_parameters, expected]


@pytest.mark.parametrize("channels, layers", [(7, 3), (8, 4), (6, 1)])
def test_table_equals_the_counts_of_whole_networks(channels, layers):
    table, generator = CostTable(channels, layers), random.Random(0)
    for _ in range(3):
        genotype = Genotype(draw_cell(generator), CONCAT, draw_cell(generator), CONCAT)
        assert table.costs(genotype).tolist() == count_costs(genotype, channels, layers)[0].tolist()


def test_cells_are_those_that_a_search_can_find():
    generator = random.Random(0)
    cells = [draw_cell(generator) for _ in range(300)]
    edges = {(place // 2, source) for cell in cells for place, (_, source) in enumerate(cell)}
    assert edges == set(EDGES)
    assert {name for cell in cells for name, _ in cell} == set(SEARCHED)
    assert "none" not in SEARCHED
    for cell in cells:
        assert all(cell[place][1] < cell[place + 1][1] for place in range(0, 8, 2))


def test_drawn_networks_are_as_large_as_asked(tmp_path, capsys):
    found = draw("--out", str(tmp_path / "new"), "--seed", "1")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Genotype")]
    assert len(printed) == len({cell["genotype"] for cell in found["cells"]}) == 3
    for number, cell in enumerate(found["cells"], 1):
        path = tmp_path / "new" / f"random_{number}.txt"
        assert resolve_genotype(str(path)) == resolve_genotype(printed[number - 1])
        assert resolve_genotype(str(path)) == cell["genotype"]
        assert f"--init_channels {cell['init_channels']} --layers 3" in path.read_text()
        counted, _ = count_costs(cell["genotype"], cell["init_channels"], 3)
        assert counted.tolist() == cell["costs"]
        assert max(abs(a / b - 1) for a, b in zip(counted, found["like"], strict=True)) <= 0.03
    assert draw("--seed", "1") == found
    assert draw("--seed", "2") != found


def test_sizes_that_no_cell_has_are_an_error(monkeypatch):
    monkeypatch.setattr(random_cells, "MAX_DRAWS", 3)
    monkeypatch.setattr(random_cells, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="--like: 3 random cells"):
        draw()
