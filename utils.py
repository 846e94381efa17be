"""Seeds, the meter of loss and accuracy, checkpoints."""

from __future__ import annotations

import io
import pickle
import random
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.errors import UserError, reading
from runtime.files import atomic_write
from runtime.processes import all_reduce_sum, rank

CHECKPOINT_FORMAT = "auto-fernet/1"
# The keys under which other codes save a state dict, and the names of wrapping modules in it.
_STATE_KEYS = ("state_dict", "model_state_dict", "net", "model")
_WRAPPERS = ("module", "_orig_mod")


def derive_seed(*keys: int) -> int:
    """A 63-bit seed determined by the keys, unrelated for any two different tuples of keys."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class AverageMeter:
    """Mean loss and top-1 accuracy over batches, summed on the device without a host sync.

    Each process counts its shard of the images; the figures are of all.
    """

    def __init__(self, device: torch.device, sums: Iterable[float] = (0.0, 0.0, 0.0)) -> None:
        """`sums`: loss, correct answers and images of a meter to continue."""
        # float32 where the device has no float64 (mps); counts of an epoch stay exact.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.tensor(list(sums), dtype=dtype, device=device)
        if rank() > 0:
            self._sums.zero_()

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (scalar), logits (N, K) and labels (N,)."""
        correct = (logits.argmax(dim=1) == labels).sum()
        count = torch.full_like(correct, len(labels))
        batch = torch.stack([loss.detach() * len(labels), correct, count])
        self._sums += batch.to(self._sums.dtype)

    def totals(self) -> list[float]:
        """The sums so far; waits for the device."""
        return all_reduce_sum(self._sums).tolist()

    def read(self) -> tuple[float, float]:
        """(mean loss, accuracy in percent) so far; waits for the device."""
        loss, correct, count = self.totals()
        return loss / max(count, 1), 100.0 * correct / max(count, 1)


def save_checkpoint(path: Path | str, kind: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically: `content` with its format, kind and version of torch.

    `kind` is "weights", "training", "search" or "folds". `content` holds tensors, numbers, text,
    None, and lists and dicts of them, which `load_checkpoint` reads without running anything.
    """
    header = {"format": CHECKPOINT_FORMAT, "kind": kind, "torch": str(torch.__version__)}
    # Into memory first: what torch raises for a file that cannot be written depends on its version.
    stream = io.BytesIO()
    torch.save({**header, **content}, stream)
    atomic_write(path, lambda file: file.write(stream.getbuffer()))


def load_checkpoint(path: Path | str, kinds: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint of one of `kinds` onto the CPU, with `weights_only=True`.

    A bare state dict (a mapping of names to tensors), as it is or under a key of `_STATE_KEYS` as
    other codes save it, is returned as kind "state_dict" where `kinds` admits it, without the
    prefixes of DataParallel and torch.compile and without the counts of a profiler. Raises
    UserError for a missing, damaged, foreign or wrong file.
    """
    path, expected = Path(path), f"a checkpoint ({' or '.join(kinds)})"
    with reading(path, expected), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of tensors that are refused later
        if zipfile.is_zipfile(path):  # torch verifies no check sums
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the check sum of {damaged} is wrong")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"{path}: holds more than tensors and plain values, or is no file of torch.save, "
                f"and was not run; expected {expected}"
            ) from None
    if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT:
        kind = content.get("kind")
    elif state := _find_state_dict(content):
        kind, content = "state_dict", {"kind": "state_dict", "state_dict": state}
    else:
        kind = "something else"
    if kind not in kinds:
        raise UserError(f"{path}: holds {kind}; expected {expected}")
    return content


def _find_state_dict(content: Any) -> dict[str, Tensor] | None:
    """The state dict that a checkpoint of other code is or holds, with plain names, or None."""
    if not isinstance(content, dict):
        return None
    content = next((content[k] for k in _STATE_KEYS if isinstance(content.get(k), dict)), content)
    if not all(map(torch.is_tensor, content.values())):
        return None
    state = {}
    for name, value in content.items():
        parts = [part for part in str(name).split(".") if part not in _WRAPPERS]
        if parts[-1:] not in (["total_ops"], ["total_params"]):
            state[".".join(parts)] = value
    return state


def load_state(module: nn.Module, state: Any, source: Path | str) -> None:
    """Load the state dict `state` into `module`; errors as `check_state`."""
    check_state(module, state, source)
    module.load_state_dict(state)


def check_state(module: nn.Module, state: Any, source: Path | str) -> None:
    """Raise UserError, naming `source`, unless the state dict `state` fits `module`.

    Names and shapes must be the module's, and every value finite. `module` may be on the meta
    device.
    """
    with reading(source, "the weights of such a network"):
        own = module.state_dict()
        for name in [*own, *state]:
            given, wanted = _describe(state.get(name)), _describe(own.get(name))
            if given != wanted:
                raise UserError(
                    f"{source}: {name} is {given or 'missing'}, the network expects "
                    f"{wanted or 'nothing'}"
                )
            if not bool(state[name].isfinite().all()):
                raise UserError(f"{source}: {name} is not finite, expected a usable network")


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return ""
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")
