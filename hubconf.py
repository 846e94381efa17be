"""Trained networks by torch.hub: `torch.hub.load("PATH", "auto_fernet", source="local")`.

PATH is the folder of this file. Modules of the repository have short names, such as `utils`: a
program with modules of the same names imports them after `torch.hub.load`.
"""

from common.weights import CHECKPOINTS as _CHECKPOINTS
from common.weights import load_network as _load_network
from model import Network as _Network

dependencies = ["torch", "numpy", "pandas", "tqdm"]


def auto_fernet() -> _Network:
    """The paper's network, 2.16 M parameters, in evaluation mode on the CPU.

    face = PIL.Image.open("face.png").convert("L").resize((48, 48))  # gray, cropped to the face
    images = torch.from_numpy(numpy.array(face, "float32") / 255)[None, None]  # (N, 1, 48, 48)
    logits = network(images)[0]  # (N, 7): angry, disgust, fear, happy, sad, surprise, neutral
    """
    return _load("auto_fernet")


def auto_fernet_2() -> _Network:
    """The network of `auto_fernet`, trained on at a higher rate; gains in an ensemble with it."""
    return _load("auto_fernet_2")


def auto_fernet_s() -> _Network:
    """The same cells with 305,639 parameters, taught by auto_fernet_s1; used as `auto_fernet`."""
    return _load("auto_fernet_s")


def auto_fernet_s1() -> _Network:
    """The same cells with 305,639 parameters, trained without a teacher; used as `auto_fernet`."""
    return _load("auto_fernet_s1")


def auto_fernet_s2() -> _Network:
    """As `auto_fernet_s1`, of another seed and longer training."""
    return _load("auto_fernet_s2")


def auto_fernet_s3() -> _Network:
    """As `auto_fernet_s2`, of SGAS's published cells, 308,023 parameters."""
    return _load("auto_fernet_s3")


def auto_fernet_s4() -> _Network:
    """As `auto_fernet_s2`, of DARTS's published cells, 305,089 parameters."""
    return _load("auto_fernet_s4")


def _load(name: str) -> _Network:
    return _load_network(str(_CHECKPOINTS / f"{name}.pt"))  # not a file of the current folder
