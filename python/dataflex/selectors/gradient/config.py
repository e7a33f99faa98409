"""Parameters of every selector by gradient similarity."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from dataflex.gradients.memory import BatchTokens
from dataflex.gradients.samples import GradientType
from dataflex.gradients.store import FeatureDtype
from dataflex.projection.projector import AdamVariant
from dataflex.selectors.candidates import CandidateConfig
from dataflex.utils.messages import Path as KeyPath


class FeatureConfig(CandidateConfig):
    """Parameters of projected gradient features."""

    cache_dir: Path | None = Field(None, description="folder of features and answers; null: inside output_dir")
    gradient_type: GradientType = Field("adam", description="normalise training gradients as Adam would, or not (sgd)")
    adam_variant: AdamVariant = Field(
        "adamw", description="torch's AdamW step, the formula of LESS, or the step without its first moment"
    )
    proj_dim: int = Field(4096, ge=1, description="dimension k of the projected features")
    projection: str = Field("sjlt", description="kind of projection")
    seed: int = Field(123, ge=0, description="seed of the projection and of whatever the selector draws")
    save_interval: int = Field(64, ge=1, description="rows between two writes of the features, and at most in a batch")
    feature_batch_tokens: BatchTokens = Field(2048, description="padded tokens of one batch of gradients, or auto")
    features_dtype: FeatureDtype = Field("float32", description="type of the features on disk; 16 bits halve them")
    keep_features: Literal["last", "all", "none"] = Field("last", description="which rounds' features stay on disk")

    def find_idle(self) -> list[tuple[KeyPath, str]]:
        """What concerns Adam's normalisation, where there is none."""
        found = super().find_idle()
        if self.gradient_type == "sgd":
            found.append((("adam_variant",), "has no effect with gradient_type sgd"))
        return found


class GradientConfig(FeatureConfig):
    """Parameters of every selector by gradient similarity."""

    task_column: str = Field("task", description="column that holds a sample's task, for aggregate: task_max")


GradientConfigT = TypeVar("GradientConfigT", bound=GradientConfig)
