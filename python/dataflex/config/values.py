"""Types of configuration values: what people write in YAML, turned into what the code wants.

Values are strict (text is not a number, ``true`` is not 1); each leniency below is one that YAML or LLaMA-Factory
users count on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo

from dataflex.utils.messages import LITERAL_SECRET, is_environment_name, nearest, shown

LOSS = "eval_loss"
TRACKERS = ("wandb", "tensorboard", "swanlab", "mlflow", "trackio")
DDP_TIMEOUT_SECONDS = 1800
OptimizerName = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "sgd",
    "muon",
]
"""Names that transformers gives to optimizers, of those that runs may use; ``muon`` is torch's."""
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
ADAMW = ("adamw_torch", "adamw_torch_fused")
"""Names of torch's AdamW; fused or not, its step is the same."""
_SAME_OPTIMIZERS = {"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"}


ComponentKind = Literal["selector", "mixer", "weighter"]
COMPONENT_KINDS: dict[str, ComponentKind] = {
    "dynamic_select": "selector",
    "dynamic_mix": "mixer",
    "dynamic_weight": "weighter",
}
"""What decides in a run of each ``train_type``; ``static`` has nothing."""
MixtureRule = Literal["mixture", "stratified", "uniform"]
"""What the first phase of a mixing run begins with."""
MIXTURE_KEYS = ("domain_column", "mixture_sample_rule", "init_mixture_proportions")


def whole_steps(cycle_steps: int, num_train_epochs: float) -> int:
    """Steps of ``num_train_epochs`` cycles, a part of a step rounded up.

    The product of floats is a little off: 1.1 * 100 are 110 steps, not 111, and 18 / 11 of 11 steps are 18.
    """
    return math.ceil(round(cycle_steps * num_train_epochs, 6))


def count_or_share(text: str) -> float:
    """``5%`` and ``0.05`` are a share (float), ``500`` is a number (int).

    Raises:
        ValueError: The text is neither.
    """
    text = text.strip()
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return int(text) if text.isdecimal() else float(text)


def _integer(value: Any) -> Any:
    """``1e3`` is an integer to whoever wrote it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> Any:
    """YAML 1.1 parsers hand ``1e-4`` over as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _strings(value: Any) -> Any:
    """``a,b`` is the list [a, b]."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _names(value: Any) -> Any:
    names = _strings(value)
    if not isinstance(names, list) or not names:
        raise ValueError(f"expected a name or a list of names, got {shown(value)}")
    return names


def _targets(value: Any) -> Any:
    names = _strings(value)
    if not isinstance(names, list) or names == ["all"]:
        return value if names != ["all"] else "all"
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"expected all, or names of modules, got {shown(value)}")
    if "all" in names:
        raise ValueError(f"'all' stands alone, got {shown(value)}")
    return names


def tracker_names(value: Any) -> list[str]:
    """Accept a name, a comma-separated text, a list, none or null (``no`` is false to YAML)."""
    names = [] if value is None or value is False else _strings(value)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected none or names of trackers, got {shown(value)}")
    return [name for name in names if name != "none"]


def optimizer_name(value: Any) -> Any:
    """The name of an optimizer; some have two in transformers."""
    return _SAME_OPTIMIZERS.get(value, value) if isinstance(value, str) else value


def _trackers(value: Any) -> list[str]:
    names = tracker_names(value)
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"expected none or some of {', '.join(TRACKERS)}, got {name!r}{nearest(name, TRACKERS)}")
    return list(dict.fromkeys(names))


def _environment_name(value: Any) -> Any:
    if value is None or is_environment_name(value):
        return value
    raise ValueError(LITERAL_SECRET)


def _resume(value: Any) -> Any:
    if value is None:
        return False
    if value == "" or not isinstance(value, bool | str):
        raise ValueError(f"expected true, false or the path of a checkpoint, got {shown(value)}")
    return value


def _seconds(value: Any) -> Any:
    return DDP_TIMEOUT_SECONDS if value is None or value is False else _integer(value)


def _eval_strategy(value: Any) -> Any:
    """``no`` without quotes is the boolean false to YAML."""
    return "no" if value is None or value is False else value


def _best_metric(value: Any) -> Any:
    """``loss`` is ``eval_loss``, as in transformers."""
    if value is None:
        return LOSS
    return f"eval_{value}" if isinstance(value, str) and not value.startswith("eval_") else value


def _greater_is_better(value: Any, info: ValidationInfo) -> Any:
    return info.data.get("metric_for_best_model") != LOSS if value is None else value


def _eval_metric(value: Any) -> Any:
    """``exact_match`` is {metric: exact_match}, a list of metrics is {metric: [...]}."""
    if value in (None, False, "none"):
        return None
    params = value if isinstance(value, dict) else {"metric": value}
    if not isinstance(params.get("metric"), str | list) or not params["metric"]:
        raise ValueError(f"expected a metric, a list of metrics or a mapping with the key metric, got {shown(value)}")
    return params


def metric_key(params: Mapping[str, Any]) -> str:
    """The name under which an evaluation reports its metric: ``eval_exact_match``; ``eval_metric`` for several."""
    metric = params["metric"]
    return f"eval_{metric.rpartition(':')[2]}" if isinstance(metric, str) else "eval_metric"


def evaluated_keys(params: Mapping[str, Any] | None) -> list[str]:
    """What an evaluation with these parameters of ``eval_metric`` can report, the loss first."""
    return [LOSS] if params is None else [LOSS, metric_key(params)]


def _components_file(value: Any) -> Any:
    if value is None or value is False or (isinstance(value, str) and value):
        return value
    raise ValueError(f"expected the path of a file, null or false, got {shown(value)}")


def _layers(value: Any) -> Any:
    if value == 0:
        raise ValueError("0 layers would train nothing: a number of last layers, or a negative one of first layers")
    return value


def refuse(supported: str, *values: str) -> BeforeValidator:
    """Refuse values that LLaMA-Factory or DataFlex know and dataflex does not support, saying what it does support."""

    def check(value: Any) -> Any:
        if value in values:
            raise ValueError(f"{value!r} is not supported (yet); supported: {supported}")
        return value

    return BeforeValidator(check)


def _deepspeed(value: Any) -> Any:
    if value is None or value is False:
        return None
    if not value or not isinstance(value, str | dict):
        raise ValueError(
            f"expected a DeepSpeed configuration (a file or its content), null or false, got {shown(value)}"
        )
    return value


def _fsdp(value: Any) -> Any:
    if value in (None, False, "", []):
        return None
    if value is not True and not isinstance(value, str | list):
        raise ValueError(f"expected true, full_shard auto_wrap, null or false, got {shown(value)}")
    return value


def _fsdp_config(value: Any) -> Any:
    if value is None or value is False:
        return None
    if not isinstance(value, str | dict):
        raise ValueError(f"expected settings of FSDP (a JSON file or its content), null or false, got {shown(value)}")
    return value


def _lora_alpha(value: Any, info: ValidationInfo) -> Any:
    return 2 * info.data.get("lora_rank", 1) if value is None else _integer(value)


def _eval_steps(value: Any, info: ValidationInfo) -> Any:
    return info.data.get("logging_steps", 1) if value is None else _integer(value)


_AtLeastOne = Annotated[int, Field(ge=1)]

Int = Annotated[int, Field(le=2**63 - 1), BeforeValidator(_integer)]
Layers = Annotated[Int, BeforeValidator(_layers)]
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Text], BeforeValidator(_names, json_schema_input_type=Text | list[Text])]
EnvironmentName = Annotated[str | None, BeforeValidator(_environment_name)]
LoraTarget = Annotated[Literal["all"] | list[str], BeforeValidator(_targets, json_schema_input_type=Text | list[Text])]
LoraAlpha = Annotated[_AtLeastOne, BeforeValidator(_lora_alpha, json_schema_input_type=_AtLeastOne | None)]
EvalSteps = Annotated[_AtLeastOne, BeforeValidator(_eval_steps, json_schema_input_type=_AtLeastOne | None)]
Trackers = Annotated[list[str], BeforeValidator(_trackers, json_schema_input_type=str | list[str] | None)]
Deepspeed = Annotated[
    str | dict[str, Any] | None,
    BeforeValidator(_deepspeed, json_schema_input_type=Text | dict[str, Any] | Literal[False] | None),
]
Fsdp = Annotated[
    Literal[True] | str | list[str] | None,
    BeforeValidator(_fsdp, json_schema_input_type=bool | Text | list[Text] | None),
]
FsdpConfig = Annotated[
    str | dict[str, Any] | None,
    BeforeValidator(_fsdp_config, json_schema_input_type=Text | dict[str, Any] | Literal[False] | None),
]
Resume = Annotated[bool | str, BeforeValidator(_resume, json_schema_input_type=bool | Text | None)]
Seconds = Annotated[_AtLeastOne, BeforeValidator(_seconds, json_schema_input_type=_AtLeastOne | Literal[False] | None)]
EvalStrategy = Annotated[
    Literal["no", "steps", "epoch"],
    BeforeValidator(_eval_strategy, json_schema_input_type=Literal["no", "steps", "epoch", False]),
]
Optim = Annotated[OptimizerName, BeforeValidator(optimizer_name)]
BestMetric = Annotated[str, BeforeValidator(_best_metric, json_schema_input_type=Text | None)]
GreaterIsBetter = Annotated[bool, BeforeValidator(_greater_is_better, json_schema_input_type=bool | None)]
EvalMetric = Annotated[
    dict[str, Any] | None,
    BeforeValidator(
        _eval_metric, json_schema_input_type=Text | list[dict[str, Any]] | dict[str, Any] | Literal[False] | None
    ),
]
ComponentsFile = Annotated[
    str | Literal[False] | None, BeforeValidator(_components_file, json_schema_input_type=Text | Literal[False] | None)
]
