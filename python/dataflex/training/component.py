"""The component of a run, which is a selector, a mixer, a weighter or nothing, and the curriculum that asks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dataflex.curriculum.checks import selection_problems, text_problems
from dataflex.curriculum.curriculum import Curriculum
from dataflex.curriculum.mixing import Mixture, MixtureCurriculum
from dataflex.curriculum.schedule import Schedule
from dataflex.curriculum.weighing import WeightedCurriculum
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import DataError, SelectionError, TrainingError
from dataflex.mixers.base import Mixer
from dataflex.mixers.domains import Domain, find_domains, initial_mixture
from dataflex.plugins.registry import Kind, registry
from dataflex.selectors.base import Selector
from dataflex.training.arguments import TrainingArguments
from dataflex.utils.shown import listed
from dataflex.weighters.base import Weighter

_EXAMPLES: dict[Kind, str] = {
    "selector": 'selector="less", or df.LessSelector(proj_dim=4096)',
    "mixer": 'mixer="odm", or df.OdmMixer(alpha=0.9)',
    "weighter": 'weighter="loss", or df.LossWeighter(strategy="linupper")',
}
_BASES: dict[Kind, type[Any]] = {"selector": Selector, "mixer": Mixer, "weighter": Weighter}


@dataclass(frozen=True, slots=True)
class Component:
    """What decides in a run; at most one of them is there.

    Attributes:
        selector: Chooses the rows of a phase.
        mixer: Gives the shares of domains.
        weighter: Gives the weights of samples.
    """

    selector: Selector[Any] | None = None
    mixer: Mixer[Any] | None = None
    weighter: Weighter[Any] | None = None

    @classmethod
    def read(cls, selector: Any, mixer: Any, weighter: Any) -> Component:
        """Build what is given by name.

        Raises:
            SelectionError: It is neither a name nor a component of its kind.
            TrainingError: There is more than one.
            PluginError, ConfigError: No component has that name.
        """
        given: dict[Kind, Any] = {"selector": selector, "mixer": mixer, "weighter": weighter}
        there = {kind: value for kind, value in given.items() if value is not None}
        if len(there) > 1:
            raise TrainingError(
                f"a run has one of selector, mixer and weighter, and {' and '.join(there)} were given",
                hint="which rows, which shares of domains and which weights are decided by one component at a time",
            )
        return cls(**{kind: as_component(kind, value) for kind, value in there.items()})

    @property
    def found(self) -> Any:
        """The selector, mixer or weighter; None: rows are drawn at random throughout."""
        return next((part for part in self._parts() if part is not None), None)

    def check_schedule(self, schedule: Schedule | None) -> None:
        """Raise TrainingError for a component that has to be told when to decide, and is not."""
        kind = "selector" if self.selector is not None else None
        if self.mixer is not None and self.mixer.needs_schedule:
            kind = "mixer"
        if kind is not None and schedule is None:
            raise TrainingError(
                f"a run with a {kind} needs a schedule, which says when to {'select' if kind == 'selector' else 'mix'}",
                hint="schedule=df.Schedule(warmup_step=10, update_step=10, update_times=2)",
            )

    def default_schedule(self, steps: int) -> Schedule:
        """That of a run of so many steps without one: random rows, or weights, throughout."""
        return Schedule(steps) if self.weighter is None else Schedule(0, steps, 1)

    def _parts(self) -> Iterator[Any]:
        for entry in fields(self):
            yield getattr(self, entry.name)


def as_component(kind: Kind, given: Any, params: Mapping[str, Any] | None = None) -> Any:
    """A component by its registered name, with parameters, or one that is built already.

    Args:
        kind: ``selector``, ``mixer`` or ``weighter``.
        given: What was passed.
        params: Parameters of one that is named.

    Raises:
        SelectionError: It is neither, or parameters come with one that is built already.
        PluginError: No component has that name.
        ConfigError: A parameter is wrong.
    """
    if isinstance(given, str):
        return registry().get(kind, given).from_params(dict(params or {}))
    if not isinstance(given, _BASES[kind]):
        what = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise SelectionError(
            f"{kind}: expected the name of a {kind} or one that is built, got {what}", hint=_EXAMPLES[kind]
        )
    if params:
        raise SelectionError(
            f"parameters ({', '.join(params)}) need the name of a {kind}, not one that is built already"
        )
    return given


def build_curriculum(
    component: Component,
    schedule: Schedule,
    args: TrainingArguments,
    training: TokenizedDataset,
    evaluation: TokenizedDataset | None,
    *,
    global_batch: int,
    mixture: Mixture | None,
) -> Curriculum:
    """The curriculum of a run.

    Args:
        component: What decides in it.
        schedule: When.
        args: Arguments of the run.
        training: n candidates.
        evaluation: q target samples, or None.
        global_batch: Samples of one step.
        mixture: What a mixer mixes (:func:`find_mixture`).
    """
    shared: dict[str, Any] = {
        "num_train_epochs": args.num_train_epochs,
        "global_batch": global_batch,
        "seed": args.seed,
        "output_dir": args.output_dir,
        "shuffle": not args.disable_shuffling,
    }
    if component.mixer is not None and mixture is not None:
        return MixtureCurriculum(schedule, component.mixer, mixture, training, **shared)
    if component.weighter is not None:
        shared["micro_batch"] = args.per_device_train_batch_size
        return WeightedCurriculum(schedule, component.weighter, training, evaluation, **shared)
    return Curriculum(schedule, component.selector, training, evaluation, task_column=args.task_column, **shared)


def find_mixture(
    mixer: Mixer[Any],
    args: TrainingArguments,
    training: TokenizedDataset,
    measured: TokenizedDataset | None = None,
    names: Sequence[str] = (),
) -> Mixture:
    """The domains of a run and the proportions that it begins with.

    Args:
        mixer: The run's mixer.
        args: Where the domains are found and what the run begins with.
        training: n candidates.
        measured: Rows to measure domains by; None: the candidates.
        names: Domains that there are, in their order; others follow in order of appearance.

    Raises:
        DataError: Rows belong to no domain, the proportions do not fit, or the rows to measure by are of other domains.
    """
    domains = find_domains(training.samples, args.domain_column, names)
    initial = initial_mixture(
        domains, args.mixture_sample_rule, args.init_mixture_proportions, mixer.initial_proportions(domains)
    )
    if measured is None:
        return Mixture(domains, initial)
    return Mixture(domains, initial, measured, _measured_domains(measured, domains, args.domain_column))


def _measured_domains(measured: TokenizedDataset, domains: Sequence[Domain], column: str | None) -> tuple[Domain, ...]:
    """The domains of the rows to measure by: of the same names or, where none is, of the datasets in the same order."""
    names = [domain.name for domain in domains]
    found = find_domains(measured.samples, column)
    if column is None and len(found) == len(names) and not {domain.name for domain in found} & {*names}:
        return tuple(Domain(name, domain.rows) for name, domain in zip(names, found, strict=True))
    by_name = {domain.name: domain for domain in found}
    other = [name for name in by_name if name not in names]
    missing = [domain.name for domain in domains if len(domain.rows) and domain.name not in by_name]
    if other or missing:
        raise DataError(
            f"mixer_eval_dataset has rows of {listed(by_name)}, expected rows of each domain of the training set: "
            f"{listed(names)}",
            hint="datasets of other names stand for the training set's in the same order, if they are as many",
        )
    nothing = find_domains((), column, names)
    return tuple(by_name.get(domain.name, domain) for domain in nothing)


def component_problems(
    component: Component,
    schedule: Schedule,
    args: TrainingArguments,
    training: TokenizedDataset,
    evaluation: TokenizedDataset | None,
    global_batch: int,
) -> Iterator[str]:
    """Why the component cannot do its part in a run.

    Args:
        component: What decides in it.
        schedule: When.
        args: Arguments of the run.
        training: n candidates.
        evaluation: Evaluation set.
        global_batch: Samples of one step.
    """
    mixer, weighter = component.mixer, component.weighter
    if mixer is None and weighter is None:
        yield from selection_problems(
            schedule,
            component.selector,
            len(training),
            evaluation,
            global_batch,
            num_train_epochs=args.num_train_epochs,
            repeats=args.selection_repeats,
        )
    if component.selector is not None:
        yield from text_problems(component.selector, training, evaluation)
    if mixer is not None and mixer.needs_schedule and not schedule.update_step * schedule.update_times:
        yield f"the schedule has no phase for the mixer {mixer.name!r}: update_step and update_times must be at least 1"
    if weighter is None:
        return
    if weighter.needs_eval_dataset and not evaluation:
        yield f"weighter {weighter.name!r} needs an evaluation set (eval_dataset)"
    if schedule.cycle_steps <= schedule.warmup_step:
        yield f"the run ends after {schedule.cycle_steps} steps, before its first weighted one"
    if weighter.scope == "micro_batch" and args.per_device_train_batch_size == 1:
        yield (
            f"weighter {weighter.name!r} with scope micro_batch compares the samples of a forward pass, and "
            "per_device_train_batch_size 1 makes it one sample: scope global compares those of a step"
        )
