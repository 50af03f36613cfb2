"""The examples of docs/serving.md do what it says."""

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest

from fastrnn.models import Tagger

GUIDE = Path(__file__).parents[1] / "docs" / "serving.md"


def example(number: int) -> dict:
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[number], names)
    return names


@pytest.fixture
def application(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    X = [["Selegiline", "helps", "."], ["Take", "aspirin"]] * 10
    y = [["B-Chemical", "O", "O"], ["O", "B-Chemical"]] * 10
    Tagger(word_dim=8, hidden_size=8, epochs=3).fit(X, y).save("tagger")
    return example(0)


async def ask(application, body: bytes):
    """Status and answer of a POST."""
    sent = []
    parts = [{"type": "http.request", "body": body[:3], "more_body": True},
             {"type": "http.request", "body": body[3:], "more_body": False}]  # fmt: skip

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    await application({"type": "http"}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_concurrent_requests_share_batches(application):
    batches = []
    predict = application["tagger"].predict
    application["tagger"].predict = lambda X: batches.append(len(X)) or predict(X)
    sentences = [["Take", "aspirin"], ["Selegiline", "helps", "."], []] * 30

    async def clients():
        return await asyncio.gather(
            *(ask(application["application"], json.dumps(s).encode()) for s in sentences)
        )

    answers = asyncio.run(clients())
    assert answers == [(200, tags) for tags in predict(sentences)]
    assert len(batches) < 20 and sum(batches) == len(sentences)


@pytest.mark.parametrize("body", [b"{", b'"text"', b"[1]", b'[""]'])
def test_a_bad_request_fails_alone(application, body):
    async def clients():
        ask_for = application["application"]
        return await asyncio.gather(ask(ask_for, body), ask(ask_for, b'["aspirin"]'))

    bad, good = asyncio.run(clients())
    assert bad[0] == 400 and "error" in bad[1]
    assert good[0] == 200 and len(good[1]) == 1


def test_streams_of_different_age(rng):
    names = example(1)
    x = rng.standard_normal((6, 5, 40), np.float32)
    turns = [[0, 3], [3], [1, 0, 3], [4], [3, 4, 0, 1]]
    seen: dict[int, list] = {}
    for t, streams in enumerate(turns):
        y = names["advance"](streams, x[t, streams])
        for stream, row in zip(streams, y, strict=True):
            seen.setdefault(stream, []).append((t, row))
    for stream, steps in seen.items():
        alone = np.stack([x[t, stream] for t, _ in steps])[:, None]
        wanted, _ = names["lstm"](alone)
        assert np.array_equal(np.stack([row for _, row in steps]), wanted[:, 0])
    names["restart"](3)
    fresh = names["advance"]([3], x[0, [3]])
    assert np.array_equal(fresh[0], names["lstm"](x[:1, [3]])[0][0, 0])
