"""Store int8 models: in the model folder, if that is the user's own, else in the cache folder.

The built-in network has its int8 model in its package folder.
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

FILE = "int8.zip"  # in the model folder


def find_quantized(network: Network, model: TracedModel) -> QuantizedModel | None:
    """Return the stored int8 model of exactly these weights, or None.

    Raises:
        DamagedError: it is stored, but damaged.
    """
    from dla.engines.quantized import parse_quantized

    in_cache = cache.read(cache.INT8, network.content) if _own_folder(model) is None else None
    if in_cache is not None:
        quantized = parse_quantized(in_cache, "the int8 model in the cache folder")
    elif model.folder is not None and (model.folder / FILE).is_file():
        quantized = parse_quantized(_read(model.folder / FILE), str(model.folder / FILE))
    else:
        return None
    return quantized if quantized.content == network.content else None  # None: the weights have changed since


def not_quantized_error(source: str) -> UnavailableError:
    """Build the error for a network without an int8 model; `source` is the network as the user named it."""
    return UnavailableError(
        f"{source} has no int8 model. Make one from a few hundred photos: "
        f"dla export {source} --to openvino --precision int8 --calibrate PHOTOS -o OUT"
    )


def store_quantized(quantized: QuantizedModel, model: TracedModel) -> str | None:
    """Store an int8 model where `find_quantized` looks. Return the place, or None if it cannot be written."""
    own = _own_folder(model)
    if own is None:
        written = cache.write(cache.INT8, quantized.content, quantized.to_bytes())
        return "the cache folder (dla cache)" if written else None
    try:
        write_files({own / FILE: quantized.to_bytes()})
    except OSError:
        return None
    return str(own / FILE)


def _own_folder(model: TracedModel) -> Path | None:
    """Return the model folder, if it is the user's own."""
    return None if model.origin.startswith("shipped:") else model.folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
