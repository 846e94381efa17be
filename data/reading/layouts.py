"""What the names of files and folders say: the class and split of an image, and the set it is of.

This is the one description of the layouts that are read. Paths are text, with "/", below the folder
or archive that holds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from data.reading.bounded import quoted
from data.types import CLASSES, JAFFE_CODES, SPLITS
from runtime.errors import UserError

CLASSES_8 = (*CLASSES, "contempt")  # of FER+, AffectNet and the extended CK+
_SYNONYMS = (
    "anger annoyed", "disgusted disgusting", "fearful afraid scared", "happiness joy joyful",
    "sadness", "surprised surprising suprise", "neutrality normal", "contemptuous contempted",
)  # fmt: skip
_CLASS_OF = {word: name for name, words in zip(CLASSES_8, _SYNONYMS, strict=True)
             for word in (name, *words.split())}  # fmt: skip
_CLASS_OF |= {code.lower(): name for code, name in zip(JAFFE_CODES, CLASSES, strict=True)}
# The classes that numbers stand for, from the first number on.
ORDERS = {
    "FER2013": CLASSES_8,
    "RAF-DB": ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"),
    "AffectNet": ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt"),
    "FER+": ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt"),
}
# Words beside that of the split in the name of a folder or table, e.g. FER2013Train, train_class.
_BESIDE = ("(?:fer2013|ferplus|fer|rafdb|raf|affectnet|labels?|list|set|data|images?|imgs?|"
           "class(?:es)?|faces?|aligned|[0-9])*")  # fmt: skip
_SPLIT_WORDS = ("train(?:ing)?", "publictest|val(?:id(?:ation)?)?|dev",
                "(?:private)?test(?:ing)?|eval(?:uation)?")  # fmt: skip
_SPLIT = re.compile(f"{_BESIDE}(?:({')|('.join(_SPLIT_WORDS)})){_BESIDE}")
_COPY = re.compile(r"[ _-]*(\([0-9]+\)|[ _-]copy)$", re.I)
# Suffixes of archives and tables, which may be several.
_ENDINGS = re.compile(r"(\.(csv|tsv|txt|zip|tar|t?gz|t?xz|t?bz2?))+$", re.I)
_WHY = ("by its name", "it is no second copy", "a table comes first, then an archive, a folder",
        "fewest folders are around it", "its name comes first")  # fmt: skip


def plain(name: str) -> str:
    """A name without regard to case, "-", "_" and blanks."""
    return re.sub(r"[\W_]", "", name.lower().replace("+", "plus"))


@lru_cache(4096)
def split_of(name: str) -> str | None:
    """The split that the name of a folder, a table or a value of Usage says."""
    match = _SPLIT.fullmatch(plain(name))
    return SPLITS[(match.lastindex or 1) - 1] if match else None


@lru_cache(4096)
def class_of(name: str) -> str | None:
    """The one of CLASSES_8 that a name means, e.g. "0_Happiness"."""
    return _CLASS_OF.get(plain(name).strip("0123456789"))


@lru_cache(4096)
def number_of(name: str) -> int | None:
    """The number of a class folder, e.g. "3", "class003"."""
    match = re.fullmatch("(?:class|label|emotion)?([0-9]{1,3})", plain(name))
    return int(match[1]) if match else None


def place_of(path: str) -> tuple[str, str | None, str] | None:
    """The folder of the set of the image at `path`, its split if known, and its class folder.

    None if it is in no class folder. The beginning of the file name, `Training_`, `PublicTest_` or
    `PrivateTest_`, says the split first, then the nearest folder above the class folder.
    """
    *folders, file = path.split("/")
    if not folders or split_of(folders[-1]):
        return None
    *above, name = folders
    first, underscore, _ = file.partition("_")
    split = first if underscore and first in SPLITS else None
    at = next((i for i in reversed(range(len(above))) if split_of(above[i])), None)
    if at is not None:
        split = split or split_of(above[at])
        while at > 0 and split_of(above[at - 1]):  # train/train/<class>, as some archives unpack
            at -= 1
    return "/".join(above[:at]), split, name


def are_evident(names: Iterable[str]) -> bool:
    """Whether all names of folders are known classes, or all are numbers."""
    names = list(names)
    return all(map(class_of, names)) or all(number_of(name) is not None for name in names)


def resolve_classes(
    names: Iterable[str], hints: Sequence[str], table: bool
) -> tuple[tuple[str, ...], dict[str, int], str]:
    """The classes that `names` of folders or labels of a table mean.

    `hints` are names of folders around them. Returns the classes in order, the index of each name,
    and a line that says what was decided unless it is evident. FER2013's seven, or these and
    contempt, come in FER2013's order, others sorted. Raises UserError for a name that cannot be
    printed.
    """

    def order(name: str) -> tuple:
        return number_of(name) is None, number_of(name) or 0, name

    names = sorted(set(names), key=order)
    who, meaning = _numbered(names, [plain(hint) for hint in hints], table)
    meaning = meaning or {name: known for name in names if (known := class_of(name))}
    if len(meaning) < len(names):  # classes of their own, of which some may be spelled in two ways
        own = {plain(name) or name: name for name in reversed(names)}
        meaning = {name: own[plain(name) or name] for name in names}
    meant = set(meaning.values()) | set(CLASSES if who == "FER2013" else ())
    published = (classes for classes in (CLASSES, CLASSES_8) if set(classes) == meant)
    classes = next(published, tuple(sorted(meant, key=order)))
    index = {name: classes.index(meaning[name]) for name in names}
    for name in classes:
        if not name.isprintable():
            raise UserError(f"class {quoted(name)}: expected a name that can be printed")
    said = f"{len(classes)} classes: {', '.join(classes)}" if classes != CLASSES else ""
    if who and not (table and classes == CLASSES):
        pairs = ", ".join(f"{name} {meaning[name]}" for name in names)
        said = f"classes numbered in {who}'s order: {pairs}"
    alike = {name: [n for n in names if index[n] == i] for i, name in enumerate(classes)}
    merged = [" and ".join(n) + f" are {c}" for c, n in alike.items() if len({*map(plain, n)}) > 1]
    said = "; ".join([said] * bool(said) + merged)
    return classes, index, said


def _numbered(names: list[str], hints: list[str], table: bool) -> tuple[str, dict[str, str]]:
    """Whose numbers `names` are, and the class of each; nothing if they are names of their own."""
    of = {name: number for name in names if (number := number_of(name)) is not None}
    if len(of) < len(names) or not names:
        return "", {}
    numbers = sorted(set(of.values()))

    def hinted(*starts: str) -> bool:
        return any(hint.startswith(starts) for hint in hints)

    least = int(numbers[0] > 0)
    affectnet = all(re.fullmatch("class00[0-9]", name.lower()) for name in names)
    ferplus = hinted("ferplus", "fer2013plus", "fer2013train", "fer2013valid", "fer2013test")
    fer2013 = hinted("fer2013") and numbers[-1] < 7
    rules = (  # whose numbers, the first of them, and when; the first that fits holds
        ("AffectNet", least, affectnet or hinted("affectnet")),
        ("FER+", 0, ferplus),
        ("RAF-DB", least, hinted("rafdb") or "raf" in hints or numbers == [*range(1, 8)]),
        ("FER2013", 0, table or numbers == [*range(7)] or fer2013),
        ("AffectNet", least, numbers in ([*range(8)], [*range(1, 9)])),
    )
    who, first = next(((who, first) for who, first, fits in rules if fits), ("", 0))
    if numbers[-1] - first >= len(ORDERS.get(who, ())):
        return "", {}
    return who, {name: ORDERS[who][number - first] for name, number in of.items()}


def preference_key(place: str, form: int, exact: Sequence[str], start: str) -> tuple:
    """The key that sorts sets found below one folder by preference, the first to be taken.

    `place` is the path of the set, "" for the folder itself; `form` 0 for a table, 1 for an
    archive, 2 for a folder of splits, 3 for one of known classes and 4 for one of others; `exact`
    and `start` are plain names and the start of names that are preferred.
    """
    parts = [_ENDINGS.sub("", part) for part in place.split("/")]
    stems = [plain(_COPY.sub("", part)) for part in parts]
    match = min(0 if stem in exact else 1 if stem.startswith(start) else 2 for stem in stems)
    if not place:
        match = {2: -1, 3: 1}.get(form, match)
    return (match, any(map(_COPY.search, parts)), form, len(parts), place)


def describe_choice(keys: Sequence[tuple]) -> str:
    """A phrase that says which of several sets was taken, the first of the keys, and why."""
    taken, second = keys[:2]
    why = next(why for why, a, b in zip(_WHY, taken, second, strict=True) if a != b)
    others = ", ".join(key[-1] or "." for key in keys[1:4]) + (", ..." if keys[4:] else "")
    return f"holds several sets; {taken[-1] or '.'} is read ({why}), not {others}"
