"""Models in worker processes."""

import json

import pytest

import fastrnn
from fastrnn.data.text import Vocabulary
from fastrnn.models import LanguageModel, Tagger, load_once


def test_a_model_is_loaded_once(tmp_path):
    LanguageModel(Vocabulary.of("abc"), embedding_dim=2, hidden_size=3).save(tmp_path / "lm")
    Tagger(word_dim=4, hidden_size=4, epochs=1).fit([["a"]], [["O"]], progress=False).save(
        tmp_path / "tagger"
    )
    for name, kind in (("lm", LanguageModel), ("tagger", Tagger)):
        model = load_once(tmp_path / name, threads=1)
        assert isinstance(model, kind) and fastrnn.get_num_threads() == 1
        assert load_once(str(tmp_path / name), threads=1) is model
    (tmp_path / "config.json").write_text(json.dumps({"model": "Other"}))
    with pytest.raises(ValueError, match="does not belong to a model"):
        load_once(tmp_path)
