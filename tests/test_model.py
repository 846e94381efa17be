"""The network of a genotype: the published one to the parameter, and every other one builds."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from genotypes import NAMED, Auto_FERNet, format_genotype
from model import Network, build_network, fuse_batch_norms
from runtime.errors import UserError
from utils import load_checkpoint, load_state

# Names and shapes of the original code's state dict (C = 36, L = 12, auxiliary head).
REFERENCE = Path(__file__).with_name("reference_state_dict.tsv")


def reference() -> dict[str, tuple[int, ...]]:
    rows = [line.split("\t") for line in REFERENCE.read_text().splitlines()]
    return {
        name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in rows
    }


@pytest.fixture(scope="module")
def published() -> Network:
    torch.manual_seed(0)
    return Network(36, 7, 12, False, Auto_FERNet).eval()


def small(layers: int = 6, auxiliary: bool = False, name: str = "Auto_FERNet") -> Network:
    # Not narrower: oneDNN (AVX-512, channels last) overruns its buffers in the gradient of 1x1
    # convolutions of stride 2 from fewer than 16 channels at 48x48.
    torch.manual_seed(0)
    return Network(8, 7, layers, auxiliary, NAMED[name])


def test_published_network_has_the_papers_size(published):
    assert sum(p.numel() for p in published.parameters()) == 2_164_831
    # Of convolutions and classifier, on a 44x44 image; a multiplication and an addition are two.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        published(torch.rand(1, 1, 44, 44))
    assert round(counter.get_total_flops() / 1e9, 2) == 1.41


def test_original_state_dict_loads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(5)
        for name, shape in reference().items()
    }
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    network = Network(36, 7, 12, True, Auto_FERNet)
    load_state(network, load_checkpoint(path, ["state_dict"])["state_dict"], path)
    loaded = network.state_dict()
    assert list(loaded) == list(state), "the names in their order"
    assert all(loaded[name].shape == tensor.shape for name, tensor in state.items())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    with pytest.raises(UserError, match=r"other\.pt: cells\.1\."):
        load_state(small(6), small(5).state_dict(), tmp_path / "other.pt")


@pytest.mark.parametrize("size", [44, 48])
@pytest.mark.parametrize("name", NAMED)
def test_named_genotypes_train_every_parameter(name, size):
    network = small(auxiliary=True, name=name)
    logits, auxiliary_logits = network(torch.rand(2, 1, size, size))
    assert logits.shape == auxiliary_logits.shape == (2, 7)
    labels = torch.tensor([3, 6])
    (F.cross_entropy(logits, labels) + F.cross_entropy(auxiliary_logits, labels)).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("auxiliary", [True, False])
def test_auxiliary_logits_exist_in_training_only(auxiliary):
    network, x = small(auxiliary=auxiliary), torch.rand(2, 1, 44, 44)
    assert (network.train()(x)[1] is not None) == auxiliary
    assert network.eval()(x)[1] is None


def test_auxiliary_head_reads_second_reduction():
    network, seen = small(layers=12, auxiliary=True), {}
    network.cells[8].register_forward_hook(lambda _m, _x, out: seen.update(cell=out))
    network.auxiliary_head.register_forward_hook(lambda _m, x, _out: seen.update(head=x[0]))
    x = torch.rand(2, 1, 44, 44)
    logits, _ = network(x)
    assert seen["head"] is seen["cell"]
    network.auxiliary = False
    torch.testing.assert_close(network(x)[0], logits)


@pytest.mark.parametrize("layers", [3, 7, 8, 12, 20])
def test_reductions_at_one_and_two_thirds(layers):
    network = small(layers)
    shapes = []
    for cell in network.cells:
        cell.register_forward_hook(lambda _m, _x, out: shapes.append(tuple(out.shape)))
    network(torch.rand(2, 1, 44, 44))
    halvings = [sum(index >= k for k in (layers // 3, 2 * layers // 3)) for index in range(layers)]
    assert shapes == [(2, 4 * 8 * 2**k, 44 // 2**k, 44 // 2**k) for k in halvings]


def test_drop_path_is_off_at_first_and_in_evaluation():
    x = torch.rand(2, 1, 44, 44)
    network = small()
    assert network.drop_path_prob == 0.0
    sure = network(x)[0]
    network.drop_path_prob = 0.5
    assert not torch.allclose(network(x)[0], sure)
    network.eval()
    assert torch.equal(network(x)[0], network(x)[0])


def test_layout_keeps_values(published):
    for batch in (1, 2):
        out = published.stem(torch.rand(batch, 1, 44, 44))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert not out.is_contiguous()
    network = small().double()
    default = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    x = torch.rand(2, 1, 44, 44, dtype=torch.float64)
    assert default.stem(x).is_contiguous()
    torch.testing.assert_close(network(x)[0], default(x)[0])


def test_description_builds_its_network():
    network = Network(4, 5, 3, True, NAMED["NASNet"])
    assert network.description == {
        "C": 4, "num_classes": 5, "layers": 3, "auxiliary": True,
        "genotype": format_genotype(NAMED["NASNet"]),
    }  # fmt: skip
    found = build_network(network.description)
    assert found.description == network.description
    shapes = [{n: t.shape for n, t in each.state_dict().items()} for each in (network, found)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMED)
def test_fused_copy_gives_same_logits(name):
    torch.manual_seed(0)
    network = Network(6, 7, 4, True, NAMED[name])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if trained
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2.0)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    before = copy.deepcopy(network.state_dict())
    evaluated = fuse_batch_norms(network)
    assert not evaluated.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in evaluated.cells.modules())
    images = torch.rand(3, 1, 48, 48)
    with torch.no_grad():
        found, expected = evaluated(images)[0], network.eval()(images)[0]
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert all(before[name].equal(tensor) for name, tensor in network.state_dict().items())
