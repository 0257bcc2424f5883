"""Random models of any layout: the same matrices in every type, made piece by piece."""

from __future__ import annotations

import numpy as np
import pytest

import bitconv
from tests.paths import REPOSITORY
from tools import make_dummy
from tools.layouts import LAYOUTS, Layout

SMALL = Layout("dummy small", 256, 768, 2, 4, 2, 64)


@pytest.mark.skipif(not (REPOSITORY / "models/tiny/config.json").is_file(), reason="models/tiny is not there")
def test_the_same_model_in_every_type_gives_the_same_bits(tmp_path):
    logits = []
    for name in ("i2_s", "tl1", "tl2", "tq1_0", "tq2_0"):
        path = tmp_path / f"{name}.gguf"
        make_dummy.make_dummy(SMALL, path, name, "f16", 2, False)
        model = bitconv.load(path, threads=2)
        assert {model.gguf.tensors[f"{linear}.weight"].type_name for linear in model.ternary} == {name.upper()}
        logits.append(model.logits(list(range(70))).tobytes())
    assert set(logits) == {logits[0]}


def test_any_piece_of_a_matrix_can_be_made_alone():
    whole = make_dummy.trits(7, 0, 40, 100)
    assert np.array_equal(make_dummy.trits(7, 13, 20, 100), whole[13:33])
    assert set(np.unique(whole)) == {-1, 0, 1}
    assert abs((whole != 0).mean() - 2 / 3) < 0.05  # 4000 trits: six standard deviations
    assert not np.array_equal(make_dummy.trits(8, 0, 40, 100), whole)
    assert whole[0, :8].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]  # the same on every machine


def test_every_byte_has_its_trit(monkeypatch):
    monkeypatch.setattr(make_dummy, "random_bytes", lambda seed, start, count: np.arange(count, dtype=np.uint8))
    assert make_dummy.trits(0, 0, 4, 64).reshape(-1).tolist() == [i % 3 - 1 for i in range(255)] + [0]


RUNNABLE = [layout for layout in LAYOUTS if "embedding" not in layout.name]


@pytest.mark.parametrize("layout", RUNNABLE, ids=[layout.name for layout in RUNNABLE])
def test_every_layout_has_dimensions_that_fit_together(layout):
    hp = make_dummy.hyperparameters(layout)
    assert hp.n_heads * hp.head_dim == hp.hidden or "Falcon3" in layout.name
    assert hp.n_heads % hp.n_kv_heads == 0
