"""The model on one rank against Hugging Face's."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models import jobs
from tests.models.tiny import write_llama


@pytest.mark.parametrize(
    "heads",
    [
        {"num_attention_heads": 4, "num_key_value_heads": 2},
        {"num_attention_heads": 4, "num_key_value_heads": 4},
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16},
    ],
    ids=["gqa", "mha", "head_dim-not-hidden-over-heads"],
)
def test_logits_of_a_pack_are_hugging_faces_of_each_sequence(ranks, tmp_path, heads):
    write_llama(tmp_path, **heads)
    lengths = [11, 7, 7, 1]  # two of one length run as a batch
    ids = torch.randint(0, 101, (26,), generator=torch.Generator().manual_seed(0))
    (packed,) = ranks.run(1, jobs.logits_of, tmp_path, lengths, ids.tolist())
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        separate = torch.cat([model(part[None]).logits[0] for part in ids.split(lengths)])
    # Seen: 1.8e-6, of logits up to 3.
    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-5)
