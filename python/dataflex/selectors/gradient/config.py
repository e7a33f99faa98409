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
    save_interval: int = Field(64, ge=1, description="most rows of gradients that a kill loses, beside one batch")
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

    scoring: Literal["auto", "exact", "projected"] = Field(
        "auto",
        description="cosines of whole gradients, in one pass without a store, or of projected features; auto: exact "
        "where the rule has few directions and nobody asks for features",
    )
    task_column: str = Field("task", description="column that holds a sample's task, for aggregate: task_max")

    def find_idle(self) -> list[tuple[KeyPath, str]]:
        """What concerns the features, where there are none."""
        found = super().find_idle()
        if self.scoring == "exact":
            found += [((key,), "has no effect with scoring exact") for key in FEATURE_KEYS]
        return found

    def wants_features(self) -> list[str]:
        """Keys that fix the features and have a value of their own: whoever sets them wants features.

        ``keep_features`` is none of them: it may change when a run goes on, and must change no score.
        """
        fixing = [key for key in FEATURE_KEYS if key != "keep_features"]
        return [key for key in fixing if getattr(self, key) != type(self).model_fields[key].default]


FEATURE_KEYS = ("proj_dim", "projection", "features_dtype", "keep_features")
"""Parameters of the features, which exact scoring does not make."""
GradientConfigT = TypeVar("GradientConfigT", bound=GradientConfig)
