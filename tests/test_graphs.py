"""--compile with CUDA graphs imitated on the CPU: trainings and searches equal bit for bit."""

from __future__ import annotations

import copy
import signal
from argparse import Namespace
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fer2013_files import logged, write_small_table
from runs import SEARCH, here, same
from test_engine import CPU, new_state, parse, split
from torch import Tensor, nn

import model_search
import search
from data.augment import Augmentation
from data.types import CLASSES, Split
from engine import fit
from genotypes import Auto_FERNet
from model import Network
from recipe.compiling import StepGraphs, capture_graph, compiled, graph_capture
from relabelling import TRAINING_FES, Relabelling
from runtime.run import Run, autocast
from runtime.stop import Interrupted
from search import SearchState

NAN = float("nan")
STEPS = "--batch_size 4 --warmup_dec_epoch 0 --decision_freq 1 --learning_rate 0.1"


# --- training


def fit_network(words: str, run: Run) -> tuple[dict, Tensor]:
    """All that a training of two epochs of three batches changes, and the random state."""
    torch.manual_seed(0)
    model = Network(4, len(CLASSES), 3, True, Auto_FERNet)
    train, args = new_state(
        f"--epochs 2 --ema 0.9 --grad_clip 0.5 --drop_path_prob 0.5 {words}", model
    )
    fes = torch.tensor(TRAINING_FES, dtype=torch.float32)
    relabelling = Relabelling(CLASSES, CPU, threshold=0.9, fes=fes, fes_threshold=0.0)
    evaluations = {"PublicTest": split(9, 1)}
    fit(train, split(20), evaluations, args, run, save=lambda: None, relabelling=relabelling)
    for record in train.progress.history:
        record.pop("seconds")
    return train.state_dict(), torch.get_rng_state()


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_compiled_training_keeps_nothing_of_a_step(amp, monkeypatch):
    marked, calls = [], []

    def compile_by_graphs(model: nn.Module, *, dynamic: bool, mode: str):
        assert (dynamic, mode) == (False, "reduce-overhead")
        returned: list[Tensor] = []

        def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
            # The memory of the step before is used again, that of its gradients too.
            for tensor in [*returned, *(p.grad for p in model.parameters() if p.grad is not None)]:
                tensor.data.fill_(NAN)
            calls.append(len(images))
            assert len(marked) == len(calls)
            outputs = model(images.clone())
            returned[:] = outputs
            return outputs

        return forward

    plain = fit_network("", Run(Path(), CPU, autocast(CPU, amp)))
    monkeypatch.setattr(torch, "compile", compile_by_graphs)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(True))
    claimed = Run(Path(), torch.device("cuda"), autocast(CPU, amp))
    assert same(fit_network("--compile", claimed), plain)
    assert calls == [8, 8] * 2  # without the last batch of four
    assert plain[0]["state"]["history"][1]["changed"] > 0


def fail_in_capture() -> None:
    """As torch does whose memory is exhausted while it captures."""
    try:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_compiled_training_out_of_memory_ends(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda _images: fail_in_capture())
    forward = compiled(nn.Identity(), 2, torch.device("cuda"))
    with pytest.raises(RuntimeError, match="during capture"):
        forward(torch.zeros(2, 1, 4, 4))


# --- the search


class ImitatedGraphs:
    """A `Capture` on the CPU, with a list of what it captured and for how many images.

    Like CUDA graphs that share memory it computes nothing while it captures, reads and writes the
    same tensors each time, and overwrites what the others have written.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.captured: list[tuple[str, int]] = []
        self.replays = 0
        self.outputs: list[Tensor] = []

    def __call__(self, function, earlier):
        name, images = function.func.__name__, len(function.args[0][1])
        before = copy.deepcopy(self.model.state_dict())
        fixed = function()
        self.model.load_state_dict(before)
        own = [tensor for tensor in fixed if tensor is not None]
        self.outputs = own if earlier is None else [*self.outputs, *own]
        self.captured.append((name, images))

        def replay() -> None:
            self.replays += 1
            for tensor in self.outputs:
                tensor.fill_(NAN)
            for tensor, value in zip(fixed, function(), strict=True):
                if tensor is not None:
                    tensor.copy_(value)

        for tensor in own:
            tensor.fill_(NAN)
        return SimpleNamespace(replay=replay), fixed


class Search:
    """A search of two epochs, in batches of 4 and more images; the last of each half are fewer."""

    def __init__(self, words: str, monkeypatch: pytest.MonkeyPatch, amp: str = "off") -> None:
        monkeypatch.setattr(search, "build_augmentation", lambda *_: Augmentation(crop=8))
        monkeypatch.setattr(search, "graph_capture", lambda _device: self.capture)
        self.args: Namespace = parse(f"--epochs 2 {STEPS} {words}", search)
        self.run = Run(Path(), CPU, autocast(CPU, amp))
        torch.manual_seed(0)
        network = model_search.Network(4, len(CLASSES), 3, self.args.partial_channels)
        self.capture = ImitatedGraphs(network)
        self.state = SearchState(network, self.args, self.run.precision)
        self.saved: dict = {}

    def save(self) -> None:
        self.saved = copy.deepcopy(self.state.state_dict())

    def go(self) -> dict:
        """The state at the end, without times but with the random state."""
        halves = [
            Split(torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8), torch.arange(n) % 7)
            for n in (14, 7)
        ]
        torch.manual_seed(1)
        search.search(self.state, *halves, self.args, self.run, self.save)
        found = self.state.state_dict()
        for record in found["state"]["history"]:
            record.pop("seconds")
        found["state"].pop("seconds")
        return {**found, "random": torch.get_rng_state()}


BOTH = ("first_order_gradient", "weights_gradient")
WEIGHTS = BOTH[1:]


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--batch_increase 2 --grad_clip 0.05", [(4, BOTH), (6, BOTH)]),
        ("--batch_increase 0 --partial_channels 2 --amp bf16", [(4, BOTH), (4, BOTH)]),
        ("--batch_increase 2 --unrolled", [(4, WEIGHTS), (6, WEIGHTS)]),
        # Captured after the graph of the weights, which is kept.
        ("--arch_warmup_epochs 1 --warmup_dec_epoch 2", [(4, BOTH)]),
    ],
)
def test_captured_search_is_bit_exact(words, expected, monkeypatch):
    amp = "bf16" if "bf16" in words else "off"
    plain = Search(words, monkeypatch, amp)
    torch.manual_seed(2)
    whole = plain.go()
    captured = Search(f"{words} --compile", monkeypatch, amp)
    torch.manual_seed(2)
    assert same(captured.go(), whole)
    assert not plain.capture.captured
    # Once after each decision, as its batches and states are others.
    assert sorted(captured.capture.captured) == sorted(
        (name, size) for size, names in expected for name in names
    )
    assert captured.capture.replays > len(captured.capture.captured)
    assert bool(whole["state"]["decisions"]) == (len(expected) > 1)


def test_captured_search_resumes_bit_exact(monkeypatch):
    words = "--batch_increase 2"
    whole = Search(words, monkeypatch)
    torch.manual_seed(2)
    expected = whole.go()
    first = Search(f"{words} --compile", monkeypatch)
    steps: list[int] = []

    def stop_in_the_first_epoch(*_) -> None:
        steps.append(first.state.progress.step)
        if len(steps) == 3:
            first.run.stop.notice(signal.SIGTERM)

    first.state.optimizer.register_step_post_hook(stop_in_the_first_epoch)
    torch.manual_seed(2)
    with suppress(Interrupted):
        first.go()
    assert first.saved["state"]["step"] == 3
    second = Search(f"{words} --compile", monkeypatch)
    second.state.load_state_dict(first.saved, Path("checkpoint.pt"))
    torch.manual_seed(2)
    assert same(second.go(), expected)
    assert sorted(first.capture.captured) == [(name, 4) for name in BOTH]
    # One batch of the first epoch was left.
    assert sorted(second.capture.captured) == [(name, 6) for name in BOTH]


def test_search_out_of_memory_in_capture_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "graph_capture", lambda _: lambda *_: fail_in_capture())
    data = write_small_table(tmp_path, each=12)
    words = [word.format(data=data, out=tmp_path) for word in SEARCH[1:]]
    assert here(search, [*words, "--compile"]) == 2
    printed = capsys.readouterr().err
    assert "error: out of memory (RuntimeError" in printed
    assert "Traceback" not in printed


def test_search_is_captured_on_cuda_only():
    with logged() as lines:
        assert graph_capture(CPU) is None
        assert graph_capture(torch.device("cuda")) is capture_graph
    assert lines == ["--compile: captures the steps of a search on CUDA only, going on without"]
    batch = torch.zeros(2, 1, 4, 4), torch.zeros(2)
    graphs = StepGraphs()
    graphs.begin(2, {"normal": [-1]})
    assert all(graphs.run(lambda batch: batch, batch) is batch for _ in range(3))


def test_graphs_of_a_step_share_memory(monkeypatch):
    opened = []

    class Graph:
        def pool(self) -> str:
            return "a pool"

    @contextmanager
    def graph(captured: Graph, *, pool: str | None, capture_error_mode: str):
        opened.append((pool, capture_error_mode))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    first, outputs = capture_graph(lambda: [1], None)
    capture_graph(lambda: [2], first)
    assert outputs == [1]
    assert opened == [(None, "thread_local"), ("a pool", "thread_local")]
