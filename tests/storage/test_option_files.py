"""What jsonargparse says of a value, and what is made of it. An upgrade that words it otherwise fails here first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from jsonargparse import ArgumentError, ArgumentParser

import dla
from dla.storage.option_files import as_dataclass, dotted_types, value_error


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Outer:
    count: int = 1
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    maybe: int | None = None
    either: Literal["x"] | None = None
    sizes: dict[int, int | list[int]] | None = None
    inner: Inner = field(default_factory=Inner)


WRONG = [
    ({"count": "many"}, "count is many. Allowed: a whole number"),
    ({"count": 1.5}, "count is 1.5. Allowed: a whole number"),
    ({"count": ""}, "count is nothing. Allowed: a whole number"),
    ({"count": "Got value: 3"}, "Allowed: a whole number"),
    ({"flag": "maybe"}, "flag is maybe. Allowed: true or false"),
    ({"kind": "c"}, "kind is c. Allowed: a, b"),
    ({"maybe": "x"}, "maybe is x. Allowed: a whole number, null"),
    ({"either": "y"}, "either is y. Allowed: x, null"),
    ({"sizes": {0: "x"}}, "sizes is {0: 'x'}. Allowed: a mapping, null"),
    ({"inner": {"rate": "high"}}, "inner.rate is high. Allowed: a number"),
    ({"inner": {"pair": [1]}}, "inner.pair is [1]. Allowed: a list of 2 values"),
    ({"inner": {"pair": [1, "x"]}}, "inner.pair is x. Allowed: a list of 2 values"),
]


@pytest.mark.parametrize(("values", "said"), WRONG)
def test_a_wrong_value_is_a_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(dla.UsageError) as error:
        as_dataclass(Outer, values)
    assert str(error.value).endswith(said)
    assert "<class" not in str(error.value)
    assert "Parser key" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": None}, "count is null. Allowed: a whole number"),
        ({"kind": None}, "kind is null. Allowed: a, b"),
        ({"inner": {"rate": None}}, "inner.rate is null. Allowed: a number"),
    ],
)
def test_a_field_without_its_value(values: dict[str, Any], said: str) -> None:
    with pytest.raises(dla.UsageError, match=said):
        as_dataclass(Outer, values)


def test_right_values_are_the_dataclass() -> None:
    found = as_dataclass(Outer, {"count": 3, "inner": {"pair": [0.5, 2]}, "sizes": {0: [1, 2]}})
    assert found == Outer(count=3, inner=Inner(pair=(0.5, 2)), sizes={0: [1, 2]})


def test_messages_of_jsonargparse_are_those_that_are_known() -> None:
    """The field in quotes in front, and the value at the end: no more of its words is relied upon."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Outer, None)
    for values, _ in WRONG:
        with pytest.raises(ArgumentError) as error:
            parser.parse_object(values)
        text = str(error.value)
        assert text.startswith('Parser key "')
        assert "Got value:" in text or "Given value:" in text


def test_a_message_in_other_words_stays() -> None:
    assert value_error("The value of epochs\n  is wrong", {"epochs": int}) == "The value of epochs is wrong"
    unknown = 'Parser key "other": Expected it. Got value: 3'
    assert value_error(unknown, {"epochs": int}) == unknown


def test_types_by_dotted_names() -> None:
    assert {"count": int, "flag": bool, "inner.rate": float}.items() <= dotted_types(Outer).items()
    assert "inner" not in dotted_types(Outer)
