"""Files are whole or refused by name."""

import numpy as np
import pytest

from fastrnn import checkpoint


def test_round_trip(tmp_path, rng):
    arrays = {
        "a": rng.standard_normal((3, 4)).astype("f"),
        "n": np.asarray(7),
        "e": np.empty((0, 2)),
    }
    arrays["t"] = np.asfortranarray(rng.standard_normal((2, 3)))
    notes = {"text": "Grüße", "best": None, "big": 2**100}
    path = tmp_path / "deep" / "file.safetensors"
    checkpoint.save_arrays(path, arrays, notes)
    got, got_notes = checkpoint.load_arrays(path)
    assert got_notes == notes and got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        assert np.array_equal(got[name], array)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "garbage"])
def test_a_damaged_file_is_refused_by_name(tmp_path, rng, damage):
    path = tmp_path / "weights.safetensors"
    checkpoint.save_arrays(path, {"a": rng.standard_normal(1000)}, {"step": 1})
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    changed = {"cut": data[:-50], "empty": b"", "flip": data, "garbage": b"\x00" * 5000}[damage]
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        checkpoint.load_arrays(path)


def test_a_missing_or_damaged_json_is_named(tmp_path):
    path = tmp_path / "config.json"
    for load in (checkpoint.load_json, checkpoint.load_arrays):
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            load(path)
    checkpoint.save_json(path, {"a": [1, "ü"]})
    assert checkpoint.load_json(path) == {"a": [1, "ü"]}
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        checkpoint.load_json(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_bytes(path, b"old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
