"""Parameters of TSDS."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dataflex.config.near import EncoderFields
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.selectors.gradient.config import FeatureConfig
from dataflex.utils.messages import Path as KeyPath


class TsdsConfig(FeatureConfig, EncoderFields):
    """Parameters of TSDS: of the transport, of the encoder, and of gradient features."""

    representation: Literal["embedding", "gradient"] = Field(
        "embedding", description="what rows are compared by: an encoder's vectors, or projected gradients"
    )
    embed_model: str | None = Field(None, min_length=1, description="encoder: a local folder or a hub id")
    encoder: Encoder | None = Field(None, description="encoder made in Python, in place of embed_model")
    cache_dir: Path | None = Field(None, description="folder of embeddings or features; null: inside output_dir")
    max_K: int | None = Field(  # noqa: N815 - the authors' name
        None, ge=2, description="neighbours of each target sample; null: 5000, at most a tenth of the candidates"
    )
    kde_K: int | None = Field(  # noqa: N815 - the authors' name
        None, ge=1, description="neighbours that count for a density; null: 1000, at most a tenth of the candidates"
    )
    sigma: float = Field(
        0.75, ge=0, description="distance below which two samples count as near-duplicates; 0: none do"
    )
    alpha: float = Field(0.6, ge=0, le=1, description="closeness to the target (1) against diversity (0)")
    C: float = Field(5.0, gt=0, description="scale of the distances in that trade-off")

    def find_idle(self) -> list[tuple[KeyPath, str]]:
        """What belongs to the other representation."""
        found = super().find_idle()
        gradients = self.representation == "gradient"
        others = {*EncoderFields.model_fields, "embed_model", "encoder"} if gradients else {*GRADIENT_KEYS}
        named = {path[0] for path, _ in found}
        reason = f"has no effect with representation {self.representation}"
        return [*found, *(((key,), reason) for key in type(self).model_fields if key in others - named)]


GRADIENT_KEYS = (
    "gradient_type",
    "adam_variant",
    "proj_dim",
    "projection",
    "seed",
    "save_interval",
    "feature_batch_tokens",
    "features_dtype",
    "keep_features",
)
"""Parameters of gradient features."""
