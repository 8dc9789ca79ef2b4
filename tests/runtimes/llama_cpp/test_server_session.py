"""What the server alone does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit.protocols import TracingSession
from quantkit.runtimes.llama_cpp.server_session import ServerSession

pytestmark = pytest.mark.engine("llama-cpp")


def test_its_rows_are_normalized_log_probs(server):
    np.testing.assert_allclose(np.exp(server.logits([1, 2, 3]).astype(np.float64)).sum(axis=1), 1, atol=1e-5)


def test_it_shows_no_stages(server):
    assert not isinstance(server, TracingSession)


def test_its_socket_is_private_and_leaves_with_it(file, checkpoint):
    with ServerSession(file, checkpoint.spec) as session:
        folder = Path(session._child._folder.name)
        assert folder.exists()
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_of_a_large_vocabulary_only_the_likely_tokens_are_asked_for(server, monkeypatch):
    monkeypatch.setattr("quantkit.runtimes.llama_cpp.server_session.CANDIDATES", 10)
    whole, few = server.logits([1, 7])[-1], server.next_logits([1, 7])
    likely = np.argsort(-whole)[:10]
    np.testing.assert_allclose(few[likely], whole[likely], atol=1e-5)
    assert np.isneginf(np.delete(few, likely)).all()
