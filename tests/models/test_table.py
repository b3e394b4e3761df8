"""The table says of each network what is true of the network that is built from it."""

from __future__ import annotations

import pytest

from dla.errors import UnknownNameError
from dla.models.registry import TABLE, row
from support.recorded import Figures, recorded_figures


def test_there_are_twelve_released_networks_with_sources_and_figures() -> None:
    released = [r for r in TABLE.values() if r.tag]
    assert len(released) == 12
    for r in released:
        assert r.hub_id == f"timm/{r.name}.in1k"
        assert r.origin.startswith("https://")
        assert r.license == ("unknown" if "res2" in r.name else "bsd-3-clause")
        assert r.top1 is not None
        assert r.top5 is not None
        assert 60 < r.top1 < r.top5 < 100


def test_sizes_and_accuracies_are_the_recorded_ones() -> None:
    """`test_count.py` counts sizes on each network, those without released weights too."""
    found = {r.name: Figures(r.params, r.macs, r.top1, r.top5) for r in TABLE.values() if r.tag}
    assert found == recorded_figures()


def test_a_network_without_released_weights_has_no_hub_id() -> None:
    assert row("dla34_half").hub_id is None


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'^no network is called "dla43"\. Nearest: dla34') as caught:
        row("dla43")
    assert "dla34" in caught.value.nearest
