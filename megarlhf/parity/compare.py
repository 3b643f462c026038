"""How far a layout is from one rank and from Hugging Face, and whether that is too far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from megarlhf.parity import names
from megarlhf.parity.assemble import LayoutRun
from megarlhf.parity.huggingface import HuggingFaceRun
from megarlhf.parity.thresholds import Thresholds


@dataclass(frozen=True)
class Reference:
    """One rank's results, and Hugging Face's."""

    hugging_face: HuggingFaceRun
    outputs: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]
    losses: list[float]
    grad_norm: float


@dataclass
class Comparison:
    """One layout's row. Errors are relative unless said otherwise; inf where something is NaN.

    Attributes:
        layout: Its name.
        ranks: How many.
        logits: Against Hugging Face: largest difference over largest logit.
        loss: Of the first step.
        loss_error: Against one rank.
        gradient: The worst of all full gradients: largest difference over the largest entry of
            one rank's gradient (for the one rank itself: of Hugging Face's).
        gradient_name: Whose it is, in Hugging Face's names.
        copies: The worst disagreement among ranks that hold the same part of a gradient.
        copies_name: Whose it is.
        grad_norm: As the optimizer computed it; in float64 from the gathered gradients.
        grad_norm_error: Against one rank (for the one rank itself: Hugging Face).
        steps: Absolute largest loss difference over all optimizer steps; None when not run.
        losses: Of every step.
        outputs: Error of every module's output against one rank.
        problems: What is off, in words; empty when nothing is.
        seconds: For the whole layout.
    """

    layout: str
    ranks: int
    logits: float
    loss: float
    loss_error: float
    gradient: float
    gradient_name: str
    copies: float
    copies_name: str
    grad_norm: float
    grad_norm_error: float
    steps: float | None
    losses: list[float]
    outputs: dict[str, float]
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is off."""
        return not self.problems


def make_reference(run: LayoutRun, hugging_face: HuggingFaceRun, modules: list[str]) -> Reference:
    """Read one rank's results."""
    gradients = run.gradients()
    return Reference(
        hugging_face,
        {module: run.outputs(module)[0] for module in modules},
        gradients,
        run.losses,
        norm_of(run, gradients),
    )


def norm_of(run: LayoutRun, gradients: Mapping[str, torch.Tensor]) -> float:
    """The optimizer's gradient norm, or in its absence that of the gathered gradients."""
    return _norm(gradients) if math.isnan(run.grad_norm) else run.grad_norm


def compare(
    run: LayoutRun, reference: Reference, thresholds: Thresholds, *, is_reference: bool
) -> Comparison:
    """Measure a layout against the reference.

    Args:
        run: The layout's results.
        reference: One rank's and Hugging Face's.
        thresholds: What is too far.
        is_reference: It is the one rank: gradients and loss are compared with Hugging Face's.
    """
    outputs = {
        module: max(error_of(found, expected) for found in run.outputs(module))
        for module, expected in reference.outputs.items()
    }
    hf = reference.hugging_face
    expected = hf.gradients if is_reference else reference.gradients
    errors, copies = _gradient_errors(run, expected)
    worst, worst_copy = _worst(errors), _worst(copies)
    norm = norm_of(run, run.gradients() if math.isnan(run.grad_norm) else {})
    losses, expected_loss = run.losses, hf.loss if is_reference else reference.losses[0]
    result = Comparison(
        layout=run.layout.name,
        ranks=run.layout.world,
        logits=max(error_of(found, hf.logits) for found in run.outputs(names.LOGITS)),
        loss=losses[0],
        loss_error=_relative(losses[0], expected_loss),
        gradient=errors[worst],
        gradient_name=worst,
        copies=copies[worst_copy],
        copies_name=worst_copy,
        grad_norm=norm,
        grad_norm_error=_relative(norm, _norm(expected) if is_reference else reference.grad_norm),
        steps=_apart(losses, reference.losses) if len(losses) > 1 else None,
        losses=losses,
        outputs=outputs,
    )
    result.problems = _problems(result, thresholds, is_reference, run.same_everywhere)
    return result


def _problems(
    found: Comparison, limits: Thresholds, is_reference: bool, same_everywhere: bool
) -> list[str]:
    """What is off, the earliest cause first."""
    problems = []
    against = "Hugging Face" if is_reference else "one rank"
    limit = limits.reference if is_reference else limits.gradients
    first = next((m for m, error in found.outputs.items() if not error <= limits.outputs), None)
    if first is not None:
        error = found.outputs[first]
        problems.append(f"the first module that differs is {first}: output off by {error:.1e}")
    elif not found.logits <= limits.logits:
        problems.append(f"logits differ from Hugging Face's by {found.logits:.1e}")
    if not found.loss_error <= (limits.reference if is_reference else limits.loss):
        problems.append(f"the loss differs from {against} by {found.loss_error:.1e} relative")
    if not found.copies <= limits.gradients:
        problems.append(
            f"ranks disagree on the gradient of {found.copies_name}: {found.copies:.1e}"
        )
    if not found.gradient <= limit:
        problems.append(f"the gradient of {found.gradient_name} is off by {found.gradient:.1e}")
    if not found.grad_norm_error <= (limit if is_reference else limits.grad_norm):
        problems.append(
            f"the gradient norm {found.grad_norm:.6g} is off by {found.grad_norm_error:.1e}"
            + ("" if problems else ", though every gradient is right: parameters are miscounted")
        )
    if found.steps is not None and not found.steps <= limits.steps:
        problems.append(f"losses of later optimizer steps differ by up to {found.steps:.1e}")
    if not same_everywhere:
        problems.append("ranks report different losses or gradient norms")
    return problems


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """max |found - expected| / max |expected|; inf for NaN, and for anything where 0 is expected."""
    if found.shape != expected.shape:
        return math.inf
    difference = (found.double() - expected.double()).abs().max().item()
    return _ratio(difference, expected.double().abs().max().item())


def _gradient_errors(
    run: LayoutRun, expected: Mapping[str, torch.Tensor]
) -> tuple[dict[str, float], dict[str, float]]:
    """By name: the worst error of any rank's part, and the worst disagreement of its copies."""
    largest = {name: tensor.double().abs().max().item() for name, tensor in expected.items()}
    errors, copies = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0)
    first: dict[object, torch.Tensor] = {}
    for piece in run.gradient_pieces():
        name, values = piece.name, piece.values.double()
        if name not in expected:
            continue  # Hugging Face's model may keep several of its checkpoint's tensors as one

        def far(other: torch.Tensor, name: str = name, values: torch.Tensor = values) -> float:
            return _ratio((values - other.double()).abs().max().item(), largest[name])

        errors[name] = max(errors[name], far(expected[name][piece.rect.slices]))
        copies[name] = max(copies[name], far(first.setdefault((name, piece.rect), values)))
    return errors, copies


def _worst(errors: Mapping[str, float]) -> str:
    return max(errors, key=errors.__getitem__)


def _ratio(difference: float, largest: float) -> float:
    if difference == 0:
        return 0.0
    ratio = difference / largest if largest else math.inf
    return math.inf if math.isnan(ratio) else ratio


def _relative(found: float, expected: float) -> float:
    return _ratio(abs(found - expected), abs(expected))


def _apart(losses: list[float], expected: list[float]) -> float:
    differences = [abs(a - b) for a, b in zip(losses, expected, strict=True)]
    return math.inf if any(map(math.isnan, differences)) else max(differences)


def _norm(gradients: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(math.fsum(tensor.double().square().sum() for tensor in gradients.values()))
