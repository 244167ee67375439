"""What a source says in torch does not depend on what else is asked beside it."""

import numpy as np
import pytest

from tests.checkpoints import tiny_checkpoint
from workers.toolchains.source_model import SourceModel, open_source

pytestmark = pytest.mark.toolchain
PROMPTS = [list(range(40, 52)), [60], list(range(80, 111)), [7, 7, 7, 300]]
NEW_TOKENS, PENALTY, ENOUGH_S = 12, 1.3, 600.0


@pytest.fixture(scope="module", params=["qwen2", "gemma2", "lfm2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    """Full attention, a sliding window, and convolutions that remember."""
    return open_source(tiny_checkpoint(tmp_path_factory.mktemp("source"), request.param))


def test_prompts_that_are_asked_together_are_answered_as_alone(source: SourceModel) -> None:
    alone = [source.answers([prompt], NEW_TOKENS, PENALTY, ENOUGH_S)[0] for prompt in PROMPTS]

    together = source.answers(PROMPTS, NEW_TOKENS, PENALTY, ENOUGH_S)

    assert together == alone
    assert all(answer and len(answer) <= NEW_TOKENS for answer in together)


def test_the_penalty_is_that_of_every_token_seen(source: SourceModel) -> None:
    (free,) = source.answers([PROMPTS[0]], NEW_TOKENS, 1.0, ENOUGH_S)
    (held,) = source.answers([PROMPTS[0]], NEW_TOKENS, 1e6, ENOUGH_S)

    assert held is not None and free is not None
    # Where no token may come again, none does.
    assert len(set(held)) == len(held)
    assert not set(held) & set(PROMPTS[0])


def test_an_answer_that_had_no_time_to_end_is_none(source: SourceModel) -> None:
    answers = source.answers([PROMPTS[0]], 500, 1.0, within_s=1e-6)

    assert answers == [None] or (answers[0] and len(answers[0]) < 500)


def test_the_last_logits_are_those_of_all(source: SourceModel) -> None:
    whole, last = source.logits(PROMPTS[2]), source.logits(PROMPTS[2], 5)

    assert last.shape[0] == 5
    assert np.allclose(whole[-5:], last, atol=1e-5)
