"""`POST /v1/explain`: the records and pictures of `Classifier.explain` and `Classifier.activations`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import dla
from support.photos import COFFEE
from support.served import Running, serving

PHOTO = COFFEE.read_bytes()


@pytest.fixture(scope="module")
def classifier() -> dla.Classifier:
    return dla.load(engine="torch")


@pytest.fixture(scope="module")
def service(classifier: dla.Classifier) -> Iterator[Running]:
    with serving(classifier) as running:
        yield running


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {}),
        ("?class=teapot", {"class_id": "teapot"}),
        ("?class=n04398044&against=espresso&at=level4", {"class_id": "teapot", "against": "espresso", "at": "level4"}),
    ],
)
def test_the_record_is_that_of_the_library(
    service: Running, classifier: dla.Classifier, query: str, options: dict[str, str]
) -> None:
    found, expected = service.record(f"/v1/explain{query}", PHOTO), classifier.explain(PHOTO, **options).to_dict()
    assert np.allclose(found.pop("values"), expected.pop("values"), atol=1e-4)
    numbers = ("logit", "probability", "bias")
    for one, other in ((found, expected), (found.pop("against", {}), expected.pop("against", {}))):
        for name in numbers:
            assert one.pop(name, None) == pytest.approx(other.pop(name, None), abs=1e-4)
    assert found == expected


def test_the_picture_is_the_overlay(service: Running, classifier: dla.Classifier) -> None:
    status, headers, body = service.ask("POST", "/v1/explain", PHOTO, {"Accept": "image/png"})
    assert (status, headers["content-type"]) == (200, "image/png")
    ours, theirs = (np.asarray(i, int) for i in (Image.open(io.BytesIO(body)), classifier.explain(PHOTO).overlay()))
    assert np.abs(ours - theirs).max() <= 1


def test_all_nodes_come_with_one_request(service: Running, classifier: dla.Classifier) -> None:
    found, expected = service.record("/v1/explain?at=nodes", PHOTO), classifier.activations(PHOTO)
    assert [node["name"] for node in found["nodes"]] == [node.name for node in expected.nodes]
    for node, other in zip(found["nodes"], expected.nodes, strict=True):
        assert np.allclose(node["values"], other.map, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("class=tepot", "Nearest: teapot"),
        ("against=tepot", "Nearest: teapot"),
        ("at=level9", 'no node of this network is called "level9"'),
        ("at=pre_logits", "has no places to show"),
        ("at=nodes&class=teapot", "at=nodes is about no class"),
        ("klass=teapot", "class"),
        (f"class={quote('x' * 5000)}", "no class of this network is called"),
    ],
)
def test_what_is_asked_wrongly_is_told(service: Running, query: str, words: str) -> None:
    status, _, answer = service.ask("POST", f"/v1/explain?{query}", PHOTO)
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == (400, "bad_request")
    assert words in error["message"]


def test_what_is_no_photo_has_a_record_too(service: Running) -> None:
    for query, schema in (("", "dla.explain/1"), ("?at=nodes", "dla.activations/1")):
        status, _, answer = service.ask("POST", f"/v1/explain{query}", b"no photo")
        record = json.loads(answer)
        assert (status, record["schema"], record["error"]["code"]) == (422, schema, "not_an_image")


def test_names_are_checked_before_the_body_is_read(service: Running) -> None:
    for query, code in (("class=tepot", "bad_request"), ("at=level9", "bad_request"), ("class=teapot", "no_photo")):
        assert json.loads(service.ask("POST", f"/v1/explain?{query}", b"")[2])["error"]["code"] == code
