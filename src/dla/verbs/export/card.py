"""The exported folder's README.md: what the file is, what goes in and comes out, how it was checked."""

from __future__ import annotations

from dla.records import ExportReport, ModelInfo
from dla.verbs.export.compare import AGREEMENT, DIFFERENCE, LEVEL
from dla.verbs.export.forms import FORMS, Name, Source
from dla.version import __version__

__all__ = ["card"]


def card(name: Name, source: Source, info: ModelInfo, report: ExportReport) -> str:
    """Its text."""
    form, p = FORMS[name], source.preprocessing
    size = f"{p.size[0]}x{p.size[1]}"
    if source.takes_photos:
        takes = "`pixels`, uint8 (N, H, W, 3): RGB photos of one size, any. They are resized and cropped inside"
    else:
        free = " N, H and W are free" if form.any_size else " N is free"
        free += ", so are H and W above the network's stride." if source.above_stride and not form.any_size else "."
        takes = f"`pixels`, uint8 (N, {p.size[0]}, {p.size[1]}, 3): RGB, resized and cropped as `use.py` does.{free}"
    facts = {
        "network": f"{info.architecture}, {info.params / 1e6:.1f} M parameters, {info.macs / 1e9:.2f} GMACs",
        "weights": f"{report.model}, SHA-256 `{report.sha256}`",
        "licence": info.licence or "not stated",
        "restrictions": info.restrictions,
        "trained on": info.dataset,
        "takes": takes,
        "gives": f"`probabilities`, float32 (N, {info.num_classes}), each row summing to 1",
        "preprocessing": f"{size}, {p.crop_mode} crop of {p.crop_pct:g}, {p.interpolation}, EXIF orientation: {p.exif}",
        "precision": _precision(source),
        "temperature": f"{source.temperature:g}" if source.temperature != 1 else None,
        "needs": f"`{form.packages[0]}`; `use.py` also numpy and pillow",
    }
    lines = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return f"""\
# {info.model} for {form.title}

Written by dla {__version__}. `python use.py PHOTO` prints the five likeliest classes of a photo. Labels, class ids and
most of this are in `{report.file}` too.

| | |
| --- | --- |
{lines}

## Checked

{_checked(report)}{_gates(report)}
"""


def _gates(report: ExportReport) -> str:
    """How good an int8 form is beside fp32."""
    return "".join(f"\n\nBeside fp32: {gate}." for gate in report.gates)


def _checked(report: ExportReport) -> str:
    count, same = report.pictures, report.pictures - len(report.same_flips)
    text = f"""\
With {report.runtime}, beside {report.against}: {count} pictures made of {report.photos} photos,
{", ".join(map(str, report.batches))} at a time.

| | found | allowed |
| --- | --- | --- |
| same first class on the same pixels | {same} of {count} | all |
| largest difference of a probability on the same pixels | {report.largest_difference:.1e} | {DIFFERENCE:g} |"""
    if report.largest_level is None or report.photo_flips is None:
        return text
    flips = "".join(
        f"\n\n{flip.picture}: {flip.found} where it was {flip.expected}, more probable by {flip.margin:.1e}."
        for flip in report.photo_flips
    )
    return f"""{text}
| largest difference of a pixel made of a photo | {report.largest_level} of 255 | {LEVEL} |
| same first class from the photo | {count - len(report.photo_flips)} of {count} | {100 * AGREEMENT:g} % |{flips}"""


def _precision(source: Source) -> str | None:
    if source.in_int8 is None:
        return None
    care = source.in_int8.how["with_care"]
    exact = "the first layer, the last and those that int8 would hurt" if care else "the first layer and the last"
    return f"int8; {exact} in fp32"
