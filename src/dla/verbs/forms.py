"""Where the int8 form of a network is kept: in its folder, where that is the user's own, else in the cache folder.

A network that comes along carries one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dla.engines import cache
from dla.engines.graph import Network
from dla.errors import DamagedError, UnavailableError
from dla.verbs.network import Model
from dla.weights.folder import write_files

if TYPE_CHECKING:
    from dla.engines.int8 import Form

__all__ = ["FILE", "KIND", "find_form", "keep_form"]

FILE = "int8.zip"  # beside the weights
KIND = "int8"  # of what is remembered


def find_form(network: Network, model: Model, *, gated: bool) -> Form | None:
    """The form that is kept for these very weights. With `gated` only one that passed its gate on such a CPU, or None.

    Raises:
        UnavailableError: without `gated`, there is none.
        DamagedError: it is there, but not whole.
    """
    form = _kept(network, model)
    if gated:
        return form if form is not None and form.passed_here else None
    if form is None:
        raise UnavailableError(
            f"{model.origin} has no int8 form. Make one from a few hundred photos: "
            f"dla export {model.origin.partition('@')[0]} --to openvino --precision int8 --calibrate PHOTOS -o OUT"
        )
    return form


def keep_form(form: Form, model: Model) -> str:
    """Keep it where `find_form` looks; says where.

    Raises:
        OSError: of the disk.
    """
    own = _own_folder(model)
    if own is not None:
        write_files({own / FILE: form.to_bytes()})
        return str(own / FILE)
    cache.remember(KIND, form.content, form.to_bytes())
    return "the cache folder (dla cache)"


def _kept(network: Network, model: Model) -> Form | None:
    from dla.engines.int8 import parse_form

    in_cache = cache.recall(KIND, network.content) if _own_folder(model) is None else None
    if in_cache is not None:
        form = parse_form(in_cache, "the int8 form in the cache folder")
    elif model.folder is not None and (model.folder / FILE).is_file():
        form = parse_form(_read(model.folder / FILE), str(model.folder / FILE))
    else:
        return None
    return form if form.content == network.content else None  # else it is of weights that were there before


def _own_folder(model: Model) -> Path | None:
    """The network's folder, if it is the user's."""
    return None if model.origin.startswith("shipped:") else model.folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
