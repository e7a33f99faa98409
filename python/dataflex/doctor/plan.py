"""What a run would do: its steps, selections, mixtures and weights, and the forward passes that these add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataflex.config import RunConfig
from dataflex.curriculum.schedule import Phase, longest_selection
from dataflex.doctor.check import Check
from dataflex.errors import TrainingError
from dataflex.mixers.base import Mixer
from dataflex.mixers.domains import find_domains, initial_mixture
from dataflex.training.run import build_component, build_schedule, domain_names, load_rows, training_arguments
from dataflex.types import Sample
from dataflex.utils.shown import listed
from dataflex.weighters.base import Weighter


def plan_lines(config: RunConfig) -> list[str]:
    """The plan of a run as text; no weights are loaded.

    Raises:
        DataflexError: Component, data or mixture cannot be used.
        TrainingError: A selection does not fit into the rows.
    """
    component = build_component(config)
    try:
        rows = load_rows(config)[0]
        phases = run_phases(config, len(rows))
        schedule = schedule_check(config, phases, len(rows))
        if schedule.status == "fail":
            raise TrainingError(f"the selections do not fit: {schedule.detail}", hint=schedule.fix)
        lines = [schedule.detail]
        if component.mixer is not None:
            lines.append(f"mixture: {mixture_text(config, component.mixer, rows, phases)}")
        if component.weighter is not None:
            lines.append(f"weights: {weights_text(config, component.weighter, phases[-1].stop)}")
        if component.selector is not None:
            lines.append("`dataflex select CONFIG --num N --dry-run` times what one selection costs")
        return lines
    finally:
        if component.found is not None:
            component.found.close()


def run_phases(config: RunConfig, rows: int) -> list[Phase]:
    """The phases of the run; one with weights has a single one."""
    settings = training_arguments(config)
    schedule = build_schedule(config, rows)
    if config.train_type == "dynamic_weight":
        return [Phase(0, schedule.total_steps(settings.num_train_epochs), None)]
    return schedule.phases(settings.num_train_epochs)


def schedule_check(config: RunConfig, phases: Sequence[Phase], rows: int) -> Check:
    """Steps, and selections or mixtures; whether the selections fit into the rows."""
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    detail = f"{phases[-1].stop:,} steps of {batch} rows"
    selections = sum(phase.round is not None for phase in phases)
    if config.train_type == "dynamic_mix":
        return Check("schedule", "pass", f"{detail}; {selections} mixtures")
    if not selections:
        return Check("schedule", "pass", detail)
    wanted = longest_selection(phases) * batch
    detail = f"{detail}; {selections} selections of up to {wanted:,} of {rows:,}"
    if wanted > rows and not config.selection_repeats:
        return Check("schedule", "fail", detail, f"update_step of at most {rows // batch}, or selection_repeats: true")
    return Check("schedule", "pass", detail)


def mixture_text(config: RunConfig, mixer: Mixer[Any], samples: Sequence[Sample], phases: Sequence[Phase]) -> str:
    """What the run begins with, and what mixtures cost.

    Raises:
        DataError: Rows have no domain, or the proportions do not fit.
    """
    domains = find_domains(samples, config.domain_column, domain_names(config))
    rule, given = config.mixture_sample_rule, config.init_mixture_proportions
    initial = initial_mixture(domains, rule, given, mixer.initial_proportions(domains))
    parts = [
        f"{domain.name} {len(domain.rows):,} rows ({share:.1%})" for domain, share in zip(domains, initial, strict=True)
    ]
    passes = mixer.measured_rows(domains) * sum(phase.round is not None and phase.start > 0 for phase in phases)
    cost = f"mixtures add forward passes of {passes:,} rows" if passes else "mixtures cost no forward pass"
    return f"{listed(parts)}; {cost}"


def weights_text(config: RunConfig, weighter: Weighter[Any], steps: int) -> str:
    """What weights cost."""
    weighed = max(steps - config.warmup_step, 0)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    passes = weighter.passes * weighed * batch
    cost = f"they add forward passes of {passes:,.0f} rows" if passes else "they cost no forward pass"
    return f"in {weighed:,} of {steps:,} steps; {cost}"
