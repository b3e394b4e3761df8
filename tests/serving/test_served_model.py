"""Models of every task behind the service, and a new model in place of the old one, under load."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dla
from dla.errors import UsageError
from dla.images.decode import ReadOptions
from dla.options import ServeOptions
from dla.serving import served_model
from dla.serving.served_model import ServedModel, load_served, model_name
from support.photos import CHELSEA, ROCKET, jpeg, troubled_folder
from support.served import Running, colored, serving, wait_until
from support.small_models import write_dense, write_small

PHOTO = ROCKET.read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small") / "flowers", ["a", "b", "c"], seed=1)


@contextmanager
def serving_folder(folder: Path | str, **options: Any) -> Iterator[Running]:
    def load(settings: ServeOptions) -> ServedModel:
        return load_served(str(folder), partial(dla.load, str(folder), engine="openvino", threads=1), settings)

    with serving(load=load, **options) as running:
        yield running


def test_the_answers_are_those_of_predict(tmp_path: Path) -> None:
    """The built-in network, on a folder with every trouble."""
    troubled_folder(tmp_path / "photos")
    classifier = dla.load(engine="openvino", threads=1)
    with serving_folder("shipped:tiny200") as running:
        for path in sorted((tmp_path / "photos").iterdir()):
            if not path.stat().st_size:
                continue  # a request without a body has no record
            _, _, answer = running.ask("POST", "/v1/predict", path.read_bytes())
            found, expected = json.loads(answer), classifier.predict(path.read_bytes()).to_dict()
            for record in (found, expected):
                for c in record.get("predictions", ()):
                    c["probability"] = pytest.approx(c["probability"], abs=1e-6)
            assert found == expected
        about = json.loads(running.ask("GET", "/v1/model")[2])
        expected = dla.info("shipped:tiny200").to_dict()
        assert (about.pop("model"), about.pop("doors")) == ("mean", ["predict", "features", "explain"])
        for path_of in (about, expected):
            path_of.pop("origin"), path_of.pop("weights"), path_of.pop("model", None)
        assert about == json.loads(json.dumps(expected))


def as_json(record: Any) -> Any:
    return json.loads(json.dumps(record.to_dict()))


def test_a_segmentation_network_answers_with_areas_or_a_mask(tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "seg", ["sky", "tree", "road"])
    photo = jpeg(Image.open(CHELSEA).convert("RGB").resize((96, 64)))
    with serving_folder(folder) as running:
        network = dla.load(str(folder), engine="openvino", threads=1)
        expected = network(photo)
        record = running.record("/v1/segment", photo)
        assert record == as_json(expected)
        status, headers, png = running.ask("POST", "/v1/segment", photo, {"Accept": "image/png"})
        assert (status, headers["content-type"]) == (200, "image/png")
        image = Image.open(io.BytesIO(png))
        assert np.array_equal(np.asarray(image), expected.mask)
        palette = image.getpalette()
        assert palette is not None
        assert palette[:9] == [level for color in network.palette for level in color]
        assert json.loads(running.ask("GET", "/v1/model")[2])["doors"] == ["segment"]
        for path, words in (("/v1/predict", "/v1/segment"), ("/v2/models/mean/infer", "segment")):
            status, _, answer = running.ask("POST", path, photo)
            assert (status, words in answer.decode()) == (404, True)
        for query, words in (("tile=7", "Allowed: 512"), ("size=small", "size is small"), ("threshold=1", "threshold")):
            status, _, answer = running.ask("POST", f"/v1/segment?{query}", photo)
            assert (status, words in answer.decode()) == (400, True)
        smaller = running.record("/v1/segment?size=32", photo)
        assert smaller == as_json(network(photo, size=32))
        status, _, answer = running.ask("POST", "/v1/segment", b"none", {"Accept": "image/png"})
        assert (status, json.loads(answer)["error"]["code"]) == (422, "not_an_image")


def test_a_boundary_network_answers_with_its_share_or_a_picture(tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "edges", ["edge"])
    photo = jpeg(Image.open(CHELSEA).convert("RGB").resize((96, 64)))
    with serving_folder(folder) as running:
        expected = dla.load(str(folder), engine="openvino", threads=1)(photo, threshold=0.3)
        assert running.record("/v1/edges?threshold=0.3", photo) == expected.to_dict()
        _, headers, png = running.ask("POST", "/v1/edges", photo, {"Accept": "image/png"})
        assert headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), expected.probability)
        assert running.ask("POST", "/v1/edges?threshold=2", photo)[0] == 400
        assert running.ask("POST", "/v1/edges?threshold=much", photo)[0] == 400


def reload(running: Running) -> None:
    """What SIGHUP does, until it has an end."""
    counters, loop = running.service.counters, running.service.queue.loop
    before = counters.reloads + counters.reload_failures
    loop.call_soon_threadsafe(running.service.reload)
    wait_until(lambda: counters.reloads + counters.reload_failures > before, 30)


def test_a_new_model_takes_over_without_a_gap(small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, one = tmp_path / "model", small
    two = write_small(tmp_path / "two", ["d", "e", "f", "g"], seed=2)
    shutil.copytree(one, folder)
    known = {
        frozenset(c["class_id"] for c in record["predictions"]): record
        for record in (dla.load(str(f), engine="openvino", threads=1).predict(PHOTO).to_dict() for f in (one, two))
    }
    is_over = threading.Event()
    with serving_folder(folder) as running, ThreadPoolExecutor(2) as pool:

        def client(_: int) -> list[frozenset[str]]:
            seen = []
            with closing(running.connect()) as connection:
                while not is_over.is_set():
                    connection.request("POST", "/v1/predict", PHOTO)
                    answer = connection.getresponse()
                    assert answer.status == 200
                    record = json.loads(answer.read())
                    seen.append(frozenset(c["class_id"] for c in record["predictions"]))
                    found = [(c["class_id"], pytest.approx(c["probability"], abs=1e-5)) for c in record["predictions"]]
                    assert [(c["class_id"], c["probability"]) for c in known[seen[-1]]["predictions"]] == found
            return seen

        clients = [pool.submit(client, n) for n in range(2)]
        wait_until(lambda: running.service.counters.photos["ok"] > 5)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(two / name, folder / name)
        reload(running)  # good
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:5000])
        reload(running)  # half copied
        (folder / "model.safetensors").write_bytes(weights[:-8] + b"\xff" * 8)
        (folder / "config.json").write_text("{")
        reload(running)  # damaged
        shutil.rmtree(folder)
        reload(running)  # gone
        is_over.set()
        seen = [kinds for future in clients for kinds in future.result()]
        assert set(seen) == set(known)
        assert running.record("/v1/predict", PHOTO)["predictions"][0]["class_id"] in "defg"
        assert running.metric("dla_reloads_total") == 1
        assert running.metric("dla_reload_failures_total") == 3
    assert caplog.text.count("The old model stays") == 3


def test_a_folder_that_changes_while_it_is_read_is_not_used(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "model"))
    usual = ServedModel.warm_up

    def warm_up(self: ServedModel) -> None:
        (folder / "notes.txt").write_text("still copying")
        usual(self)

    monkeypatch.setattr(served_model.ServedModel, "warm_up", warm_up)
    load = partial(dla.load, str(folder), engine="openvino", threads=1)
    with pytest.raises(UsageError, match="changed while they were read"):
        load_served(str(folder), load, ServeOptions())


def test_a_model_of_another_task_does_not_take_over(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "model"))
    with serving_folder(folder) as running:
        shutil.rmtree(folder)
        write_dense(folder, ["sky", "tree"])
        reload(running)
        assert running.record("/v1/predict", PHOTO)["predictions"]
    assert "it has the task segment, this service classify" in caplog.text


def test_one_reload_at_a_time_and_none_after_the_end(tmp_path: Path) -> None:
    is_free, loads = threading.Event(), list[int]()
    is_free.set()

    def load(settings: ServeOptions) -> ServedModel:
        from support.served import mean_classifier

        loads.append(1)
        assert is_free.wait(20)
        return ServedModel(mean_classifier(), settings, {})

    with serving(load=load) as running:
        is_free.clear()
        loop = running.service.queue.loop
        for _ in range(5):
            loop.call_soon_threadsafe(running.service.reload)
        wait_until(lambda: running.service.is_reloading)
        assert running.record("/v1/predict", colored(1, 2, 3))["predictions"]
        is_free.set()
        wait_until(lambda: running.service.counters.reloads == 2)  # the one that ran, and one for the four after it
        is_free.clear()
        loop.call_soon_threadsafe(running.service.reload)
        wait_until(lambda: len(loads) == 4)
        before = running.service.current
        loop.call_soon_threadsafe(running.service.begin_drain)
        is_free.set()
        wait_until(lambda: not running.service.is_reloading)
        assert running.service.current is before


def test_the_model_is_called_like_its_files(small: Path) -> None:
    assert model_name(str(small)) == "flowers"
    assert model_name("shipped:tiny200") == "tiny200"
    assert model_name("dla60.in1k") == "dla60.in1k"
    assert model_name("hf-hub:owner/birds") == "birds"
    assert model_name(str(small / "model.safetensors")) == "model"


def test_both_ways_of_computing_are_ready_before_the_first_photo() -> None:
    with serving_folder("shipped:tiny200") as running:
        assert running.service.current is not None
        engine: Any = running.service.current.network.engine
        (compiled,) = engine.models.get().compiled.values()
        assert None not in (compiled.for_one, compiled.for_many)
        limits = running.service.current.limits
        assert limits == ReadOptions("apply", 50_000_000, max_bytes=32 * 2**20)
