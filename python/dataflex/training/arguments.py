"""Hyper-parameters of the training loop; names as in transformers and LLaMA-Factory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dataflex.config import fsdp
from dataflex.config.deepspeed import conflicts, read_deepspeed
from dataflex.config.known import ADVICE as KEY_ADVICE
from dataflex.config.known import RENAMED
from dataflex.config.values import (
    DDP_TIMEOUT_SECONDS,
    BestMetric,
    EnvironmentName,
    EvalMetric,
    Fsdp,
    GreaterIsBetter,
    MixtureRule,
    Optim,
    tracker_names,
)
from dataflex.errors import ConfigError
from dataflex.utils.home import HomePaths
from dataflex.utils.messages import explain_all, shown

ADVICE = {
    "model_name_or_path": "the model itself goes to the trainer: df.Trainer(model, ...)",
    "precision": "bf16=True or fp16=True",
    "save_strategy": KEY_ADVICE["save_strategy"],
    "train_batch_size": "per_device_train_batch_size",
    "warmup_step": "it belongs to the schedule: df.Schedule(warmup_step=..., update_step=..., update_times=...)",
    "update_step": "it belongs to the schedule: df.Schedule(warmup_step=..., update_step=..., update_times=...)",
    "update_times": "it belongs to the schedule: df.Schedule(warmup_step=..., update_step=..., update_times=...)",
}
"""What to write in place of an argument that does not exist, beyond the nearest name."""
_RENAMED = {
    **RENAMED,
    "max_length": "cutoff_len",
    "gradient_clipping": "max_grad_norm",
    "scheduler": "lr_scheduler_type",
}


def _no_limit(value: Any) -> Any:
    """Transformers writes -1 for no limit."""
    return None if value == -1 else value


def _deepspeed_content(value: Any) -> Any:
    return read_deepspeed(str(value)) if isinstance(value, str | Path) else value


def _fsdp_content(value: Any) -> Any:
    return fsdp.read_settings(str(value)) if isinstance(value, str | Path) else value


class SwanlabOptions(BaseModel):
    """What SwanLab is started with; secrets are named by their environment variables."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    project: str = Field("dataflex", description="project")
    workspace: str | None = Field(None, description="workspace; null: the account's own")
    run_name: str | None = Field(None, description="name of the experiment; null: the run_name of the arguments")
    mode: Literal["cloud", "local", "offline", "disabled"] = Field("cloud", description="where SwanLab writes")
    api_key: EnvironmentName = Field(None, description="variable with the key; null: SwanLab's own login")
    logdir: str | None = Field(None, description="folder of local files; null: swanlog in output_dir")
    lark_webhook_url: EnvironmentName = Field(None, description="variable with the URL of a Lark webhook to notify")
    lark_secret: EnvironmentName = Field(None, description="variable with the secret of that webhook")


class TrainingArguments(HomePaths):
    """Arguments of :class:`dataflex.Trainer`.

    Raises:
        ConfigError: Every wrong or unknown argument, all at once.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True)

    output_dir: Path = Field(description="folder of everything that the run writes")
    overwrite_output_dir: bool = Field(False, description="start over in a folder that is not empty")
    resume_from_checkpoint: bool | Path = Field(
        False, description="true: the last checkpoint of output_dir; or the folder of a checkpoint"
    )
    seed: int = Field(42, ge=0, description="seed of data order, dropout and selections")
    template: str | None = Field(None, description="chat template by name; null: the tokenizer's own")
    cutoff_len: int = Field(2048, ge=2, description="longest sample in tokens")
    cache_dir: Path | None = Field(
        None, description="folder of tokenised data, for any run; null: the common one, for 2,000 rows and more"
    )
    overwrite_cache: bool = Field(False, description="tokenise again what the cache has")
    preprocessing_num_workers: int | None = Field(
        None, ge=1, description="processes that tokenise, at most one a core; null: one, with threads"
    )
    per_device_train_batch_size: int = Field(1, ge=1, description="samples of one forward pass on one device")
    gradient_accumulation_steps: int = Field(1, ge=1, description="forward passes of one optimizer step")
    num_train_epochs: float = Field(1.0, gt=0, description="how often the schedule is gone through")
    max_steps: Annotated[int | None, BeforeValidator(_no_limit)] = Field(
        None, ge=1, description="optimizer steps of the run, in place of num_train_epochs; null or -1: by epochs"
    )
    optim: Optim = Field("adamw_torch", description="optimizer, by transformers' name")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate")
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, description="LoRA+: rate of the adapters' B matrices over learning_rate; null: 1"
    )
    loraplus_lr_embedding: float = Field(1e-6, gt=0, description="LoRA+: rate of the B matrices of adapted embeddings")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's second moment")
    adam_epsilon: float = Field(1e-8, gt=0, description="epsilon in AdamW's denominator")
    max_grad_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0 does not clip")
    lr_scheduler_type: str = Field("cosine", description="name of a transformers scheduler")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="share of the steps in which the learning rate rises")
    warmup_steps: int | None = Field(
        None, ge=0, description="the same as a number of optimizer steps; null: by warmup_ratio"
    )
    bf16: bool = Field(False, description="mixed precision in bfloat16")
    fp16: bool = Field(False, description="mixed precision in float16")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    disable_shuffling: bool = Field(False, description="random phases go through the dataset in its own order")
    selection_repeats: bool = Field(False, description="a phase may be longer than the dataset; samples then repeat")
    logging_steps: int = Field(10, ge=1, description="optimizer steps between log entries")
    save_steps: int = Field(100, ge=1, description="optimizer steps between checkpoints")
    save_total_limit: int | None = Field(None, ge=1, description="checkpoints to keep; null: all")
    save_only_model: bool = Field(False, description="checkpoints without optimizer state: smaller, not resumable")
    plot_loss: bool = Field(True, description="draw training_loss.png")
    report_to: Annotated[list[str], BeforeValidator(tracker_names)] = Field(
        default_factory=list, description="none, or names of accelerate's trackers"
    )
    run_name: str | None = Field(None, description="name of the run in trackers; null: made up by them")
    swanlab: SwanlabOptions = Field(SwanlabOptions(), description="what the tracker swanlab is started with")
    eval_strategy: Literal["no", "steps", "epoch"] = Field("no", description="when to evaluate")
    eval_steps: int = Field(100, ge=1, description="optimizer steps between evaluations")
    per_device_eval_batch_size: int = Field(8, ge=1, description="samples of one forward pass in evaluation")
    eval_metric: EvalMetric = Field(
        None,
        description="score the model's answers to the evaluation set: a metric, or parameters of the reward metric",
    )
    eval_max_new_tokens: int = Field(128, ge=1, description="longest answer that is scored, in tokens")
    metric_for_best_model: BestMetric = Field("eval_loss", description="eval_loss, or eval_ and the metric's name")
    greater_is_better: GreaterIsBetter = Field(
        None, validate_default=True, description="null: true unless the metric is eval_loss"
    )
    load_best_model_at_end: bool = Field(False, description="end with the best evaluated model, not the last")
    early_stopping_steps: int | None = Field(None, ge=1, description="evaluations without progress before the end")
    early_stopping_min_delta: float = Field(0.0, ge=0, description="smallest change that is an improvement")
    ddp_timeout: int = Field(DDP_TIMEOUT_SECONDS, ge=1, description="seconds that processes wait for each other")
    deepspeed: Annotated[dict[str, Any] | None, BeforeValidator(_deepspeed_content)] = Field(
        None, description="DeepSpeed's settings or their JSON file: ZeRO stage 0 to 3"
    )
    fsdp: Fsdp = Field(
        None, description="shard the parameters over the processes (FSDP2): true, or full_shard auto_wrap"
    )
    fsdp_config: Annotated[dict[str, Any] | None, BeforeValidator(_fsdp_content)] = Field(
        None, description="settings of fsdp in transformers' form, or their JSON file"
    )
    task_column: str = Field("task", description="column that groups samples in reports")
    domain_column: str | None = Field(
        None, description="column whose values are the domains that a mixer mixes; null: each dataset is one"
    )
    mixture_sample_rule: MixtureRule | None = Field(
        None,
        description="shares of the first phase: mixture (init_mixture_proportions), stratified (by size), uniform; "
        "null: mixture where there are some, else the mixer's own, else stratified",
    )
    init_mixture_proportions: list[float] | dict[str, float] | None = Field(
        None, description="shares of the first phase, in the order of the domains or by their names"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError([f"training argument {line}" for line in _lines(error)]) from error

    @model_validator(mode="after")
    def _consistent(self) -> TrainingArguments:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude each other")
        for _, problem in conflicts(self.deepspeed, fp16=self.fp16, optim=self.optim, quantization=None):
            raise ValueError(problem)
        if self.deepspeed is not None:
            read_deepspeed(self.deepspeed)
        found = fsdp.conflicts(self.fsdp, fp16=self.fp16, optim=self.optim, deepspeed=self.deepspeed, quantization=None)
        for _, problem in found:
            raise ValueError(problem)
        fsdp.read_fsdp(self.fsdp, self.fsdp_config)
        if self.eval_strategy == "no" and (self.load_best_model_at_end or self.early_stopping_steps):
            raise ValueError("load_best_model_at_end and early_stopping_steps need eval_strategy steps or epoch")
        return self

    @property
    def mixed_precision(self) -> Literal["no", "bf16", "fp16"]:
        """The name that accelerate gives to the precision of the forward pass."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"


def _lines(error: ValidationError) -> list[str]:
    """One line a wrong argument; of one that does not exist, what to write in its place."""
    lines = []
    for problem, (path, text) in zip(error.errors(), explain_all(error, TrainingArguments), strict=True):
        name = str(path[-1]) if path else ""
        if problem["type"] == "extra_forbidden" and len(path) == 1:
            if name in ADVICE:
                text = f"unknown key {shown(name)}: {ADVICE[name]}"
            elif name in _RENAMED:
                text = f"unknown key {shown(name)}: it is called {_RENAMED[name]} here"
        lines.append(text)
    return lines
