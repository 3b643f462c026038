"""Our offline losses and their gradients against TRL's own trainers, on one batch of theirs.

Both sides take the same Hugging Face model in float64: a difference is one of the loss, of what counts
as an answer's token, or of what a mean is over. TRL is for this alone: requirements/dev.txt.
"""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
import trl

from megarlhf.algo.distillation_loss import DistillationLoss
from megarlhf.algo.preference_loss import PreferenceLoss
from megarlhf.algo.reward_loss import PairwiseRewardLoss
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.algo.unpaired_loss import UnpairedLoss
from megarlhf.config.schema import DistillationLossConfig, PreferenceLossConfig, UnpairedLossConfig
from megarlhf.data.packing import collate
from megarlhf.data.records import Sequence
from megarlhf.parallel.context import sequence_sums
from megarlhf.parallel.divergence import vocab_parallel_divergence
from megarlhf.parallel.logprobs import vocab_parallel_logprobs

pytestmark = pytest.mark.slow

# Of reward models and GKD seen 7e-16 at most. The others have TRL's fused head, which computes in
# float32: seen 2.8e-7 in the loss, 6.3e-7 in the gradient (relative, of all parameters).
TOLERANCE = 1e-6
ROWS = 6
SMOOTHING = 0.15  # of cDPO


@pytest.fixture(scope="module")
def tokenizer():
    from megarlhf.demo.model import USER, make_tokenizer

    made = make_tokenizer()
    made.pad_token = (
        USER  # not the EOS: a sequence classifier looks for the last token that is no padding
    )
    return made


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Their chosen answers are equally long: TRL's likelihood term is a mean over a batch's tokens."""
    from megarlhf.demo.task import draw_sums

    by_length = defaultdict(list)
    for one in draw_sums("losses", 20 * ROWS, held_out=False):
        by_length[len(tokenizer(one.solution)["input_ids"])].append(one)
    sums = max(by_length.values(), key=len)[:ROWS]
    return [
        {
            "prompt": s.question,
            "chosen": s.solution,
            "rejected": s.off_hand,
            "completion": s.solution if index % 2 else s.off_hand,
            "label": bool(index % 2),
            "margin": 0.1 * index,
        }
        for index, s in enumerate(sums)
    ]


@pytest.fixture
def model(tokenizer):
    return language_model(tokenizer, seed=1)


def language_model(tokenizer, seed, kind="LlamaForCausalLM", **settings):
    """A tiny one with weights so large that its answers differ in likelihood."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    model = getattr(transformers, kind)(config).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    return model


def of_trl(name, directory, model, tokenizer, rows, columns, **settings):
    """(TRL's loss, its gradients, the batch it was made of); the trainer's own collation."""
    from datasets import Dataset

    config = getattr(trl, f"{name}Config")(
        output_dir=str(directory),
        per_device_train_batch_size=ROWS,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        **settings.pop("config", {}),
    )
    dataset = Dataset.from_list([{column: row[column] for column in columns} for row in rows])
    trainer = getattr(trl, f"{name}Trainer")(
        model, args=config, train_dataset=dataset, processing_class=tokenizer, **settings
    )
    (batch,) = list(trainer.get_train_dataloader())
    kept = {key: value.clone() for key, value in batch.items() if torch.is_tensor(value)}
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    return loss, gradients(loss, model), kept


def gradients(loss, model):
    found = torch.autograd.grad(
        loss, list(model.parameters()), allow_unused=True, retain_graph=True
    )
    return torch.cat([part.flatten() for part in found if part is not None])


def sequences_of(batch, trained="completion_mask"):
    """The batch's rows without padding."""
    attended = batch["attention_mask"].bool()
    return [
        Sequence(ids[on].tolist(), mask[on].double().tolist())
        for ids, mask, on in zip(batch["input_ids"], batch[trained], attended, strict=True)
    ]


def paired(sequences):
    """TRL has the chosen ones first, then the rejected; ours has pairs."""
    half = len(sequences) // 2
    return [s for pair in zip(sequences[:half], sequences[half:], strict=True) for s in pair]


def packed(sequences):
    """All in one micro-batch, with exact fields."""
    batch = collate(sequences, range(len(sequences)))
    fields = {
        name: torch.tensor(
            [x for i in batch.order for x in [*sequences[i].fields[name][1:], 0.0]],
            dtype=torch.float64,
        )
        for name in batch.fields
    }
    values = {
        name: torch.tensor([sequences[i].values[name] for i in batch.order], dtype=torch.float64)
        for name in batch.values
    }
    return replace(batch, fields=fields, values=values, loss_mask=batch.loss_mask.double())


def logits_of(model, sequences, batch):
    """[T, V] of the packed sequences."""
    return torch.cat([model(torch.tensor([sequences[i].token_ids])).logits[0] for i in batch.order])


def logprobs_of(model, sequences, batch):
    """[T]: at the token before each target."""
    logits = logits_of(model, sequences, batch)
    return vocab_parallel_logprobs(logits, batch.targets, vocab_size=logits.shape[1])[0]


def with_reference(model, sequences):
    """Log-probabilities of the tokens themselves, as the engine gives them."""
    with torch.no_grad():
        for sequence in sequences:
            alone = collate([sequence], [0])
            logprobs = logprobs_of(model, [sequence], alone)
            sequence.fields["reference_logprobs"] = [0.0, *logprobs[:-1].tolist()]
    return sequences


def agree(loss, outputs, extra, sequences, model, theirs, slopes):
    """The value and the gradient by every parameter; ``theirs`` is TRL's."""
    total, _ = loss(outputs, extra, packed(sequences))
    total = total / loss.divisors(sequences).loss
    assert total.item() == pytest.approx(theirs.item(), abs=TOLERANCE)
    found = gradients(total, model)
    assert slopes.norm() > 1e-3
    assert (found - slopes).norm() / slopes.norm() < TOLERANCE


def test_supervised(model, tokenizer, rows, tmp_path):
    theirs, slopes, batch = of_trl(
        "SFT", tmp_path, model, tokenizer, rows, ["prompt", "completion"]
    )
    batch["trained"] = batch["labels"] != -100
    sequences = sequences_of(batch, "trained")
    outputs = logprobs_of(model, sequences, packed(sequences))
    agree(NegativeLogLikelihood(), outputs, None, sequences, model, theirs, slopes)


@pytest.mark.parametrize(
    ("ours", "settings"),
    [
        ({}, {}),
        ({"beta": 0.3, "kind": "ipo"}, {"beta": 0.3, "loss_type": "ipo"}),
        (
            {"label_smoothing": SMOOTHING},
            # TRL has not cDPO, (1 - e) S + e F of the losses S of a pair and F of the pair turned
            # round, but S and ((1 - e) S - e F) / (1 - 2 e), robust DPO, and sums of losses.
            {
                "label_smoothing": SMOOTHING,
                "loss_type": ["sigmoid", "robust"],
                "loss_weights": [2 * (1 - SMOOTHING), 2 * SMOOTHING - 1],
            },
        ),
        ({"nll_coef": 0.4}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}),
    ],
    ids=["sigmoid", "ipo", "cdpo", "nll"],
)
def test_preference(model, tokenizer, rows, tmp_path, ours, settings):
    reference = language_model(tokenizer, seed=2)
    theirs, slopes, batch = of_trl(
        "DPO",
        tmp_path,
        model,
        tokenizer,
        rows,
        ["prompt", "chosen", "rejected"],
        ref_model=reference,
        config=settings,
    )
    sequences = with_reference(reference, paired(sequences_of(batch)))
    assert len({sum(chosen.loss_mask) for chosen in sequences[::2]}) == 1  # see `rows`
    loss = PreferenceLoss(PreferenceLossConfig(**ours), sequence_sums)
    outputs = logprobs_of(model, sequences, packed(sequences))
    agree(loss, outputs, None, sequences, model, theirs, slopes)


def test_unpaired(model, tokenizer, rows, tmp_path):
    reference = language_model(tokenizer, seed=2)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    theirs, slopes, batch = of_trl(
        "KTO",
        tmp_path,
        model,
        tokenizer,
        rows,
        ["prompt", "completion", "label"],
        ref_model=reference,
        config=weights,
    )
    own = with_reference(reference, sequences_of(batch))
    # The reference point, from TRL's own mismatched answers.
    kl = {name.removeprefix("KL_"): value for name, value in batch.items() if "KL_" in name}
    others = with_reference(reference, sequences_of(kl))
    mixed = packed(others)
    with torch.no_grad():
        ratios = (logprobs_of(model, others, mixed) - mixed.fields["reference_logprobs"]).double()
        point = sequence_sums(ratios * mixed.loss_mask, mixed).mean().clamp(min=0).item()
    labels = batch["label"].tolist()
    for sequence, label in zip(own, labels, strict=True):
        sequence.values.update({"desirable": float(label), "kl": point})
    loss = UnpairedLoss(UnpairedLossConfig(**weights), sequence_sums)
    outputs = logprobs_of(model, own, packed(own))
    agree(loss, outputs, None, own, model, theirs, slopes)


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_reward_model(tokenizer, rows, tmp_path, center):
    model = language_model(tokenizer, 3, "LlamaForSequenceClassification", num_labels=1)
    rows = [
        {name: row["prompt"] + " " + row[name] for name in ("chosen", "rejected")}
        | {"margin": row["margin"]}
        for row in rows
    ]
    theirs, slopes, batch = of_trl(
        "Reward",
        tmp_path,
        model,
        tokenizer,
        rows,
        ["chosen", "rejected", "margin"],
        config={"center_rewards_coefficient": center or None},
    )
    sequences = paired(sequences_of(batch, "attention_mask"))
    for index, sequence in enumerate(sequences):
        sequence.values["margin"] = batch["margin"][index // 2].item() if "margin" in batch else 0.0
    values = torch.cat(
        [
            model.score(model.model(torch.tensor([sequences[i].token_ids])).last_hidden_state)[0]
            for i in packed(sequences).order
        ]
    ).flatten()
    assert "margin" in batch
    loss = PairwiseRewardLoss(sequence_sums, center)
    agree(loss, values, None, sequences, model, theirs, slopes)


@pytest.mark.parametrize(
    ("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("js", 0.5), ("js", 0.2)]
)
def test_distillation(model, tokenizer, rows, kind, beta):
    """GKD's divergence: there is no trainer around it here, only its function."""
    from trl.experimental.gkd import GKDTrainer

    teacher = language_model(tokenizer, seed=2)
    ids = tokenizer([row["prompt"] + row["chosen"] for row in rows])["input_ids"]
    sequences = [Sequence(one, [0.0] * 8 + [1.0] * (len(one) - 8)) for one in ids]
    batch, temperature = packed(sequences), 1.7
    student = logits_of(model, sequences, batch)
    with torch.no_grad():
        expert = logits_of(teacher, sequences, batch)
    labels = batch.targets.masked_fill(batch.loss_mask == 0, -100)
    theirs = GKDTrainer.generalized_jsd_loss(
        student[None], expert[None], labels[None], beta, temperature
    )
    config = DistillationLossConfig(
        divergence=kind, js_weight=beta or 0.5, temperature=temperature, kd_coef=1.0
    )
    far = vocab_parallel_divergence(
        student,
        (expert / temperature).log_softmax(-1),
        kind=kind,
        weight=beta,
        vocab_size=student.shape[1],
        temperature=temperature,
    )
    # Ours keeps the gradient's size with the temperature's square, TRL's does not.
    agree(
        DistillationLoss(config, None),
        torch.zeros_like(far),
        far,
        sequences,
        model,
        theirs * temperature**2,
        gradients(theirs * temperature**2, model),
    )
