"""DoReMi: domains that the model could still learn from a reference model get more.

Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining" (arXiv 2305.10429), algorithm 1, a
step of group distributionally robust optimisation (Sagawa et al. 2020) on the excess loss

    lambda_d = mean over the label tokens of domain d of max(loss - loss of the reference, 0),
    alpha_d <- alpha_d exp(eta lambda_d), normalised to sum 1,       then (1 - c) alpha + c / K.

The mean of all mixtures is the method's result, for a later run with fixed proportions (``static``). The paper updates
at every step, from the step's own batch, and trains the proxy model with weights in its loss; here a mixture is made
before a phase, from rows drawn anew, and the phase draws its rows by it.

The reference is the model that ``reference_model_path`` names, or the base model, which is the model in training with
its adapter switched off: that costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from peft.utils import CONFIG_NAME
from pydantic import Field
from torch import nn

from dataflex.errors import ModelError
from dataflex.mixers.base import Mixer, MixerConfig, MixtureContext
from dataflex.mixers.domains import Domain
from dataflex.mixers.measuring import Reference, drawn_rows, excess_losses
from dataflex.models.adapters import load_adapter
from dataflex.models.model import base_model, load_model


class DoReMiConfig(MixerConfig):
    """Parameters of ``doremi``."""

    reference_model_path: str | None = Field(
        None, description="folder or hub id of the reference model, or an adapter's folder; null: without the adapter"
    )
    reweight_eta: float = Field(1.0, gt=0, allow_inf_nan=False, description="step size eta of the domains' weights")
    reweight_eps: float = Field(1e-3, ge=0, le=1, description="share c of the mixture that is even")
    eval_samples: int = Field(64, ge=1, description="rows of each domain whose losses are compared, drawn every time")


class DoReMiMixer(Mixer[DoReMiConfig]):
    """Gives more to domains on which the model is worse than a reference model.

    Source: Xie et al., DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining, arXiv 2305.10429,
    algorithm 1.

    Example:
        >>> mixer = DoReMiMixer(reweight_eta=1.0, eval_samples=64)
    """

    name: ClassVar[str] = "doremi"
    needs_losses: ClassVar[bool] = False
    Config = DoReMiConfig

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._loaded: nn.Module | None = None
        self._weights: list[float] | None = None
        self._sum: list[float] = []
        self._updates = 0
        self._excess: list[float | None] = []

    def check(self, context: MixtureContext) -> None:
        """See that there is a reference, and load it.

        Raises:
            ModelError: There is none, or it has another vocabulary.
        """
        self._reference(context)

    def proportions(self, context: MixtureContext) -> NDArray[np.float64]:
        """Compare the losses of rows of each domain with the reference's, and take a step."""
        rows = drawn_rows(context, self.config.eval_samples)
        excess = excess_losses(context, self._reference(context), rows)
        before = context.proportions if self._weights is None else np.array(self._weights)
        filled = np.array([len(domain.rows) > 0 for domain in context.domains])
        mixed = reweighted(before, np.nan_to_num(excess), filled, self.config.reweight_eta, self.config.reweight_eps)
        self._weights = mixed.tolist()
        self._sum = (np.array(self._sum or [0.0] * len(mixed)) + mixed).tolist()
        self._updates += 1
        self._excess = [None if np.isnan(value) else float(value) for value in excess]
        return mixed

    def report(self) -> dict[str, Any]:
        """The excess losses, and the mean of all mixtures so far: the method's result."""
        average = [value / self._updates for value in self._sum] if self._updates else []
        return {"excess_losses": self._excess, "average": average}

    def measured_rows(self, domains: Sequence[Domain]) -> int:
        """Rows of all domains, twice: by the model and by the reference."""
        return 2 * sum(min(self.config.eval_samples, len(domain.rows)) for domain in domains)

    def state_dict(self) -> dict[str, Any]:
        """Weights, their sum, and the number of updates."""
        return {"weights": self._weights, "sum": self._sum, "updates": self._updates, "excess": self._excess}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._weights, self._sum = state["weights"], state["sum"]
        self._updates, self._excess = state["updates"], state["excess"]

    def close(self) -> None:
        """Free the reference model."""
        self._loaded = None

    def _reference(self, context: MixtureContext) -> Reference:
        path = self.config.reference_model_path
        if path is not None:
            if self._loaded is None:
                self._loaded = _load(path, context.model)
            loaded = self._loaded
            return lambda: nullcontext(loaded)
        model = context.model
        if not isinstance(model, PeftModel):
            raise ModelError(
                "doremi compares with a reference model, and there is none: the model in training has no adapter that "
                "could be switched off",
                hint="reference_model_path names the model before training, or one trained with a static mixture",
            )
        return lambda: _without_adapter(model)


def reweighted(
    weights: NDArray[np.float64],
    excess: NDArray[np.float64],
    filled: NDArray[np.bool_],
    eta: float,
    even: float,
) -> NDArray[np.float64]:
    """One update of the domains' weights.

    Args:
        weights: ``(K,)`` alpha before it.
        excess: ``(K,)`` lambda in nats.
        filled: ``(K,)`` domains that have rows; the others get 0.
        eta: Step size.
        even: c.
    """
    raised = np.where(filled, weights * np.exp(eta * (excess - excess.max())), 0.0)  # the factor cancels
    mixed: NDArray[np.float64] = (1 - even) * raised / raised.sum() + even * filled / filled.sum()
    return mixed


@contextmanager
def _without_adapter(model: PeftModel) -> Iterator[nn.Module]:
    with model.disable_adapter():
        yield model


def _load(path: str, model: nn.Module) -> nn.Module:
    """The reference model, frozen, where the model in training is and with weights as they are stored.

    Raises:
        ModelError: It cannot be loaded, or it has another vocabulary.
    """
    own: Any = base_model(model)
    adapter = (Path(path) / CONFIG_NAME).is_file()
    loaded: Any = load_model(own.name_or_path if adapter else path, precision=None)
    if adapter:
        loaded = load_adapter(loaded, path, trainable=False)
    sizes = [found.get_input_embeddings().num_embeddings for found in (own, loaded)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"the reference model {path!r} has a vocabulary of {sizes[1]:,}, the model in training one of {sizes[0]:,}",
            hint="losses can be compared token by token only between models of one tokenizer",
        )
    return loaded.requires_grad_(False).eval().to(next(model.parameters()).device)  # type: ignore[no-any-return]
