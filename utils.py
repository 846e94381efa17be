"""Seeds, the meter of loss and accuracy, checkpoints."""

from __future__ import annotations

import io
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

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
# Files of torch.save before torch 1.6 begin with this number, pickled.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


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
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "kind": kind,
        "torch": str(torch.__version__),
        **content,
    }
    # Into memory first: what torch raises for a file that cannot be written depends on its version.
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    atomic_write(path, lambda file: file.write(stream.getbuffer()))


def load_checkpoint(path: Path | str, kinds: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint of one of `kinds` onto the CPU, with `weights_only=True`.

    A bare state dict (a mapping of names to tensors), as it is or under a key of `_STATE_KEYS` as
    other codes save it, is returned as kind "state_dict" where `kinds` admits it, without the
    prefixes of DataParallel and torch.compile and without the counts of a profiler. Raises
    UserError for a missing, damaged, foreign or wrong file.
    """
    path = Path(path)
    expected = f"a checkpoint ({' or '.join(kinds)})"
    try:
        with reading(path, expected), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused later
            content = torch.load(_read_archive(path), map_location="cpu", weights_only=True)
            # Views of a few bytes would make us build a huge network.
            if (needed := _bytes_of_tensors(content)) > (size := path.stat().st_size):
                raise ValueError(f"its tensors take {needed} bytes, the file {size}")
    except UserError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise UserError(
            f"{path}: holds more than tensors and plain values, and was not run; expected "
            f"{expected}"
        ) from None
    if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT:
        found = content.get("kind")
    elif state := _state_dict_in(content):
        found, content = "state_dict", {"kind": "state_dict", "state_dict": state}
    else:
        found = "something else"
    if found not in kinds:
        raise UserError(f"{path}: holds {found}; expected {expected}")
    return content


def _state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The state dict that a checkpoint of other code is or holds, with plain names, or None."""
    if not isinstance(content, dict):
        return None
    for key in _STATE_KEYS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    if not content or not all(map(torch.is_tensor, content.values())):
        return None
    state = {}
    for name, value in content.items():
        parts = [part for part in str(name).split(".") if part not in _WRAPPERS]
        if parts[-1:] not in (["total_ops"], ["total_params"]):
            state[".".join(parts)] = value
    return state


def _read_archive(path: Path) -> BinaryIO:
    """The content of an undamaged file of torch.save, as a file that holds nothing else.

    torch verifies no check sums, so that a flipped bit would be a wrong weight; it inflates; and of
    an archive with two directories it may read the one that zipfile does not. So it gets a new
    archive of what zipfile read, which is no larger than the file.
    """
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_START))
        if start == _LEGACY_START:
            return io.BytesIO(start + file.read())
        if start[:2] != b"PK":
            raise ValueError("not a file of torch.save")
        copy = io.BytesIO()
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
            members = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in members):
                raise ValueError("compressed, which torch.save never does")
            if min(info.header_offset for info in members) != 0:
                raise ValueError("the archive does not start at the first byte")
            if sum(info.file_size for info in members) > os.fstat(file.fileno()).st_size:
                raise ValueError("its members are larger than the file")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the check sum of {damaged} is wrong")
            for info in members:
                checked.writestr(info.filename, archive.read(info))
        copy.seek(0)
        return copy


def _bytes_of_tensors(content: Any) -> int:
    """Bytes of the tensors in nested containers, each counted as often as it is named."""
    total, left, seen = 0, [content], set()
    while left:
        value = left.pop()
        if torch.is_tensor(value):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return total


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
            found = _shape_of(state.get(name)) or "missing"
            wanted = _shape_of(own.get(name)) or "nothing"
            if found != wanted:
                raise UserError(f"{source}: {name} is {found}, the network expects {wanted}")
            if not bool(state[name].isfinite().all()):
                raise UserError(f"{source}: {name} is not finite, expected a usable network")


def _shape_of(value: Any) -> str:
    if not torch.is_tensor(value) or value.layout is not torch.strided or value.is_quantized:
        return "" if value is None else f"a {getattr(value, 'layout', type(value).__name__)}"
    shape = str(tuple(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"
