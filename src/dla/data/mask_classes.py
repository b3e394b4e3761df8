"""The classes of masks: `classes.json`, CVAT's `labelmap.txt`, or the ids that masks hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dla.errors import DamagedError, UsageError
from dla.storage.files import JsonObject, read_bytes, read_json
from dla.types import Array

IGNORED = 255  # the usual id of pixels without a class
UNKNOWN = -1
_MOST_IDS = 2**16
_VOC_BORDER = (224, 224, 192)  # id 255 in VOC's palette

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """The classes of a set of masks. A class's index is its position in `class_ids`.

    `stored_ids` are the values that the masks have for each class, and `ignore_index` the value, in files and in what
    `lookup` gives, of pixels that are left out of losses and metrics. `colors` are of each class, if known, and
    `ignored_colors` of ignored pixels, in RGB masks. `note` says how the classes were found, if no file names them.
    """

    class_ids: tuple[str, ...]
    stored_ids: tuple[int, ...]
    ignore_index: int = IGNORED
    colors: tuple[Color, ...] | None = None
    ignored_colors: tuple[Color, ...] = ()
    note: str | None = None

    def lookup(self) -> Array:
        """Return the class index of each stored id, (65536,) of int32: `ignore_index`, or `UNKNOWN` for no class."""
        table = np.full(_MOST_IDS, UNKNOWN, np.int32)
        table[list(self.stored_ids)] = np.arange(len(self.stored_ids))
        table[self.ignore_index] = self.ignore_index
        return table

    def known(self) -> str:
        """Return the ids that masks may hold, for messages."""
        ids = self.stored_ids
        consecutive = list(ids) == list(range(ids[0], ids[0] + len(ids)))
        named = f"{ids[0]} to {ids[-1]}" if consecutive and len(ids) > 1 else ", ".join(str(i) for i in ids)
        return f"{named} and {self.ignore_index} (ignored)"


def find_mask_classes(folders: Sequence[Path]) -> MaskClasses | None:
    """Return the classes that a file in one of the folders names, or None if there is none.

    Args:
        folders: the data's folder, and those of its splits.

    Raises:
        UsageError: there are several such files.
        UnavailableError: the file is damaged (DamagedError), or cannot be read.
    """
    files = [folder / name for folder in folders for name in ("classes.json", "labelmap.txt")]
    files = [file for file in dict.fromkeys(files) if file.is_file()]
    if len(files) > 1:
        raise UsageError(f"both {files[0]} and {files[1]} name the classes. Keep one, beside the splits")
    if not files:
        return None
    return _from_json(files[0]) if files[0].suffix == ".json" else _from_labelmap(files[0])


def classes_of_ids(found: Iterable[int]) -> MaskClasses:
    """Return the classes of masks that no file describes, from all ids that they hold. `note` says what was assumed.

    Raises:
        UsageError: there is no id but the ignored one, or there are too many.
    """
    ids = tuple(sorted(set(found) - {IGNORED}))
    if ids == (0,) and IGNORED in set(found):
        note = "the masks hold 0 and 255 alone: these are two classes, background and foreground; no pixel is ignored"
        return MaskClasses(("background", "foreground"), (0, 255), _MOST_IDS - 1, note=note)
    if not ids:
        raise UsageError("the masks hold no id but 255, so there are no classes. Write a classes.json, or other masks")
    if len(ids) > IGNORED:
        raise UsageError(f"the masks hold {len(ids):,} ids. Name the classes in a classes.json, or use fewer")
    shown = ", ".join(str(i) for i in ids[:5]) + (f", ... {ids[-1]}" if len(ids) > 5 else "")
    note = f"no classes.json names the classes: the {len(ids):,} ids in the masks are ({shown}); 255 is ignored"
    return MaskClasses(tuple(str(i) for i in ids), ids, note=note)


def _from_json(path: Path) -> MaskClasses:
    root = JsonObject(read_json(path), str(path))
    names = root.get(
        "classes", list, "names of classes", lambda v: bool(v) and all(isinstance(n, str) and n for n in v)
    )
    ignored = root.get("ignore_index", int, "an id from 0 to 65535", lambda i: 0 <= i < _MOST_IDS, IGNORED)
    colors = root.get("colors", list, "a list of [red, green, blue] for each class", _are_colors, None)
    if colors is not None and len(colors) != len(names):
        raise root.error(f"it has {len(names)} classes and {len(colors)} colors. Give one color for each class")
    return _checked(path, names, None if colors is None else [tuple(color) for color in colors], ignored)


def _are_colors(values: list[Any]) -> bool:
    return all(
        isinstance(color, list) and len(color) == 3 and all(type(c) is int and 0 <= c <= 255 for c in color)
        for color in values
    )


def _from_labelmap(path: Path) -> MaskClasses:
    names, colors = [], []
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is not UTF-8 text (byte {error.start:,})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        values = rest.partition(":")[0].split(",")
        if not name or len(values) != 3 or not all(v.strip().isdecimal() and int(v) <= 255 for v in values):
            raise DamagedError(f'{path}, line {number}: "{line}" is not name:red,green,blue::, as CVAT writes it')
        names.append(name)
        colors.append((int(values[0]), int(values[1]), int(values[2])))
    if not names:
        raise DamagedError(f"{path} names no classes")
    found = _checked(path, names, colors, IGNORED)
    border = () if _VOC_BORDER in colors else (_VOC_BORDER,)
    return MaskClasses(found.class_ids, found.stored_ids, IGNORED, found.colors, border)


def _checked(path: Path, names: list[str], colors: list[Color] | None, ignored: int) -> MaskClasses:
    """Return the classes; the last entry is no class if it is the ignored one, as CamVid's void."""
    for what, entries in (("class", names), ("color", colors or [])):
        twice = [entry for entry, count in Counter(entries).items() if count > 1]
        if twice:
            raise DamagedError(f"{path}: the {what} {twice[0]} is there twice. Give each class one of its own")
    if ignored < len(names) - 1:
        raise DamagedError(
            f'{path}: ignore_index is {ignored}, which is the class "{names[ignored]}". Allowed: an id that no class '
            f"has, such as 255, or the last one, {len(names) - 1}"
        )
    count = ignored if ignored == len(names) - 1 else len(names)
    if not count:
        raise DamagedError(f'{path}: its only class, "{names[0]}", is the ignored one')
    return MaskClasses(
        tuple(names[:count]),
        tuple(range(count)),
        ignored,
        None if colors is None else tuple(colors[:count]),
        () if colors is None else tuple(colors[count:]),
    )
