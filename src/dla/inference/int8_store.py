"""Where the int8 model of a network is kept: in its folder, where that is the user's own, else in the cache folder.

A network that comes along carries one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dla.engines.graph import Network
from dla.errors import DamagedError, UnavailableError
from dla.inference.traced_model import TracedModel
from dla.storage import cache
from dla.storage.files import write_files

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel

__all__ = ["FILE", "find_quantized", "not_quantized_error", "store_quantized"]


FILE = "int8.zip"  # beside the weights


def find_quantized(network: Network, model: TracedModel) -> QuantizedModel | None:
    """The int8 model that is kept for these very weights, if there is one.

    Raises:
        DamagedError: it is there, but not whole.
    """
    from dla.engines.quantized import parse_quantized

    in_cache = cache.read(cache.INT8, network.content) if _own_folder(model) is None else None
    if in_cache is not None:
        quantized = parse_quantized(in_cache, "the int8 model in the cache folder")
    elif model.folder is not None and (model.folder / FILE).is_file():
        quantized = parse_quantized(_read(model.folder / FILE), str(model.folder / FILE))
    else:
        return None
    return quantized if quantized.content == network.content else None  # else it is of weights that were there before


def not_quantized_error(source: str) -> UnavailableError:
    """What to say where there is none; `source` names the network in the user's words."""
    return UnavailableError(
        f"{source} has no int8 model. Make one from a few hundred photos: "
        f"dla export {source} --to openvino --precision int8 --calibrate PHOTOS -o OUT"
    )


def store_quantized(quantized: QuantizedModel, model: TracedModel) -> str | None:
    """Keep it where `find_quantized` looks; says where, or None where the disk does not let us."""
    own = _own_folder(model)
    if own is None:
        kept = cache.write(cache.INT8, quantized.content, quantized.to_bytes())
        return "the cache folder (dla cache)" if kept else None
    try:
        write_files({own / FILE: quantized.to_bytes()})
    except OSError:
        return None
    return str(own / FILE)


def _own_folder(model: TracedModel) -> Path | None:
    """The network's folder, if it is the user's."""
    return None if model.origin.startswith("shipped:") else model.folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
