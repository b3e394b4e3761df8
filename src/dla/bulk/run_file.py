"""`run.json` of a bulk run: everything that decides a bit of its records. It has neither a time nor a host."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dla.bulk.parts import Part, PartFormat, part_format, part_name, read_part
from dla.errors import UnavailableError, UsageError
from dla.storage.files import JsonObject, errors_name, json_shown, parse_object, write_files
from dla.storage.stores import is_remote, open_store
from dla.version import __version__

RUN_SCHEMA = "dla.bulk.run/1"
RUN_FILE = "run.json"
_METADATA_BYTES = 2**20  # at the end of a part, in which all that it says of itself stands
_PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "torch"}


def installed_versions(engine: str, command: str) -> dict[str, str]:
    """Return the versions of the packages that decide the records of a command on an engine."""
    names = ["numpy", "pillow", "pyarrow", _PACKAGES[engine]] + ["scipy"] * (command == "edges")
    return {"dla": __version__, **{name: version(name) for name in names}}


@dataclass(frozen=True)
class BulkRun:
    """A run. `config` is the content of `run.json`."""

    config: dict[str, Any]

    @property
    def command(self) -> str:
        """The command: predict, features, segment or edges."""
        return str(self.config["command"])

    @property
    def settings(self) -> dict[str, Any]:
        """The options that the records depend on."""
        return dict(self.config["settings"])

    @property
    def rows(self) -> int:
        """The number of photos."""
        return int(self.config["manifest"]["rows"])

    @property
    def rows_per_shard(self) -> int:
        """The number of photos of a shard."""
        return int(self.config["rows_per_shard"])

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> range:
        """Return the rows of a shard."""
        return range(self.rows)[shard * self.rows_per_shard : (shard + 1) * self.rows_per_shard]

    @property
    def part_format(self) -> PartFormat[Any]:
        """How the records stand in the parts."""
        return part_format(self.command, self.settings)

    @cached_property
    def content(self) -> bytes:
        """The bytes of `run.json`."""
        return f"{json.dumps(self.config, indent=1, sort_keys=True)}\n".encode()

    @cached_property
    def sha256(self) -> str:
        """The hash of what decides the records: not of the instruction set."""
        config = {key: value for key, value in self.config.items() if key != "instructions"}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()

    def check_same(self, other: BulkRun, output: str) -> None:
        """Check that `output`, which has this run, can be continued by the other one.

        Raises:
            UsageError: something differs that the records depend on.
        """
        way_out = "Give the same ones, or another --output"
        for key, what in (("command", "the command"), ("manifest", "the manifest"), ("model", "the model")):
            if self.config[key] != other.config[key]:
                raise UsageError(
                    f"{output} was started with {_differs(what, self.config[key], other.config[key])}. {way_out}"
                )
        for group in ("settings", "versions"):
            old, new = self.config[group], other.config[group]
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    what = key if group == "settings" else f"{key} of version"
                    raise UsageError(f"{output} was started with {what} {json_shown(old.get(key))}, and this is "
                                     f"{json_shown(new.get(key))}. {way_out}")  # fmt: skip
        if self.rows_per_shard != other.rows_per_shard:
            raise UsageError(f"{output} was started with rows_per_shard {self.rows_per_shard}, and this is "
                             f"{other.rows_per_shard}. {way_out}")  # fmt: skip


def _differs(what: str, old: Any, new: Any) -> str:
    if isinstance(old, str):
        return f"{what} {old}, and this is {new}"
    name = "sha256" if "sha256" in old else "weights_sha256"
    return f"another {what.removeprefix('the ')} ({str(old.get(name))[:12]}) than this one ({str(new.get(name))[:12]})"


class OutputFolder:
    """The folder of a bulk run, of this machine or in a store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or uri
        self.store = open_store(self.uri) if is_remote(self.uri) else None

    def path(self, name: str) -> str:
        """Return the path or address of a file in it."""
        return f"{self.uri}/{name}"

    def create(self) -> None:
        """Create it.

        Raises:
            UsageError: there is a file of that name.
        """
        if self.store is None:
            try:
                os.makedirs(self.uri, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise UsageError(f"--output {self.uri} is a file. Give a folder, or an address in a store") from None

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None if there is none."""
        try:
            if self.store is not None:
                return self.store.read(self.path(name))
            with open(self.path(name), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which appears when it is complete."""
        if self.store is not None:
            self.store.write(self.path(name), data)
        else:
            with errors_name(self.path(name)):
                write_files({Path(self.path(name)): data})

    def shards(self) -> set[int]:
        """Return the numbers of the shards that have a part."""
        if self.store is not None:
            names = [stored.uri.rpartition("/")[2] for stored in self.store.walk(self.uri)]
        else:
            names = os.listdir(self.uri) if os.path.isdir(self.uri) else []
        digits = (name[5:-8] for name in names if name.startswith("part-") and name.endswith(".parquet"))
        return {int(number) for number in digits if number.isdecimal()}

    def remove(self) -> None:
        """Remove the run and its parts; `run.json` last."""
        for name in [*map(part_name, sorted(self.shards())), RUN_FILE]:
            if self.store is not None:
                self.store.remove(self.path(name))
            else:
                Path(self.path(name)).unlink(missing_ok=True)

    def part(self, shard: int, *, metadata_only: bool = False) -> Part:
        """Read a part, or only what its end says of it.

        Raises:
            UnavailableError: there is none, or it is damaged.
        """
        where = self.path(part_name(shard))
        try:
            return read_part(self._source(where, metadata_only), where, metadata_only=metadata_only)
        except FileNotFoundError as error:
            raise UnavailableError(f"{where} does not exist") from error

    def _source(self, where: str, metadata_only: bool) -> Any:
        if self.store is None:
            return where
        import pyarrow as pa

        return pa.BufferReader(self.store.read_end(where, _METADATA_BYTES) if metadata_only else self.store.read(where))

    def run(self) -> BulkRun | None:
        """Return the run that the folder has; None if it has none.

        Raises:
            DamagedError: `run.json` is none.
        """
        data = self.read(RUN_FILE)
        if data is None:
            return None
        root = JsonObject(parse_object(data, self.path(RUN_FILE)), self.path(RUN_FILE))
        root.get("schema", str, RUN_SCHEMA, lambda schema: schema == RUN_SCHEMA)
        root.object("manifest").get("rows", int, "a number", lambda rows: rows > 0)
        root.get("rows_per_shard", int, "a number", lambda rows: rows > 0)
        for name in ("model", "settings", "versions"):
            root.get(name, dict, "an object")
        root.get("command", str, "a command", lambda command: command in ("predict", "features", "segment", "edges"))
        return BulkRun(dict(root.fields))
