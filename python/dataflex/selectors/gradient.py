"""What selectors by gradient similarity share: training features, directions of the targets, scores, top k.

A candidate's feature is phi_i = P u_i with its (Adam-normalised) loss gradient u_i; the targets are features of the
evaluation set, and a subclass says how they come about. A candidate's score is its cosine with the targets, aggregated
over them (:mod:`dataflex.similarity`).
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from dataflex.errors import SelectionError
from dataflex.features import broken_rows, report_broken
from dataflex.progress import Stopwatch
from dataflex.projection import AdamVariant, Projector
from dataflex.sample_features import GradientType, SampleFeatures
from dataflex.selectors.base import Selector, SelectorConfig
from dataflex.similarity import Aggregate, cosine_scores, target_directions, top_k
from dataflex.store import FeatureStore
from dataflex.types import Sample, Selection, SelectionContext, group_names


class GradientConfig(SelectorConfig):
    """Parameters of every selector by gradient similarity."""

    cache_dir: Path | None = Field(None, description="folder of features and answers; null: inside output_dir")
    gradient_type: GradientType = Field("adam", description="normalise training gradients as Adam would, or not (sgd)")
    adam_variant: AdamVariant = Field("adamw", description="torch's AdamW step, or the formula of LESS")
    proj_dim: int = Field(4096, ge=1, description="dimension k of the projected features")
    projection: str = Field("sjlt", description="kind of projection")
    seed: int = Field(123, ge=0, description="seed of the projection and of whatever the selector draws")
    save_interval: int = Field(16, ge=1, description="rows between two writes of the feature store")
    feature_batch_tokens: int = Field(4096, ge=1, description="padded tokens of one batch of training gradients")
    keep_features: Literal["last", "all", "none"] = Field("last", description="which rounds' features stay on disk")
    aggregate: Aggregate = Field("mean", description="rule over the evaluation samples")
    task_column: str = Field("task", description="column that holds a sample's task, for aggregate: task_max")


GradientConfigT = TypeVar("GradientConfigT", bound=GradientConfig)


@dataclass(frozen=True, slots=True)
class Targets:
    """The evaluation side of a round.

    Attributes:
        directions: ``(d, k)`` float64: a candidate's score is its largest inner product with one of them.
        report: What the selection's report says about them.
    """

    directions: Tensor
    report: Mapping[str, Any]


class GradientSelector(Selector[GradientConfigT]):
    """Selects the candidates whose features are most aligned with those of the targets."""

    needs_eval_dataset: ClassVar[bool] = True

    @abstractmethod
    def targets(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> Targets:
        """The evaluation side of this round.

        Args:
            context: The selection's context.
            projector: The projection of both sides.
            watch: Counts the time of each part.
        """

    def check(self, context: SelectionContext) -> None:
        """Check the projection and the evaluation set before training starts."""
        self.projector()
        if not context.eval_dataset:
            raise SelectionError(f"{self.name} needs an evaluation set", hint="set eval_dataset")

    def select(self, context: SelectionContext) -> Selection:
        """Run one round: targets, training features, scores.

        Raises:
            SelectionError: There is no usable target, or too few candidates have a usable gradient.
        """
        watch = Stopwatch()
        projector = self.projector()
        targets = self.targets(context, projector, watch)
        with watch.phase("training gradients"):
            train = self.training_features(context, projector)
            unusable = [context.train_dataset[row].sample.id for row in broken_rows(train)]
            report_broken("training", unusable)
        with watch.phase("scores"):
            scores = cosine_scores(train.blocks(), targets.directions, len(context.train_dataset))
            indices = top_k(scores, context.num_samples)
        self._prune(context)
        report = {
            "seconds": watch.seconds,
            "candidates": {"total": len(scores), "not_finite": len(unusable)},
            **targets.report,
        }
        return Selection(indices, scores, self.name, context.step, context.round, report)

    def projector(self) -> Projector:
        """The configured projection."""
        return Projector(self.config.proj_dim, self.config.projection, self.config.seed)

    def training_features(self, context: SelectionContext, projector: Projector) -> FeatureStore:
        """Features of all candidates in the model's current state."""
        features = SampleFeatures(
            context,
            context.train_dataset,
            projector,
            gradient_type=self.config.gradient_type,
            adam_variant=self.config.adam_variant,
            batch_tokens=self.config.feature_batch_tokens,
        )
        return features.fill(
            self.round_dir(context) / "train", shard_rows=self.config.save_interval, description="training gradients"
        )

    def directions(self, store: FeatureStore, samples: Sequence[Sample]) -> tuple[Tensor, list[str]]:
        """Directions of the usable evaluation rows, and the ids of those whose gradient is not finite.

        Args:
            store: Features of the targets, one row a sample.
            samples: The samples of these rows.
        """
        broken = set(broken_rows(store))
        ids = [samples[row].id for row in sorted(broken)]
        report_broken("evaluation", ids)
        usable = [row for row in range(len(samples)) if row not in broken]
        groups = group_names([samples[row] for row in usable], self.config.task_column)
        return target_directions(store.load()[usable], self.config.aggregate, groups), ids

    def work_dir(self, context: SelectionContext) -> Path:
        """Folder of everything that rounds leave behind."""
        return self.config.cache_dir or context.output_dir

    def round_dir(self, context: SelectionContext) -> Path:
        """Folder of this round's features."""
        return self.work_dir(context) / "features" / f"step-{context.step}"

    def _prune(self, context: SelectionContext) -> None:
        """Remove the features that ``keep_features`` does not keep."""
        current = self.round_dir(context)
        for path in sorted(current.parent.glob("step-*")):
            keep = self.config.keep_features == "all" or (self.config.keep_features == "last" and path == current)
            if not keep:
                shutil.rmtree(path)
