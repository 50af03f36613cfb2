"""fastText models, read by gensim."""

import numpy as np
import pytest

from fastrnn.data.vectors import load_vectors


def test_fasttext_gives_unknown_words_a_vector_of_their_n_grams(tmp_path):
    fasttext = pytest.importorskip("gensim.models.fasttext", reason="gensim is not installed")
    sentences = [["aspirin", "helps"], ["ibuprofen", "helps", "Ann"]] * 20
    model = fasttext.FastText(sentences, vector_size=8, min_count=1, bucket=500, seed=1, workers=1)
    path = tmp_path / "model.bin"
    fasttext.save_facebook_model(model, str(path))
    vectors = load_vectors(path)
    assert (len(vectors), vectors.dimension) == (4, 8)
    got = vectors(["aspirin", "Ann", "aspirins", "ANN"])
    for row, word in zip(got, ["aspirin", "Ann", "aspirins", "ANN"], strict=True):
        np.testing.assert_allclose(row, model.wv.get_vector(word), atol=1e-6)
    assert got[0] @ got[2] > 0.5 * np.linalg.norm(got[0]) * np.linalg.norm(got[2])
    with pytest.raises(ValueError, match=r"model\.bin cannot be saved: keep that file"):
        vectors.save(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"model\.bin is damaged"):
        load_vectors(path)
