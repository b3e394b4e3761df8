"""Photos paired with their masks, or with annotators' boundary maps, in the usual layouts of folders and tables.

Pairs are made by name, never by order: `images/a/b.jpg` belongs to `masks/a/b.png`, and to `boundaries/a/b_3.png`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dla.data.dataset import Unreadable, by_usual_names, divide, relative_names, val_name
from dla.data.sources import DataOptions, read_table, split_word
from dla.errors import UnavailableError, UsageError
from dla.images.find import PhotoFinder, is_kind, list_entries

PairTask = Literal["segment", "edges"]
TARGETS: dict[PairTask, str] = {"segment": "masks", "edges": "boundaries"}
_VOC = ("JPEGImages", "SegmentationClass")
_CITYSCAPES = ("leftImg8bit", "gtFine")
_LAYOUTS = {
    "segment": "train/ and val/, each with images/ and masks/; images/ and masks/ alone; a CSV with the columns image "
    "and mask; VOC's JPEGImages/ and SegmentationClass/; Cityscapes' leftImg8bit/ and gtFine/",
    "edges": "train/ and val/, each with images/ and boundaries/, or images/ and boundaries/ alone, with "
    "boundaries/<photo>_<annotator>.png",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A photo and its mask, or the boundary maps of its annotators: paths. `name` is the photo's, in messages."""

    name: str
    photo: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Files that make no pair. `kind` is missing_mask, missing_annotators, missing_image, two_masks or two_images."""

    kind: str
    names: tuple[str, ...]
    message: str


@dataclass
class PairSource:
    """The pairs of one split, sorted by name, and the files that make none. `notes` are sentences for the user."""

    pairs: list[Pair] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Return the names of the pairs."""
        return [pair.name for pair in self.pairs]


@dataclass(frozen=True, slots=True)
class PairSplits:
    """The pairs to train and to validate with. `split_method` says how they were divided.

    `unreadable` are the pairs, and the files without a pair, that `without_faulty_pairs` left out.
    """

    train: PairSource
    val: PairSource
    split_method: str
    notes: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


def find_pairs(data: str | Path, task: PairTask, options: DataOptions = DataOptions()) -> dict[str, PairSource]:
    """Return the pairs of `data` by the name of the split; the split of a dataset without splits is "".

    Raises:
        UnavailableError: there is no such folder or file, or it is damaged.
        UsageError: it is of no known layout.
    """
    data = Path(data)
    if task == "segment" and data.suffix.lower() in (".csv", ".tsv") and data.is_file():
        return _from_table(data, options)
    if not data.is_dir():
        raise UnavailableError(f"{data} {'is no folder of pairs' if data.exists() else 'does not exist'}")
    target, folders = TARGETS[task], _folders(data)
    if task == "segment" and set(_VOC) <= folders:
        return _from_voc(data)
    if task == "segment" and set(_CITYSCAPES) <= folders:
        return _from_cityscapes(data)
    if {"images", target} <= folders:
        return {"": _from_folders(data / "images", data / target, task)}
    places = {name: data / name for name in sorted(folders) if split_word(name) and target in _folders(data / name)}
    if places:
        return by_usual_names(data, {n: _from_folders(p / "images", p / target, task) for n, p in places.items()})
    raise UsageError(f"{data} has no {target}. Allowed: {_LAYOUTS[task]}.{_conversion_hint(data)}")


def has_pairs(data: str | Path) -> PairTask | None:
    """Return the task of a folder that has images/ and masks/, or boundaries/, itself or in its splits; else None."""
    folder = Path(data)
    if not folder.is_dir():
        return None
    places = [folder, *(folder / name for name in sorted(_folders(folder)) if split_word(name))]
    for task, target in TARGETS.items():
        if any({"images", target} <= _folders(place) for place in places):
            return task
    return None


def check_not_pairs(data: str | Path) -> None:
    """Check that a folder whose photos are to have one class each holds no pairs: `masks` is no class.

    Raises:
        UsageError: it does.
    """
    if task := has_pairs(data):
        what = "segmentation" if task == "segment" else "boundaries"
        raise UsageError(
            f"{data} has images/ and {TARGETS[task]}/, which are pairs for {what}, no classes. Try: --task {task}"
        )


def class_folders(data: str | Path) -> list[Path]:
    """Return the folders where a file may name the classes: that of `data`, and its splits.

    For a folder that is itself a split, such as camvid/val, it is the folder above too.
    """
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    above = [folder.resolve().parent] if split_word(folder.resolve().name) else []
    return [*above, folder, *(folder / name for name in sorted(_folders(folder)) if split_word(name))]


def open_pair_splits(
    data: str | Path,
    task: PairTask,
    options: DataOptions = DataOptions(),
    *,
    group: str | None = None,
    seed: int = 0,
) -> PairSplits:
    """Return the training and validation pairs; a dataset without splits is divided by `seed`.

    Args:
        data: a folder, or a CSV or TSV file.
        task: what the photos are paired with.
        options: the share to hold out, and the columns of a table.
        group: a regular expression for the photos' stems: those for which it captures the same text (a drive, a
            patient) are never divided. A stem that it does not match is a group of its own.
        seed: seeds the division.

    Raises:
        UnavailableError, UsageError: as `find_pairs`; or a part would be empty.
    """
    sources = find_pairs(data, task, options)
    if (whole := sources.get("")) is not None:
        return _divided(Path(data), whole, options.val_share, group, seed)
    name = val_name(sources)
    if "train" not in sources or name is None:
        raise UsageError(f"{data} has {' and '.join(sources)}. Both train and val are needed")
    for split in ("train", name):
        if not sources[split].pairs:
            raise UsageError(f"{data}: {split} has no photo with {TARGETS[task]}")
    return PairSplits(sources["train"], sources[name], f"train and {name} as they are")


def open_pair_split(data: str | Path, task: PairTask, options: DataOptions = DataOptions()) -> PairSource:
    """Return the pairs to validate on: the validation split, or all pairs of a dataset without splits.

    Raises:
        UnavailableError: as `find_pairs`, or the split has no masks.
        UsageError: as `find_pairs`, or there is only train.
    """
    if Path(data).is_dir():
        place = _validated(Path(data), TARGETS[task])
        if "images" in _folders(place) and TARGETS[task] not in _folders(place):
            raise UnavailableError(f"{place} has images/, but no {TARGETS[task]}/ to validate with")
    sources = find_pairs(data, task, options)
    name = "" if "" in sources else val_name(sources)
    if name is None:
        raise UsageError(f"{data} has only train. Name a folder or table with photos to validate on")
    if not sources[name].pairs:
        raise UnavailableError(f"{data}{f': {name}' if name else ''} has no {TARGETS[task]} to validate with")
    return sources[name]


def split_folder(data: str | os.PathLike[str], target: str) -> Path:
    """Return the folder of masks or boundary maps to validate with: that of `data`, or of its validation split.

    Raises:
        UnavailableError: there is none.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise UnavailableError(f"{folder} {'is no folder' if folder.exists() else 'does not exist'}")
    place = _validated(folder, target)
    if target not in _folders(place):
        raise UnavailableError(f"{place} has no {target}/ to validate with")
    return place / target


def _validated(folder: Path, target: str) -> Path:
    """Return the folder to validate on: itself, if it has pairs or no split to validate on, else that split."""
    places = {str(split_word(name)): folder / name for name in _folders(folder) if split_word(name)}
    name = val_name(places)
    whole = {"images", target} <= _folders(folder)
    return folder if whole or name is None or not {"images", target} & _folders(places[name]) else places[name]


def divide_groups(
    keys: Sequence[str], groups: Sequence[str], val_share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Return the rows for training and for validation; rows of one group are on the same side.

    Groups are ranked by a hash of `seed`, and taken for validation until their rows come closest to the share. Each
    side has at least one group, if there are two.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    if len(rows) == len(keys):
        train_N, val_N = divide(np.zeros(len(keys), np.int64), keys, val_share, seed)
        return train_N.tolist(), val_N.tolist()
    ranked = sorted(
        rows, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogateescape")).digest()
    )
    sizes = np.cumsum([len(rows[group]) for group in ranked[:-1]])
    count = int(np.abs(sizes - val_share * len(keys)).argmin()) + 1 if len(sizes) else 0
    held_out = sorted(row for group in ranked[:count] for row in rows[group])
    return sorted(set(range(len(keys))) - set(held_out)), held_out


def annotators_by_stem(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the boundary maps of each photo: `<stem>_<annotator>.png`, by the photo's stem, sorted."""
    found: dict[str, list[str]] = defaultdict(list)
    for stem, paths in _by_stem(folder).items():
        found[stem.rpartition("_")[0] or stem].extend(paths)
    return {stem: tuple(sorted(paths)) for stem, paths in found.items()}


def _divided(data: Path, whole: PairSource, share: float, group: str | None, seed: int) -> PairSplits:
    keys = relative_names(data, whole.names)
    groups = [_group_of(group, Path(key).stem) for key in keys]
    train, val = divide_groups(keys, groups, share, seed)
    if not train or not val:
        what = f"all {len(keys):,} photos are of one group" if group and keys else f"it has {len(keys):,} pairs"
        raise UsageError(f"{data} cannot be divided for validation: {what}")
    how = f"{len(val) / len(keys):.0%} of the photos held out for validation, by seed {seed}"
    if group is not None:
        how += f", groups by {group} undivided ({len(set(groups)):,})"
    sources = [replace(whole, pairs=[whole.pairs[row] for row in rows]) for rows in (train, val)]
    return PairSplits(sources[0], replace(sources[1], unpaired=[], notes=[]), how, tuple(whole.notes))


def _group_of(pattern: str | None, stem: str) -> str:
    if pattern is None:
        return stem
    try:
        match = re.search(pattern, stem)
        return "".join(match.groups("") or [match[0]]) if match else stem
    except re.error as error:
        raise UsageError(f"the group {pattern!r} is not a regular expression: {error}") from error


def _from_folders(images: Path, targets: Path, task: PairTask) -> PairSource:
    if not images.is_dir():
        raise UsageError(f"{targets.parent} has {targets.name}/, but no images/")
    found = {k: list(v) for k, v in annotators_by_stem(targets).items()} if task == "edges" else _by_stem(targets)
    return _pair_up(_by_stem(images), found, task)


def _pair_up(images: Mapping[str, list[str]], targets: Mapping[str, list[str]], task: PairTask) -> PairSource:
    source, what = PairSource(), "mask" if task == "segment" else "boundary map"
    for stem in sorted({*images, *targets}):
        photos, own = images.get(stem, []), targets.get(stem, [])
        if not photos:
            source.unpaired.append(Unpaired("missing_image", tuple(own), f"no photo is called {stem}"))
        elif len(photos) > 1:
            message = f"{len(photos)} photos are called {stem}, so the {what} belongs to neither"
            source.unpaired.append(Unpaired("two_images", tuple(photos), message))
        elif not own:
            kind = "missing_mask" if task == "segment" else "missing_annotators"
            source.unpaired.append(Unpaired(kind, tuple(photos), f"there is no {what} called {stem}"))
        elif len(own) > 1 and task == "segment":
            source.unpaired.append(Unpaired("two_masks", tuple(own), f"{len(own)} masks are called {stem}"))
        else:
            source.pairs.append(Pair(photos[0], photos[0], tuple(own)))
    return source


def _from_table(path: Path, options: DataOptions) -> dict[str, PairSource]:
    """Read the columns image and mask; files that do not exist make no pair."""
    columns = replace(
        options, image_column=options.image_column or "image", label_column=options.label_column or "mask"
    )
    sources = {}
    for split, rows in read_table(path, columns).items():
        source = PairSource()
        for name, mask in zip(rows.names, rows.labels, strict=True):
            target = os.path.join(path.parent, mask)
            if not os.path.isfile(name):
                source.unpaired.append(Unpaired("missing_image", (target,), f"there is no file {name}"))
            elif not os.path.isfile(target):
                source.unpaired.append(Unpaired("missing_mask", (name,), f"there is no file {target}"))
            else:
                source.pairs.append(Pair(name, name, (target,)))
        sources[split] = source
    return by_usual_names(path, sources)


def _from_voc(data: Path) -> dict[str, PairSource]:
    """Read VOC's layout; the lists in ImageSets/Segmentation name the photos of each split."""
    images, masks = (_by_stem(data / name) for name in _VOC)
    lists = data / "ImageSets" / "Segmentation"
    sources = {}
    for name in ("train", "val", "test"):
        if (file := lists / f"{name}.txt").is_file():
            stems = dict.fromkeys(file.read_text(encoding="utf-8", errors="replace").split())
            chosen = {stem: images.get(stem, []) for stem in stems}
            source = _pair_up(chosen, {stem: masks[stem] for stem in stems if stem in masks}, "segment")
            gone = [stem for stem in stems if stem not in images and stem not in masks]
            source.unpaired += [
                Unpaired("missing_image", (stem,), f"{file} lists it, but it has no file") for stem in gone
            ]
            sources[name] = source
    if sources:
        return sources
    with_masks = {stem: photos for stem, photos in images.items() if stem in masks}  # VOC has masks of a part
    return {"": _pair_up(with_masks, masks, "segment")}


def _from_cityscapes(data: Path) -> dict[str, PairSource]:
    images, masks = (data / name for name in _CITYSCAPES)
    sources = {}
    for name in sorted(_folders(images) & _folders(masks)):
        photos = _by_stem(images / name, lambda stem: stem.removesuffix("_leftImg8bit"))
        own = {
            stem.removesuffix("_gtFine_labelTrainIds"): paths
            for stem, paths in _by_stem(masks / name).items()
            if stem.endswith("_gtFine_labelTrainIds")
        }
        sources[name] = _pair_up(photos, own, "segment")
    if not any(source.pairs for source in sources.values()):
        raise UsageError(
            f"{masks} has no *_gtFine_labelTrainIds.png. Make them with cityscapesScripts' createTrainIdLabelImgs"
        )
    return by_usual_names(data, sources)


def _by_stem(folder: Path, rename: Callable[[str], str] = str) -> dict[str, list[str]]:
    """Return the images below a folder by their path in it without suffix."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in PhotoFinder([str(folder)]):
        found[rename(os.path.splitext(os.path.relpath(path, folder))[0])].append(path)
    return dict(found)


def _folders(folder: Path) -> set[str]:
    return {e.name for e in list_entries(str(folder)) or () if is_kind(e.is_dir) and not e.name.startswith(".")}


def _conversion_hint(data: Path) -> str:
    """Return what converts polygons to masks, if the folder has such files."""
    files = [entry.path for entry in list_entries(str(data)) or () if entry.name.endswith(".json")]
    for file in files[:20]:
        with open(file, "rb") as opened:
            head = opened.read(4096)
        if b'"annotations"' in head or b'"info"' in head:
            return f" {file} looks like COCO polygons: pycocotools' COCO.annToMask makes masks of them"
        if b'"shapes"' in head or b'"imageData"' in head:
            return f" {file} looks like labelme's: labelme's examples/semantic_segmentation/labelme2voc.py converts it"
    return ""
