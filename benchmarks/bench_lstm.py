"""One LSTM layer, and the language model around it."""

import pytest

import cases


@pytest.mark.benchmark(group="LSTM inference, (T, B, I, H)")
@pytest.mark.parametrize("shape", cases.DENSE, ids=str)
def test_lstm_forward(compare, shape):
    compare(cases.lstm_forward(shape))


@pytest.mark.benchmark(group="LSTM training, (T, B, I, H)")
@pytest.mark.parametrize("shape", cases.DENSE, ids=str)
def test_lstm_training(compare, shape):
    compare(cases.lstm_training(shape))


@pytest.mark.benchmark(group="language model, training step")
@pytest.mark.parametrize("name", ["embedding 64", "one-hot"])
def test_language_model(compare, name):
    compare(
        cases.language_model(64) if name == "embedding 64" else cases.language_model(0, against=64)
    )
