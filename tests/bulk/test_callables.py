"""Functions of columns: the same rows out, errors beside them, and one network a process."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import dla.bulk
from dla.errors import UsageError
from support import pixel_models
from support.bulk import Planned


def test_public_names() -> None:
    assert sorted(dla.bulk.__all__) == ["Edges", "Features", "Predict", "Segment"]


def test_predictions_are_those_of_the_classifier(planned: Planned) -> None:
    predict = dla.bulk.Predict(topk=2)
    batch = {"id": np.arange(17), "path": np.array(planned.photos)}
    found = predict(batch)
    assert list(found) == ["id", "path", "class_ids", "labels", "probabilities", "error_code", "error_message"]
    expected = list(dla.load(threads=1).predict(planned.photos, 2))
    assert found["class_ids"] == [[c.class_id for c in p.classes] for p in expected]
    assert found["probabilities"] == [[c.probability for c in p.classes] for p in expected]
    assert found["error_code"] == [None] * 15 + ["not_an_image"] * 2
    assert found["error_message"][16].startswith(f"{planned.photos[16]}: ")
    assert all(len(cells) == 17 for cells in found.values())


def test_tables_and_encoded_photos(planned: Planned) -> None:
    encoded = [Path(photo).read_bytes() for photo in planned.photos[:3]]
    table = pa.table({"jpeg": [*encoded, None]})
    found = dla.bulk.Predict(column="jpeg", topk=1)(table)
    assert found.num_rows == 4
    assert found["error_code"].to_pylist() == [None, None, None, "empty_file"]
    named = dla.bulk.Predict(topk=1)({"path": planned.photos[:3]})
    assert found["class_ids"].to_pylist()[:3] == named["class_ids"]
    (batch,) = pa.table({"path": ["nope.jpg"]}).to_batches()
    assert isinstance(dla.bulk.Predict()(batch), pa.RecordBatch)
    # a batch of errors has the same types as any other
    assert dla.bulk.Predict(column="jpeg")(table.slice(3)).schema == found.schema


def test_features(planned: Planned) -> None:
    features = dla.bulk.Features(at="level5")
    values = features({"path": [planned.photos[0], "nope.jpg"]})["features"]
    (expected,) = dla.load(threads=1).features([planned.photos[0]], "level5")
    assert (values[0] == expected.values).all()
    assert np.isnan(values[1]).all()
    table = features(pa.table({"path": [planned.photos[0], "nope.jpg"]}))
    assert table["features"].null_count == 1
    assert table.schema.field("features").type.list_size == values[0].size


def test_dense(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dla.bulk.callables.load", lambda *a, **o: pixel_models.segmenter())
    found = dla.bulk.Segment("x")({"path": [planned.photos[0], "nope.jpg"]})
    record = pixel_models.segmenter()(planned.photos[0])
    assert (np.asarray(Image.open(io.BytesIO(found["mask"][0]))) == record.mask).all()
    assert dict(zip(found["class_ids"][0], found["shares"][0], strict=True)) == record.shares
    assert found["mask"][1] is None
    monkeypatch.setattr("dla.bulk.callables.load", lambda *a, **o: pixel_models.edge_detector())
    edges = dla.bulk.Edges("x", threshold=0.4)(pa.table({"path": [planned.photos[0], "nope.jpg"]}))
    boundaries = pixel_models.edge_detector()(planned.photos[0], threshold=0.4)
    assert edges["share"].to_pylist() == [boundaries.lines.mean(), None]


def test_they_travel_without_their_network(planned: Planned) -> None:
    predict = dla.bulk.Predict(topk=1)
    before = predict({"path": planned.photos[:2]})
    data = pickle.dumps(predict)
    assert len(data) < 1000
    assert pickle.loads(data).network is None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (after,) = pool.map(predict, [{"path": planned.photos[:2]}])
    assert after == before


def test_wrong_batches() -> None:
    with pytest.raises(UsageError, match="the batch has no column bytes or path. It has: image"):
        dla.bulk.Predict()({"image": []})
    with pytest.raises(UsageError, match="read_options has pixels. Allowed: allow_truncated"):
        dla.bulk.Predict(read_options={"pixels": 3})
    with pytest.raises(UsageError, match="topk is 0"):
        dla.bulk.Predict(topk=0)({"path": ["x"]})
