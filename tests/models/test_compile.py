"""`torch.compile` of the step: equal losses, one graph (so nothing waits for a device), the same for new data."""

import pytest
import torch

from tests.models.tiny import tiny_batch, tiny_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_the_compiled_step_gives_the_same_losses(schedule: str) -> None:
    torch._dynamo.reset()
    model, batches = tiny_model(schedule=schedule), [tiny_batch(seed=seed) for seed in range(3)]
    ids = {"image_ids": torch.arange(4), "text_ids": torch.arange(4)}
    expected = [model(**batch, **ids).loss for batch in batches]
    model.compile(backend="aot_eager", fullgraph=True)
    model(**batches[0], **ids).loss.backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, loss in zip(batches, expected, strict=True):
            torch.testing.assert_close(model(**batch, **ids).loss, loss, atol=1e-5, rtol=0)
