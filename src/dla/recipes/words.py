"""What jsonargparse says of a value, as a sentence of ours."""

from __future__ import annotations

import re

__all__ = ["in_words"]

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "dict": "a mapping",
          "list": "a list", "NoneType": "null"}  # fmt: skip
_SAID = re.compile(r'Parser key "(?P<key>[^"]+)": (?P<why>.*?)\.? (?:Got|Given) value: ?(?P<value>.*)')


def in_words(message: str) -> str:
    """`Parser key "epochs": Expected a <class 'int'>. Got value: many` as "epochs is many. Allowed: a whole number"."""
    message = " ".join(message.split())
    said = _SAID.fullmatch(message)
    if said is None:
        return message
    return f"{said['key']} is {said['value'] or 'nothing'}. Allowed: {_allowed(said['why'])}"


def _allowed(why: str) -> str:
    if union := re.search(r"Subtypes: \[(.*?)\] Errors:", why):
        why = union[1]
    why = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", lambda m: m[1].replace("'", ""), why)
    why = re.sub(r"<class '(\w+)'>", lambda m: _TYPES.get(m[1], m[1]), why)
    return re.sub(r"tuple with (\d+) elements", r"\1 values", re.sub(r"^Expected an? ", "", why))
