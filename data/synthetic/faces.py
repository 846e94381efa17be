"""From numbers to pixels: a gray face drawn from identity, expression, pose and light.

Every pixel comes from IEEE-exact elementwise operations on float64 (+ - * / sqrt, comparisons,
floor) in an order that does not depend on the machine, and from `numpy.random.RandomState`, whose
stream numpy keeps frozen; hence the same bytes everywhere.

Coordinates: u to the right, v down, (0, 0) the middle of the frame and 1 its edge; FER2013's
framing is the square from -1 to 1.
"""

from __future__ import annotations

import numpy as np

# How each expression moves the face at full intensity, after the action units of FACS. Lengths
# are in frame units; knit to press are strengths from 0 to 1.
ACTIONS = (
    "brow",  # both brows up
    "inner",  # inner brow ends up against the outer ones
    "lid",  # upper lids open
    "corner",  # mouth corners up
    "width",  # mouth wider
    "open",  # jaw drops
    "lip",  # upper lip raised
    "asymmetry",  # one mouth corner up
    "knit",  # brows drawn together
    "squint",  # lower lids up
    "wrinkle",  # nose wrinkled
    "fold",  # fold from nose to mouth
    "teeth",
    "press",  # lips thinned
)
EXPRESSIONS = {
    "angry": (-0.10, -0.17, 0.01, -0.05, -0.02, 0.05, 0.01, 0, 1.0, 0.5, 0.3, 0.2, 0.7, 0.8),
    "disgust": (-0.04, 0.01, -0.04, -0.08, -0.03, 0.04, 0.10, 0, 0.2, 1.0, 1.0, 1.0, 0.9, 0.0),
    "fear": (0.11, 0.14, 0.06, -0.08, 0.08, 0.13, 0.01, 0, 0.5, 0.0, 0.0, 0.1, 0.6, 0.1),
    "happy": (0.01, 0.00, -0.02, 0.15, 0.14, 0.08, 0.02, 0, 0.0, 0.6, 0.0, 0.8, 1.0, 0.0),
    "sad": (0.01, 0.19, -0.04, -0.13, -0.05, 0.00, 0.00, 0, 0.3, 0.1, 0.0, 0.2, 0.0, 0.4),
    "surprise": (0.16, 0.00, 0.07, 0.00, -0.10, 0.28, 0.02, 0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.0),
    "neutral": (0,) * len(ACTIONS),
    "contempt": (-0.01, -0.02, -0.03, 0.00, 0.02, 0.00, 0.00, 0.13, 0.1, 0.2, 0.1, 0.4, 0.0, 0.5),
}

# Identity: the range each trait is drawn from.
TRAITS = {
    "face_width": (0.70, 0.86),
    "face_height": (0.94, 1.10),
    "taper": (0.10, 0.34),
    "skin": (0.42, 0.84),
    "hair": (0.03, 0.45),
    "hair_volume": (0.04, 0.24),
    "hairline": (-0.82, -0.60),
    "fringe": (-0.30, 0.30),
    "hair_length": (0.0, 1.0),
    "eye_distance": (0.31, 0.40),
    "eye_height": (-0.24, -0.16),
    "eye_width": (0.15, 0.20),
    "lid_rest": (0.065, 0.090),
    "iris": (0.05, 0.35),
    "brow_gap": (0.17, 0.24),
    "brow_width": (0.16, 0.22),
    "brow_thickness": (0.022, 0.045),
    "brow_tilt": (-0.03, 0.03),
    "brow_arch": (0.02, 0.07),
    "nose_length": (0.20, 0.30),
    "nose_width": (0.10, 0.15),
    "mouth_height": (0.50, 0.58),
    "mouth_width": (0.24, 0.31),
    "mouth_rest": (-0.025, 0.030),
    "lip_thickness": (0.035, 0.065),
    "lip_tone": (0.62, 0.86),
    "beard": (-2.4, 0.6),
    "glasses": (-8.0, 1.0),
}

# What differs from picture to picture of one person.
CONDITIONS = {
    "shift_u": (-0.09, 0.09),
    "shift_v": (-0.08, 0.08),
    "scale": (0.90, 1.12),
    "turn": (-0.09, 0.09),  # half-angle tangent of the in-plane rotation: up to 10 degrees
    "yaw": (-0.16, 0.16),
    "gaze": (-0.04, 0.04),
    "background": (0.10, 0.90),
    "background_slope": (-0.25, 0.25),
    "light_u": (-0.32, 0.32),
    "light_v": (-0.22, 0.22),
    "gain": (0.72, 1.12),
    "offset": (-0.04, 0.10),
    "softness": (0.045, 0.085),
    "blur": (0.0, 0.9),
    "noise": (0.005, 0.045),
}

Face = dict[str, np.ndarray]


def draw_ranges(
    stream: np.random.RandomState, ranges: dict[str, tuple[float, float]], count: int
) -> Face:
    """Uniform draws (float64 (count,)) from each named range."""
    return {
        name: low + (high - low) * stream.random_sample(count)
        for name, (low, high) in ranges.items()
    }


def render(
    face: Face,
    noise: np.random.RandomState,
    size: int = 48,
    unit: float = 24.0,
    centre: tuple[float, float] = (24.0, 24.0),
) -> np.ndarray:
    """Draw the faces.

    `face` holds every name of TRAITS, CONDITIONS and ACTIONS, float64 (n,). `unit` is the length
    of one frame unit in pixels and `centre` the frame's middle (x, y). `noise` gives the pixel
    noise. Returns uint8 (n, size, size).
    """
    count = len(face["skin"])
    pictures = np.empty((count, size, size), np.uint8)
    # Chunks small enough for the processor's cache; the bytes do not depend on their length.
    step = max(1, 6 * 48 * 48 // (size * size))
    for start in range(0, count, step):
        part = {name: value[start : start + step, None, None] for name, value in face.items()}
        canvas = _draw(part, size, unit, centre)
        canvas = canvas * part["gain"] + part["offset"]
        canvas += part["blur"] * (_binomial(canvas) - canvas)
        canvas += _bell(noise, canvas.shape) * part["noise"]
        pictures[start : start + step] = np.floor(np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5)
    return pictures


def _ramp(distance: np.ndarray, softness: np.ndarray | float) -> np.ndarray:
    """1 inside a shape (positive distance), 0 outside, linear over `softness` at its edge."""
    return np.clip(distance / softness + 0.5, 0.0, 1.0)


def _bump(square: np.ndarray) -> np.ndarray:
    """A smooth hill over the ellipse square < 1: (1 - square)^2 inside, 0 outside."""
    hill = np.maximum(1.0 - square, 0.0)
    return hill * hill


def _paint(canvas: np.ndarray, mask: np.ndarray, tone: np.ndarray | float) -> None:
    canvas += mask * (tone - canvas)


def _band(v: np.ndarray, low: float, high: float) -> slice:
    """The rows in which any picture of the chunk has low < v < high."""
    rows = np.flatnonzero(((v > low) & (v < high)).any(axis=(0, 2)))
    return slice(rows[0], rows[-1] + 1) if len(rows) else slice(0, 0)


def _binomial(canvas: np.ndarray) -> np.ndarray:
    """Blur by the kernel (1 2 1) / 4 along both axes, edges repeated."""
    padded = np.concatenate([canvas[:, :1], canvas, canvas[:, -1:]], axis=1)
    canvas = (padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:]) * 0.25
    padded = np.concatenate([canvas[:, :, :1], canvas, canvas[:, :, -1:]], axis=2)
    return (padded[:, :, :-2] + 2.0 * padded[:, :, 1:-1] + padded[:, :, 2:]) * 0.25


def _bell(stream: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Bell-shaped noise of deviation 1: a sum of four uniform bytes, centred and scaled."""
    count, height, width = shape
    uniform = np.frombuffer(stream.bytes(4 * count * height * width), np.uint8)
    uniform = uniform.reshape(count, 4, height, width).astype(np.int16)
    total = uniform[:, 0] + uniform[:, 1] + uniform[:, 2] + uniform[:, 3]
    return (total - 510) / 147.8


def _draw(face: Face, size: int, unit: float, centre: tuple[float, float]) -> np.ndarray:
    x = ((np.arange(size) + 0.5 - centre[0]) / unit)[None, None, :]
    y = ((np.arange(size) + 0.5 - centre[1]) / unit)[None, :, None]
    # The picture's pixels in the face's own coordinates: shift, turn (rational parametrisation of
    # the rotation, free of sine and cosine), scale.
    square = face["turn"] * face["turn"]
    cosine = (1.0 - square) / (1.0 + square)
    sine = 2.0 * face["turn"] / (1.0 + square)
    right, down = x - face["shift_u"], y - face["shift_v"]
    u = (cosine * right + sine * down) / face["scale"]
    v = (cosine * down - sine * right) / face["scale"]

    canvas = face["background"] + face["background_slope"] * (x + y) + 0.0 * u
    _draw_head(canvas, face, u, v)
    # A slight turn to the side moves the features over the head, most in its middle.
    wide = u / face["face_width"]
    u = u - face["yaw"] * np.maximum(1.0 - wide * wide, 0.0)
    rows = _band(v, -0.95, 0.12)
    _draw_eyes(canvas[:, rows], face, u[:, rows], v[:, rows])
    rows = _band(v, -0.40, 0.30)
    _draw_nose(canvas[:, rows], face, u[:, rows], v[:, rows])
    rows = _band(v, 0.0, 1.05)
    _draw_mouth(canvas[:, rows], face, u[:, rows], v[:, rows])
    canvas *= 1.0 + face["light_u"] * x + face["light_v"] * y
    return canvas


def _draw_head(canvas: np.ndarray, face: Face, u: np.ndarray, v: np.ndarray) -> None:
    softness, width, height = face["softness"], face["face_width"], face["face_height"]
    skin, hair, volume = face["skin"], face["hair"], face["hair_volume"]
    side = np.abs(u)
    # Hair behind the head: an ellipse that long hair carries down beside the cheeks.
    reach = width + 0.5 * volume
    tall = height + volume
    up = np.minimum(v, 0.0) / tall + np.maximum(v, 0.0) * (1.0 - 0.75 * face["hair_length"])
    _paint(canvas, _ramp((1.0 - np.sqrt((u / reach) * (u / reach) + up * up)), softness), hair)
    _paint(canvas, _ramp(np.minimum(0.40 - side, v - 0.7), softness), 0.72 * skin)
    # The face: an ellipse whose jaw tapers, longer where the jaw drops.
    low = np.maximum(v - 0.1, 0.0)
    across = u * (1.0 + face["taper"] * low) / width
    along = (v - low * (0.5 * face["open"])) / height
    square = across * across + along * along
    mask = _ramp(0.8 * (1.0 - np.sqrt(square)), softness)
    # Above the hairline the hair behind the head is left to show.
    mask *= _ramp(v - face["hairline"] - face["fringe"] * u - 0.45 * u * u, softness)
    _paint(canvas, mask, skin * (1.06 - 0.30 * square * square))
    mask *= np.clip(face["beard"], 0.0, 0.5)
    mask *= np.clip((v - 0.22 + 0.5 * side * side) * 3.0, 0.0, 1.0)
    _paint(canvas, mask, 0.8 * hair)


def _draw_eyes(canvas: np.ndarray, face: Face, u: np.ndarray, v: np.ndarray) -> None:
    softness, skin = face["softness"], face["skin"]
    side = np.abs(u)
    x, y = side - face["eye_distance"], v - face["eye_height"]
    wide = x / face["eye_width"]
    _paint(canvas, 0.30 * _bump((x * x) / 0.07 + ((y + 0.04) * (y + 0.04)) / 0.04), 0.4 * skin)
    arc = np.maximum(1.0 - wide * wide, 0.0)
    within = _ramp(face["eye_width"] - np.abs(x), softness)
    upper = -np.maximum(face["lid_rest"] + face["lid"], 0.008) * arc
    lower = (0.058 - 0.030 * face["squint"]) * arc
    eye = _ramp(np.minimum(y - upper, lower - y), softness) * within
    _paint(canvas, eye, 0.30 + 0.62 * skin)
    across = x - face["gaze"] * np.where(u < 0.0, -1.0, 1.0)
    iris = _ramp(0.080 - np.sqrt(across * across + y * y), softness)
    _paint(canvas, eye * iris, face["iris"] * skin)
    _paint(canvas, 0.8 * within * _ramp(0.016 - np.abs(y - upper), softness), 0.25 * skin)
    # The bag below a raised lower lid.
    bag = y - lower - 0.045
    _paint(canvas, 0.5 * face["squint"] * arc * _ramp(0.010 - np.abs(bag), softness), 0.5 * skin)

    x = x - 0.02 + 0.05 * face["knit"]
    wide = x / face["brow_width"]
    height = (
        face["eye_height"] - face["brow_gap"] - face["brow"]
        + (face["inner"] + face["brow_tilt"]) * (wide * 0.6 - 0.15)
        + face["brow_arch"] * (wide * wide - 0.3)
    )  # fmt: skip
    brow = _ramp(face["brow_thickness"] * (1.15 - 0.45 * wide) - np.abs(v - height), softness)
    brow *= _ramp(face["brow_width"] - np.abs(x), softness)
    _paint(canvas, 0.92 * brow, np.minimum(face["hair"], 0.5 * skin))
    # Upright furrows between knitted brows, level ones on the forehead above raised brows.
    furrow = _ramp(0.010 - np.abs(side - 0.055), softness)
    furrow *= _bump((v + 0.36) * (v + 0.36) / 0.02)
    _paint(canvas, 0.9 * np.clip(face["knit"], 0.0, 1.0) * furrow, 0.35 * skin)
    lines = np.abs(np.abs(v + 0.63 + 0.08 * u * u) - 0.05)
    lines = _ramp(0.006 - lines, softness) * _bump(u * u / 0.2)
    _paint(canvas, np.clip(5.0 * face["brow"], 0.0, 0.8) * lines, 0.55 * skin)

    if (face["glasses"] > 0.0).any():
        # Squarish rims: the level lines of a fourth power.
        x, y = (side - face["eye_distance"]) / 0.27, (v - face["eye_height"] - 0.03) / 0.20
        rim = np.sqrt(np.sqrt(x * x * x * x + y * y * y * y))
        frame = np.where(
            face["glasses"] > 0.0, _ramp(0.008 - 0.2 * np.abs(rim - 1.0), softness), 0.0
        )
        _paint(canvas, frame, 0.12)


def _draw_nose(canvas: np.ndarray, face: Face, u: np.ndarray, v: np.ndarray) -> None:
    softness, skin = face["softness"], face["skin"]
    side = np.abs(u)
    tip = face["nose_length"] - 0.05 - 0.04 * face["wrinkle"]
    y = v - tip
    _paint(canvas, 0.35 * _bump(u * u / 0.008 + (y + 0.2) * (y + 0.2) / 0.1), 1.0)
    edge = np.abs(side - 0.055 - 0.25 * np.maximum(y + 0.3, 0.0) * face["nose_width"])
    _paint(canvas, 0.35 * _ramp(0.012 - edge, softness) * _bump(y * y / 0.16), 0.5 * skin)
    x = side - 0.6 * face["nose_width"]
    _paint(canvas, 0.9 * _bump((x * x + y * y * 2.5) / 0.006), 0.25 * skin)
    # A wrinkled nose: two strokes across the bridge, falling away to the sides.
    wrinkle = np.abs(np.abs(v + 0.10 - 0.5 * side) - 0.035)
    wrinkle = _ramp(0.018 - wrinkle, softness) * _bump(u * u / 0.06)
    _paint(canvas, 0.9 * np.clip(face["wrinkle"], 0.0, 1.0) * wrinkle, 0.4 * skin)


def _draw_mouth(canvas: np.ndarray, face: Face, u: np.ndarray, v: np.ndarray) -> None:
    softness, skin = face["softness"], face["skin"]
    side = np.abs(u)
    # The fold from the nose's wing past the mouth's corner.
    fall = v - 0.18
    fold = np.abs(side - 0.17 - 0.62 * fall + 0.25 * fall * fall)
    fold = _ramp(0.020 - fold, softness) * _bump((v - 0.34) * (v - 0.34) / 0.06)
    _paint(canvas, 0.85 * np.clip(face["fold"], 0.0, 1.0) * fold, 0.5 * skin)

    half = face["mouth_width"] + face["width"]
    x = u / half
    arc = np.maximum(1.0 - x * x, 0.0)
    opened = np.maximum(face["open"], 0.0)
    lift = (face["corner"] + face["mouth_rest"]) * (x * x - 0.4)
    middle = face["mouth_height"] - lift - np.maximum(face["asymmetry"] * x, 0.0) * np.abs(x)
    # A wide open mouth is an oval rather than the lens between two parabolas.
    oval = arc + np.minimum(4.0 * opened, 1.0) * (np.sqrt(arc) - arc)
    upper = middle - (0.010 + 0.35 * opened + face["lip"]) * oval
    lower = middle + (0.010 + 0.75 * opened + 0.3 * np.maximum(face["lip"], 0.0)) * oval
    within = _ramp((1.0 - np.abs(x)) * half, softness)
    lip = face["lip_thickness"] * (1.0 - 0.75 * np.clip(face["press"], 0.0, 1.0)) * oval
    lips = _ramp(np.minimum(v - upper + 0.8 * lip, lower + lip - v), softness) * within
    _paint(canvas, 0.9 * lips, face["lip_tone"] * skin)
    gap = _ramp(np.minimum(v - upper, lower - v), 0.7 * softness) * within
    _paint(canvas, 0.95 * gap, 0.16 * skin)
    teeth = (0.14 * np.clip(face["teeth"], 0.0, 1.2)) * oval
    bright = np.clip((lower - upper) * 14.0 - 0.6, 0.0, 1.0)
    _paint(canvas, gap * bright * _ramp(upper + teeth - v, softness), 0.35 + 0.6 * skin)
    # The shadow under the lower lip shapes the chin.
    low = v - lower - lip - 0.07
    _paint(canvas, 0.35 * _bump(u * u / 0.05 + low * low / 0.006), 0.5 * skin)
