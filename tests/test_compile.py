"""--compile: the same logits and gradients, no new compilation as drop-path rises, exact resume."""

from __future__ import annotations

import copy
import logging
import shutil

import pytest
import torch
from fer2013_files import write_small_table
from runs import TRAIN, command, difference, finish, kill
from torch.nn import functional as F

from genotypes import Auto_FERNet, Genotype, format_genotype
from model import Network
from recipe.compiling import compiled
from runtime.logs import LOGGER_NAME

BATCH = 4

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)


def test_compiled_network_computes_the_same_and_compiles_once(monkeypatch, caplog):
    from torch._dynamo.utils import counters

    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    torch.manual_seed(0)
    # In float64: batch norms of four images blow float32's rounding up.
    plain = Network(4, 7, 3, True, Auto_FERNet).double().train()
    model = copy.deepcopy(plain)
    forward = compiled(model, BATCH, torch.device("cpu"))
    images, labels = torch.rand(BATCH, 1, 44, 44, dtype=torch.float64), torch.arange(BATCH)

    def gradients(network, step) -> list[torch.Tensor]:
        logits, auxiliary = step(images)
        loss = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
        return [logits, auxiliary, *torch.autograd.grad(loss, list(network.parameters()))]

    found = [*gradients(model, forward), *model.buffers()]
    expected = [*gradients(plain, plain), *plain.buffers()]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    graphs = []
    for probability in (0.1, 0.2, 0.3):
        model.drop_path_prob = probability
        assert forward(images)[0].isfinite().all()
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1] == graphs[2]
    model.drop_path_prob = 0.9
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(forward(images)[0])
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].allclose(drawn[2])
    # Nothing was left uncompiled.
    assert not [record.message for record in caplog.records if record.name == LOGGER_NAME]


def test_compiled_resume_is_bit_exact(tmp_path, monkeypatch):
    # Compiled once for the three runs.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    data = write_small_table(tmp_path, each=12)
    # One cell of two primitives and no second head, as it is the compiler that takes the time.
    edges = [("dil_conv_3x3", 0), ("max_pool_3x3", 1)]
    genotype = format_genotype(Genotype(edges, [2], edges, [2]))
    short = "--compile --layers 1 --epochs 2 --limit_batches 2 --no-auxiliary --arch".split()
    words = command(TRAIN, data, tmp_path, *short, genotype)
    printed = finish([*words, "--save", "whole"], tmp_path / "whole.log")
    assert "--compile: not possible" not in printed
    kill([*words, "--save", "killed"], "epoch 2 step 1/", tmp_path / "killed.log")
    finish([*words, "--resume", "killed"], tmp_path / "resumed.log")
    assert difference(tmp_path / "killed", tmp_path / "whole") is None
