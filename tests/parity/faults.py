"""Faults that are planted on the ranks: context managers, entered before the model is built."""

import importlib
import os
import time
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch


@contextmanager
def no_sequence_parallel_mark():
    """Each tensor rank keeps the gradient of its own tokens: nobody sums that of the norms."""
    from megarlhf.models.normalization import RMSNorm

    build = RMSNorm.__init__

    def unmarked(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.weight.sequence_parallel = False

    with patch.object(RMSNorm, "__init__", unmarked):
        yield


@contextmanager
def contiguous_cut():
    """Context rank i holds chunks 2i and 2i+1; the ring still takes them for i and 2cp-1-i."""
    from megarlhf.parallel import context

    def contiguous(lengths, rank, size):
        parts, begin = [], 0
        for length in lengths:
            share = length // size
            parts.append(torch.arange(begin + rank * share, begin + (rank + 1) * share))
            begin += length
        return torch.cat(parts)

    with patch.object(context, "zigzag_indices", contiguous):
        yield


@contextmanager
def local_denominator():
    """The mean of the data-parallel ranks' means, instead of one mean over all tokens."""
    from megarlhf.algo.loss import Divisors, TokenMean
    from megarlhf.engine import passes

    mine = 0.0
    cut = passes.Passes.micro_batches

    def remember(self, sequences, groups=None):
        nonlocal mine
        batches = cut(self, sequences, groups)
        mine = float(sum(batch.loss_mask.sum() for batch in batches)) * self.topology.dp
        return batches

    with ExitStack() as stack:
        stack.enter_context(patch.object(passes.Passes, "micro_batches", remember))
        stack.enter_context(patch.object(TokenMean, "divisors", lambda *_: Divisors(mine, mine)))
        yield


@contextmanager
def no_tensor_parallel_mark():
    """Cut parameters count as replicated: only the first tensor rank's part is in the norm."""
    from megarlhf.models import build

    with patch.object(build, "_mark_tensor_parallel", lambda *_: None):
        yield


@contextmanager
def untied_copies():
    """The first and the last stage each keep their own gradient of the shared embedding."""
    module = importlib.import_module("megatron.core.distributed.finalize_model_grads")
    with patch.object(module, "_allreduce_word_embedding_grads", lambda *_, **__: None):
        yield


@contextmanager
def die_on_the_last_rank():
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        print("about to die", flush=True)
        os._exit(9)
    yield


@contextmanager
def hang_on_the_last_rank():
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        time.sleep(3600)
    yield
