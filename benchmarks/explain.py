"""Sanity checks of class activation maps, on labelled photos.

python benchmarks/explain.py val.parquet [--model shipped:tiny200] [--photos 200] [--pairs 100]

The table has columns `image` (bytes of a file) and `synset`, as Tiny ImageNet's. Only photos whose class is answered
right are explained. Each check is compared with what maps without meaning would give:

random head   correlation of the maps of two classifiers over the same features: the network's, and drawn weights'
faithfulness  insertion minus deletion (Petsiuk et al. 2018): the mean probability of the class while its most important
              pixels are shown first, minus that while they are greyed first; for other orders of the pixels, too
pairs         two animals side by side: is the peak of each one's map in its own half?
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

import dla
from dla.inference.explain import class_maps
from dla.types import Array

STEPS = 16
HEADS = 20
ANIMALS = ("n01", "n020", "n021", "n022", "n023", "n024", "n025")  # first digits of the synsets of animals


def photos(path: str, seed: int = 0) -> Iterator[tuple[Image.Image, str]]:
    """Yield photos and their synsets in a drawn order."""
    table = pq.read_table(path, columns=["image", "synset"])
    for row in np.random.default_rng(seed).permutation(len(table)):
        yield Image.open(io.BytesIO(table["image"][row].as_py())).convert("RGB"), table["synset"][row].as_py()


def explained(classifier: dla.Classifier, path: str, count: int) -> Iterator[tuple[Image.Image, dla.Explanation]]:
    """Yield `count` photos whose class is answered right, with their explanations."""
    found = 0
    for photo, synset in photos(path):
        answer = classifier.explain(photo)
        if answer.target is not None and answer.target.class_id == synset:
            yield photo, answer
            found += 1
            if found == count:
                return


def random_head(classifier: dla.Classifier, cases: list[tuple[Image.Image, dla.Explanation]]) -> None:
    features, (weight_KC, _) = classifier.engine.features_at("level5"), classifier.engine.classifier()
    drawn_DC = np.random.default_rng(0).normal(0, weight_KC.std(), (HEADS, weight_KC.shape[1])).astype(np.float32)
    ours, drawn = [], []
    for photo, answer in cases:
        features_Chw = features(classifier.preprocessing.pixels(photo)[None])[0]
        ours.append(answer.map.ravel())
        drawn.append(class_maps(features_Chw, drawn_DC).reshape(HEADS, -1))
    each = [np.abs(np.corrcoef(a, b)[0, 1:]).mean() for a, b in zip(ours, drawn, strict=True)]
    floor = [np.abs(np.corrcoef(b)[0, 1:]).mean() for b in drawn]
    whole = np.abs(np.corrcoef(np.concatenate(ours), np.concatenate(drawn, 1))[0, 1:])
    print(f"random head: mean |r| over the places of all photos {whole.mean():.2f}; within a photo, of {ours[0].size} "
          f"places, {np.mean(each):.2f}, and of two random heads {np.mean(floor):.2f}")  # fmt: skip


def faithfulness(classifier: dla.Classifier, cases: list[tuple[Image.Image, dla.Explanation]]) -> None:
    generator = np.random.default_rng(0)
    height, width = classifier.preprocessing.size
    y, x = np.mgrid[:height, :width]
    centre_HW = -np.hypot(y - height / 2, x - width / 2)
    orders: dict[str, Callable[[Array], Array]] = {
        "class activation map": lambda map_hw: enlarged(map_hw, (height, width)),
        "random map": lambda map_hw: enlarged(generator.random(map_hw.shape, np.float32), (height, width)),
        "centre first": lambda map_hw: centre_HW,
    }
    scores: dict[str, list[float]] = {name: [] for name in orders}
    for photo, answer in cases:
        pixels_HW3 = classifier.preprocessing.pixels(photo)
        for name, order in orders.items():
            scores[name].append(difference(classifier, pixels_HW3, order(answer.map), answer.target.index))
    ours = np.array(scores["class activation map"])
    for name, values in scores.items():
        more = "" if name == "class activation map" else f"; below ours on {np.mean(ours > np.array(values)):.0%}"
        print(f"insertion minus deletion, {name}: {np.mean(values):+.3f}{more}")


def enlarged(map_hw: Array, size: tuple[int, int]) -> Array:
    return np.array(Image.fromarray(map_hw).resize(size[::-1], Image.Resampling.BILINEAR))


def difference(classifier: dla.Classifier, pixels_HW3: Array, values_HW: Array, k: int) -> float:
    """Return insertion minus deletion, over `STEPS` shares of the pixels; hidden ones have the mean colour."""
    rank_HW = (-values_HW).ravel().argsort().argsort().reshape(values_HW.shape)
    grey_HW3 = np.broadcast_to(pixels_HW3.mean((0, 1)).astype(np.uint8), pixels_HW3.shape)
    shares = np.linspace(0, 1, STEPS + 1) * rank_HW.size
    first_NHW1 = (rank_HW < shares[:, None, None])[..., None]
    shown = np.where(first_NHW1, pixels_HW3, grey_HW3), np.where(first_NHW1, grey_HW3, pixels_HW3)
    inserted, deleted = (classifier.probabilities(np.ascontiguousarray(part))[:, k].mean() for part in shown)
    return float(inserted - deleted)


def pairs(classifier: dla.Classifier, path: str, count: int) -> None:
    side = classifier.preprocessing.size[0]
    wide = dla.Preprocessing((side, 2 * side), 1.0, "squash", mean=classifier.preprocessing.mean,
                             std=classifier.preprocessing.std)  # fmt: skip
    double = dataclasses.replace(classifier, preprocessing=wide)
    animals = (case for case in explained(classifier, path, 10**9) if case[1].target.class_id.startswith(ANIMALS))
    right = both = found = 0
    while found < count:
        (left, first), (other, second) = next(animals), next(animals)
        if first.target.class_id == second.target.class_id:
            continue
        page = Image.new("RGB", (2 * side, side))
        page.paste(left.resize((side, side), Image.Resampling.BICUBIC), (0, 0))
        page.paste(other.resize((side, side), Image.Resampling.BICUBIC), (side, 0))
        in_own = [double.explain(page, first.target.class_id).peak[0] < side,
                  double.explain(page, second.target.class_id).peak[0] > side]  # fmt: skip
        right, both, found = right + sum(in_own), both + all(in_own), found + 1
    print(f"pairs: the peak is in its own half in {right} of {2 * count} maps, in both maps of {both} of {count} pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="shipped:tiny200")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=100)
    args = parser.parse_args()
    classifier = dla.load(args.model, engine="openvino")
    cases = list(explained(classifier, args.data, args.photos))
    random_head(classifier, cases)
    faithfulness(classifier, cases)
    pairs(classifier, args.data, args.pairs)
    for name, call in 2 * (("predict", classifier.predict), ("explain", classifier.explain)):
        began = time.process_time()
        for photo, _ in cases:
            call(photo)
        print(f"{name}: {1000 * (time.process_time() - began) / len(cases):.1f} CPU ms a photo")


if __name__ == "__main__":
    main()
