"""Synthetic sets shaped like CK+48 and JAFFE, for the cross-dataset tests.

Unlike in the synthetic FER2013, a subject has several pictures with one identity. As these are
posed, expressions are clear, light is even and labels are correct.
"""

from __future__ import annotations

import numpy as np
import torch

from data.synthetic.faces import ACTIONS, CONDITIONS, TRAITS, Face, draw_ranges, render
from data.synthetic.fer2013 import class_labels, express, random_stream
from data.types import CLASSES, JAFFE_CODES, Faces

# CK+'s sequences of each class.
CK48_SEQUENCES = (45, 59, 25, 69, 28, 83, 18)
# The same expressions under the names of the drawing's table.
_CK48_EXPRESSIONS = ["angry", "disgust", "fear", "happy", "sad", "surprise", "contempt"]
JAFFE_SUBJECTS = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")

# Little pose, even light, little noise.
_STUDIO = {
    "shift_u": (-0.05, 0.05),
    "shift_v": (-0.05, 0.05),
    "scale": (0.97, 1.06),
    "turn": (-0.04, 0.04),
    "yaw": (-0.07, 0.07),
    "background": (0.25, 0.75),
    "background_slope": (-0.05, 0.05),
    "light_u": (-0.10, 0.10),
    "light_v": (-0.06, 0.06),
    "gain": (0.85, 1.05),
    "blur": (0.0, 0.4),
    "noise": (0.004, 0.020),
}


def draw_ck48(seed: int = 0, subjects: int = 20, sequences: int = 60) -> Faces:
    """Draw a set shaped like CK+48: three frames of rising intensity of each sequence.

    Images 48x48, labels in the order of CK_CLASSES in shares like CK+'s, names such as
    `S010_004_00000017.png` (subject, sequence, frame); sorted by name.
    """
    stream = random_stream(seed, 3, 0)
    labels = class_labels(stream, CK48_SEQUENCES, sequences)
    # Subjects in turn, so that each has as many sequences as any other, give or take one.
    owners = np.sort(np.arange(sequences) % subjects, kind="stable")
    numbers = np.arange(sequences) - np.searchsorted(owners, owners) + 1
    last = 9 + np.floor(25 * stream.random_sample(sequences)).astype(np.int64)
    face = _people(stream, subjects, owners)
    face.update(draw_ranges(stream, {**CONDITIONS, **_STUDIO}, sequences))
    pure = np.zeros(sequences)
    full = 0.75 + 0.3 * stream.random_sample(sequences)
    face.update(express(stream, _CK48_EXPRESSIONS, labels, full, labels, pure))

    frames = np.tile(np.arange(3), sequences)
    face = {name: np.repeat(value, 3) for name, value in face.items()}
    for action in ACTIONS:
        face[action] = face[action] * (0.60 + 0.20 * frames)
    for name in ("shift_u", "shift_v"):
        face[name] = face[name] + 0.01 * (2.0 * stream.random_sample(3 * sequences) - 1.0)
    images = render(face, random_stream(seed, 3, 1))
    people = [f"S{5 + 3 * owner:03d}" for owner in np.repeat(owners, 3)]
    names = [
        f"{person}_{number:03d}_{frame:08d}.png"
        for person, number, frame in zip(
            people, np.repeat(numbers, 3), np.repeat(last, 3) - 2 + frames, strict=True
        )
    ]
    return _faces(images, np.repeat(labels, 3), names, people, [name[:8] for name in names])


def draw_jaffe(seed: int = 0, takes: int = 3) -> Faces:
    """Draw a set shaped like JAFFE: ten women, each expression in `takes` takes.

    Images 256x256, of which the box (56, 76, 204, 224) frames the face as FER2013 does; labels in
    the order of FER2013's classes; names such as `KA.AN1.39.tiff` (subject, expression and take,
    number), sorted by number.
    """
    stream = random_stream(seed, 4, 0)
    people, classes = len(JAFFE_SUBJECTS), len(CLASSES)
    count = people * classes * takes
    owners = np.repeat(np.arange(people), classes * takes)
    labels = np.tile(np.repeat(np.arange(classes, dtype=np.int64), takes), people)
    face = _people(stream, people, owners)
    face.update(draw_ranges(stream, {**CONDITIONS, **_STUDIO, "softness": (0.03, 0.05)}, count))
    for trait, low, high in (("hair", 0.03, 0.10), ("skin", 0.58, 0.74), ("hair_length", 0.5, 1.0)):
        share = (face[trait] - TRAITS[trait][0]) / (TRAITS[trait][1] - TRAITS[trait][0])
        face[trait] = low + (high - low) * share
    face["beard"] = face["glasses"] = np.full(count, -1.0)
    neutral = labels == CLASSES.index("neutral")
    intensity = np.where(neutral, 0.0, 0.55 + 0.5 * stream.random_sample(count))
    face.update(express(stream, list(CLASSES), labels, intensity, labels, np.zeros(count)))

    # One frame unit is half the box's side; the frame's middle is the box's.
    images = render(face, random_stream(seed, 4, 1), size=256, unit=74.0, centre=(130.0, 150.0))
    subjects = [JAFFE_SUBJECTS[owner] for owner in owners]
    names = [
        f"{subject}.{JAFFE_CODES[label]}{index % takes + 1}.{index + 1}.tiff"
        for index, (subject, label) in enumerate(zip(subjects, labels, strict=True))
    ]
    return _faces(images, labels, names, subjects, [name[:5] for name in names])


def _people(stream: np.random.RandomState, count: int, owners: np.ndarray) -> Face:
    """The traits of `count` people, one row for each picture by its owner."""
    return {name: value[owners] for name, value in draw_ranges(stream, TRAITS, count).items()}


def _faces(images: np.ndarray, labels: np.ndarray, *columns: list[str]) -> Faces:
    return Faces(torch.from_numpy(images[:, None]), torch.from_numpy(labels), *columns)
