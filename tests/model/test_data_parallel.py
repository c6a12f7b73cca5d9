"""A copy of a model without weights takes those of a model that is trained, tied ones under each name."""

import torch
from torch import Tensor

from dualtoken.model.data_parallel import is_sharded, weightless_copy, whole_weights
from dualtoken.model.mllm.modeling import UnifiedModel
from tests.helpers.tiny_mllm import DRAW, documents, packed, tiny_model


def test_a_copy_without_weights_is_the_model_once_it_has_them_and_ties_what_is_tied() -> None:
    model = tiny_model()
    copy = weightless_copy(model)
    assert all(parameter.is_meta for parameter in copy.parameters())
    assert not any(buffer.is_meta for buffer in copy.buffers())
    assert copy.lm_head.weight is copy.get_input_embeddings().weight
    assert not any(parameter.is_meta for parameter in model.parameters())

    weights = whole_weights(model, keep=True)
    assert whole_weights(model, keep=False) == {}
    assert weights["lm_head.weight"] is weights["model.language_model.embed_tokens.weight"]
    copy.load_state_dict(weights, strict=False, assign=True)
    assert not any(parameter.is_meta for parameter in copy.parameters())
    assert not is_sharded(copy)
    batch = packed(model, [documents(model, DRAW)])

    def logits(of: UnifiedModel) -> Tensor:
        hidden = of.hidden_states(batch.input_ids, batch.is_visual, dict(batch.codes), batch.segments)
        return of.lm_head(hidden)

    with torch.no_grad():
        assert torch.equal(logits(copy), logits(model))
