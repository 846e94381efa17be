"""Pictures: finding them, decoding them, and cutting the 48x48 gray faces that the networks see."""

from __future__ import annotations

import io
import logging
import secrets
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from auto_fernet.console import printable

Box = tuple[int, int, int, int]  # left, top, right, bottom
Rect = tuple[int, int, int, int]  # left, top, width, height, in pixels of the picture
Source = str | Path | Image.Image | np.ndarray

SIDE = 48  # of a face, as in FER2013
FRAME = 256  # side of the square in which the boxes of --crop are given
MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 27  # more than the largest of telephones, and less than a gigabyte when decoded
DEPTHS = (8, 10, 12, 16)  # bits of gray pictures whose file does not state its highest value
GUESSED = "guessed bits"  # the entry of `info` that holds which of them was chosen
REFUSED = {"EPS"}  # a program, which pillow would have another program run
TRANSPARENT = ("LA", "PA", "RGBA")
WRITTEN = "auto-fernet"  # the mark of pictures that this code has drawn


class PictureError(ValueError):
    """What is wrong with a picture, a file or an argument, in one line."""


@contextmanager
def explained(
    name: object, expected: str, done: str = "read", only: type[Exception] = Exception
) -> Iterator[None]:
    """Turn any exception while `name` is read or written into one PictureError that names it.

    `only` is the kind to turn, where other work is done meanwhile.
    """
    try:
        yield
    except (PictureError, MemoryError, BrokenPipeError):
        raise
    except only as error:
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        if isinstance(error, FileNotFoundError) and done == "read":
            reason = "no such file"
        elif isinstance(error, OSError) and error.strerror:
            reason = f"cannot be {done} ({error.strerror})"
        elif not isinstance(error, ValueError | OSError):
            reason = f"{type(error).__name__}: {reason}"
        raise PictureError(f"{name}: {reason}; expected {expected}") from error


def unfinished(path: Path, suffix: str = "") -> Path:
    """A new name beside `path` for what replaces it when it is complete."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.part{suffix}")


def require_regular(path: Path) -> None:
    """Raise OSError where `path` does not exist, ValueError where it is a pipe or a device."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")


# --- finding


def find_pictures(names: Sequence[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """The pictures that `names` mean, each with the name to print, and why files are left out.

    A file is taken as it is. Of a folder, all files below it whose suffix is one of a format that
    pillow reads, sorted, but none whose name, or whose folder's, begins with a dot; names to print
    are relative to a folder that is the only one of `names`. Raises PictureError for a name that
    is neither.
    """
    Image.init()
    suffixes = {end for end, kind in Image.EXTENSION.items() if kind not in REFUSED}
    found, left_out = [], []
    for name in names:
        path = Path(name)
        if path.is_file():
            found.append((path.name if len(names) == 1 else name, path))
            continue
        if not path.is_dir() or not name:
            raise PictureError(f"{name or repr(name)}: no such file or folder; expected pictures")
        with explained(path, "a folder of pictures"):
            below = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
        for short in below:
            if any(part.startswith(".") for part in short.parts):
                continue
            if short.suffix.lower() in suffixes:
                found.append((str(short if len(names) == 1 else path / short), path / short))
            else:
                left_out.append(f"{path / short}: not a format of pictures that pillow reads")
    return found, left_out


# --- decoding


def open_picture(source: Source) -> Image.Image:
    """A picture of a file, of pillow or an array, upright: mode L or RGB.

    Arrays are uint8 (H, W) or (H, W, 3), red first. EXIF orientation is applied, the first frame
    is taken, transparent parts are white, and deeper grays are scaled to 8 bits as `normalise`
    says, with a line of logging where their depth is guessed. Raises PictureError for what is no
    picture, has more than MAX_PIXELS, before it is decoded, or was drawn by this code.
    """
    if isinstance(source, np.ndarray):
        fits = source.ndim == 2 or source.shape[2:] == (3,)
        if source.dtype != np.uint8 or not fits or source.size == 0:
            found = f"{source.dtype} {source.shape}"
            raise PictureError(f"array: {found}; expected uint8 (H, W) or (H, W, 3)")
        return Image.fromarray(source)
    if not isinstance(source, str | Path | Image.Image):
        raise PictureError(f"{type(source).__name__}: expected a path, an image or an array")
    name = "picture" if isinstance(source, Image.Image) else str(source)
    with explained(name, f"a picture of at most {MAX_PIXELS} pixels"), quiet():
        image = source if isinstance(source, Image.Image) else _open_file(Path(source))
        check_size(image, 0 < image.width * image.height <= MAX_PIXELS)
        if {image.info.get("Software"), image.info.get("comment")} & {WRITTEN, WRITTEN.encode()}:
            raise PictureError(f"{name}: drawn by {WRITTEN}, not read as a picture")
        image.load()  # here, where what it raises is explained
        image = normalise(image)
        if bits := image.info.pop(GUESSED, None):
            line = f"no gray value above {2**bits - 1}, read as {bits} bits"
            logging.getLogger("auto_fernet").warning("%s: %s", printable(name), line)
        return flatten(image)


def _open_file(path: Path) -> Image.Image:
    Image.init()
    require_regular(path)
    with path.open("rb") as stream:
        return open_image(stream, tuple(sorted(Image.OPEN.keys() - REFUSED)), MAX_BYTES)


def open_image(stream: BinaryIO, formats: tuple[str, ...], max_bytes: int) -> Image.Image:
    """Open an image of at most `max_bytes` in one of pillow's `formats`, without decoding it.

    Raises ValueError where it is none.
    """
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    try:
        return Image.open(io.BytesIO(content), formats=formats)
    except UnidentifiedImageError:  # its text is the address of the stream
        raise ValueError("unreadable image") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error).split(" exceeds ")[0]) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without pillow's warnings: of large sizes, which are checked, and of damage it can skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_size(image: Image.Image, fits: bool, reason: str = "") -> None:
    """Raise ValueError, naming the size of the image, unless it `fits`."""
    if not fits:
        raise ValueError(f"image of {image.width}x{image.height}{reason}")


def normalise(image: Image.Image) -> Image.Image:
    """The first frame, upright as its EXIF data say, deeper grays scaled to 8 bits.

    Pillow's own conversion would clip them. White is 1 for floats, else the highest value that the
    file states, else that of the least of DEPTHS that holds the brightest pixel; a depth below 16
    is then entered in `info` as GUESSED. Raises ValueError for values outside 0 to 1 or 65535.
    """
    white = 1 if image.mode == "F" else _stated_white(image)
    image = ImageOps.exif_transpose(image) if image.getexif() else image
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    pixels = np.asarray(image)
    brightest, highest = pixels.max(), 1 if image.mode == "F" else 65535
    if not (pixels.min() >= 0 and brightest <= highest):  # also true of NaN
        raise ValueError(f"grays outside 0 to {highest}")
    bits = DEPTHS[-1]
    if brightest > white or white == 0:
        bits = min(depth for depth in DEPTHS if brightest < 2**depth)
        white = 2**bits - 1
    gray = Image.fromarray(np.rint(pixels * (255 / white)).astype(np.uint8))
    if bits < DEPTHS[-1]:
        gray.info[GUESSED] = bits
    return gray


def _stated_white(image: Image.Image) -> int:
    """The highest gray value that the file of an image states, 0 where it states none."""
    if image.format in ("PPM", "JPEG2000"):  # pillow scales them to 16 bits by what they state
        return 65535
    tags = getattr(image, "tag_v2", {})  # of TIFF: 258 is BitsPerSample, 281 MaxSampleValue
    bits = int(np.max(tags.get(258, 16)))
    return int(np.max(tags.get(281, 2**bits - 1 if bits < 16 else 0)))


def flatten(image: Image.Image) -> Image.Image:
    """A picture of any 8-bit mode as mode L or RGB, on white where it is transparent."""
    if image.mode in TRANSPARENT or "transparency" in image.info:
        drawn = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    if image.mode == "LAB":
        return image.getchannel("L")
    return image if image.mode == "L" else image.convert("RGB")


# --- faces


def frame(image: Image.Image, crop: Box | None) -> np.ndarray:
    """The part `crop` of an image, in 256ths of its width, or all of it: gray uint8 (48, 48)."""
    # Pillow widens the bilinear kernel when it shrinks, so nothing aliases; the box kernel would
    # average as well, but turns blocky where cropped images are below 48 pixels.
    # Gray first: the numbers of a palette image cannot be averaged.
    gray = image.convert("L")
    if crop is not None:
        # Cut first: resize with a box would mix in pixels from outside it.
        left, top, right, bottom = (round(edge * image.width / FRAME) for edge in crop)
        gray = gray.crop((left, top, right, bottom))
    return np.array(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def centre_face(picture: Image.Image, crop: Box | None = None) -> np.ndarray:
    """The largest centred square of a picture, or `crop` of it, as a face: gray uint8 (48, 48).

    `crop` is in 256ths of the square's side.
    """
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return frame(picture.crop((left, top, left + side, top + side)), crop)


def cut_face(picture: Image.Image, rect: Rect) -> np.ndarray:
    """The part `rect` of a picture as a face, gray uint8 (48, 48).

    Beyond the picture its outermost pixels are repeated, as black bars would change the answer.
    """
    left, top, width, height = rect
    right, bottom = left + width, top + height
    x0, x1 = max(left, 0), min(right, picture.width)
    y0, y1 = max(top, 0), min(bottom, picture.height)
    if x0 >= x1 or y0 >= y1 or width * height > MAX_PIXELS:
        size = f"{picture.width}x{picture.height}"
        raise PictureError(f"box {list(rect)}: outside the picture of {size} pixels, or too large")
    inside = np.asarray(picture.crop((x0, y0, x1, y1)).convert("L"))
    beyond = (
        (max(-top, 0), max(bottom - picture.height, 0)),
        (max(-left, 0), max(right - picture.width, 0)),
    )
    return frame(Image.fromarray(np.pad(inside, beyond, mode="edge")), None)
