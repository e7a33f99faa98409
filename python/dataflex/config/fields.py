"""Every key of a run, typed and documented: LLaMA-Factory's names and defaults, plus those of dynamic selection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr

from dataflex.config.origin import Origin
from dataflex.config.paths import locate, resolve_path
from dataflex.config.values import (
    DDP_TIMEOUT_SECONDS,
    BestMetric,
    ComponentsFile,
    Deepspeed,
    EnvironmentName,
    EvalMetric,
    EvalSteps,
    EvalStrategy,
    Float,
    Fsdp,
    FsdpConfig,
    GreaterIsBetter,
    Int,
    Layers,
    LoraAlpha,
    LoraTarget,
    MixtureRule,
    Names,
    Optim,
    Resume,
    Seconds,
    Text,
    Trackers,
    refuse,
)
from dataflex.utils.home import HomePaths

Stage = Annotated[Literal["sft"], refuse("sft", "pt", "rm", "ppo", "dpo", "kto")]
QuantizationMethod = Annotated[
    Literal["bnb"], refuse("bnb", "gptq", "awq", "aqlm", "quanto", "eetq", "hqq", "mxfp4", "fp8")
]
FinetuningType = Annotated[Literal["lora", "full", "freeze"], refuse("lora, full, freeze", "oft")]
TrainType = Annotated[
    Literal["static", "dynamic_select", "dynamic_mix", "dynamic_weight"],
    refuse("static, dynamic_select, dynamic_mix, dynamic_weight", "dynamic_weighting"),
]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]


class FileConfig(HomePaths):
    """Base of the configurations that come from a flat YAML file."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where the values were written."""
        return self._origin

    def resolve(self, value: str | Path) -> Path:
        """The existing file or folder that ``value`` names, from the working directory or the file's folder.

        Raises:
            ConfigError: It is in neither place; both are named.
        """
        return resolve_path(value, self.origin.folder)

    def locate(self, value: str) -> str:
        """The absolute path of a local file or folder, or ``value`` itself if it can be a hub id.

        Raises:
            ConfigError: ``value`` can only be a path and does not exist.
        """
        return locate(value, self.origin.folder)

    def warnings(self) -> list[str]:
        """Keys that were given and have no effect, and values that YAML reads otherwise than they look; a line each."""
        return [*self.origin.notes.values(), *self.origin.ignored.values()]


class RunFields(FileConfig):
    """The keys of a training run."""

    # Model
    model_name_or_path: Text = Field(description="base model: a local folder or a hub id")
    adapter_name_or_path: Text | None = Field(
        default=None, description="LoRA adapter to go on training: a local folder or a hub id; null starts a new one"
    )
    trust_remote_code: bool = Field(
        default=False, description="let the model's repository run its own Python code on this machine"
    )

    quantization_bit: Literal[4, 8] | None = Field(
        default=None,
        description="QLoRA: base weights in 4 or 8 bits (bitsandbytes), the adapter in float32; null: neither",
    )
    quantization_method: QuantizationMethod = Field(default="bnb", description="who quantises: bitsandbytes")
    quantization_type: Literal["nf4", "fp4"] = Field(default="nf4", description="code of 4-bit weights")
    double_quantization: bool = Field(default=True, description="quantise the scales of 4-bit weights, too")

    # Method
    stage: Stage = Field(default="sft", description="supervised fine-tuning")
    do_train: bool = Field(default=True, description="train; there is nothing else that a run could do")
    finetuning_type: FinetuningType = Field(
        default="lora",
        description="lora: an adapter on a frozen model; full: all parameters; freeze: those of some layers",
    )
    freeze_trainable_layers: Layers = Field(
        default=2, description="freeze: how many layers are trained, the last ones; the first ones if negative"
    )
    freeze_trainable_modules: Names = Field(
        default=["all"], description="freeze: modules of these layers, by name, or all"
    )
    freeze_extra_modules: Names | None = Field(
        default=None, description="freeze: modules outside the layers that are trained, too, by name"
    )
    lora_target: LoraTarget = Field(
        default="all",
        description="modules that get an adapter: all linear ones, or names (a list, or comma-separated), those of "
        "experts' parameters too",
    )
    lora_rank: Int = Field(default=8, ge=1, description="rank r of the adapters")
    lora_alpha: LoraAlpha = Field(
        default=None, validate_default=True, description="the update is scaled by alpha / r; null: twice lora_rank"
    )
    use_rslora: bool = Field(default=False, description="scale the update by alpha / sqrt(r) (rsLoRA)")
    use_dora: bool = Field(default=False, description="learn norms of weights apart from their directions (DoRA)")
    lora_dropout: Float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapters' inputs")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, about a third more time"
    )
    deepspeed: Deepspeed = Field(
        default=None, description="DeepSpeed configuration with ZeRO stage 0 to 3: a JSON file, or its content"
    )

    fsdp: Fsdp = Field(
        default=None,
        description="shard the parameters over the processes with FSDP2: true, or LLaMA-Factory's full_shard auto_wrap",
    )
    fsdp_config: FsdpConfig = Field(
        default=None, description="settings of fsdp in transformers' or accelerate's form: a JSON file, or its content"
    )

    # Data
    dataset: Names = Field(
        description="training data: names in dataset_dir/dataset_info.json, files or hub ids; several are concatenated"
    )
    dataset_dir: Text = Field(default="data", description="folder of dataset_info.json and the files that it names")
    eval_dataset: Names | None = Field(
        default=None, description="evaluation data, named like dataset; also the target that selectors select for"
    )
    val_size: Float = Field(
        default=0.0, ge=0, description="evaluation rows split off the training data: a share below 1, or a whole number"
    )
    template: Text | None = Field(default=None, description="chat template by name; null: the tokenizer's own")
    cutoff_len: Int = Field(default=2048, ge=2, description="longest sample, in tokens; longer ones are cut")
    max_samples: Int | None = Field(default=None, ge=1, description="use the first rows of each dataset only")
    cache_dir: Text | None = Field(
        default=None,
        description="folder of tokenised data, for any run; null: $DATAFLEX_CACHE or ~/.cache/dataflex, for data of "
        "2,000 rows and more",
    )
    overwrite_cache: bool = Field(default=False, description="tokenise again what the cache has")
    preprocessing_num_workers: Int | None = Field(
        default=None, ge=1, description="processes that tokenise, at most one a core; null: one, with threads"
    )
    dataloader_num_workers: Int = Field(
        default=0, ge=0, description="accepted: batches come from memory, there is nothing to load"
    )
    disable_shuffling: bool = Field(default=False, description="train on the rows in their order")
    task_column: Text = Field(default="task", description="column of the dataset that groups rows in reports")
    seed: Int = Field(default=42, ge=0, lt=2**32, description="seed of adapters, data order, selections and rollouts")

    # Output
    output_dir: Text = Field(description="folder of the run: adapter, checkpoints, selections, logs, report")
    overwrite_output_dir: bool = Field(default=False, description="allow an output_dir that is not empty")
    logging_steps: Int = Field(default=500, ge=1, description="optimizer steps between log entries")
    save_steps: Int = Field(default=500, ge=1, description="optimizer steps between checkpoints")
    save_total_limit: Int | None = Field(default=None, ge=1, description="checkpoints to keep; null: all")
    save_only_model: bool = Field(
        default=False, description="checkpoints without optimizer and scheduler: smaller, but they cannot be resumed"
    )
    resume_from_checkpoint: Resume = Field(
        default=False, description="go on from the last checkpoint in output_dir (true) or from the one at a path"
    )
    plot_loss: bool = Field(default=False, description="draw training_loss.png")

    # Tracking
    report_to: Trackers = Field(
        default=[], description="none, or trackers: wandb, tensorboard, swanlab, mlflow, trackio"
    )
    run_name: Text | None = Field(default=None, description="name of the run in trackers; null: made up by them")
    use_swanlab: bool = Field(default=False, description="the same as swanlab in report_to")
    swanlab_project: Text = Field(default="dataflex", description="SwanLab project")
    swanlab_workspace: Text | None = Field(default=None, description="SwanLab workspace; null: the account's own")
    swanlab_run_name: Text | None = Field(default=None, description="SwanLab experiment name; null: run_name")
    swanlab_mode: Literal["cloud", "local", "offline", "disabled"] = Field(
        default="cloud", description="where SwanLab writes"
    )
    swanlab_api_key: EnvironmentName = Field(
        default=None, description="name of the environment variable with the SwanLab key; null: SwanLab's own login"
    )
    swanlab_logdir: Text | None = Field(
        default=None, description="folder of SwanLab's local files; null: in output_dir"
    )
    swanlab_lark_webhook_url: EnvironmentName = Field(
        default=None, description="name of the environment variable with the URL of a Lark webhook to notify"
    )
    swanlab_lark_secret: EnvironmentName = Field(
        default=None, description="name of the environment variable with the secret of that webhook"
    )

    # Optimization
    per_device_train_batch_size: Int = Field(default=8, ge=1, description="samples of one forward pass on one device")
    gradient_accumulation_steps: Int = Field(default=1, ge=1, description="forward passes of one optimizer step")
    optim: Optim = Field(
        default="adamw_torch", description="optimizer, by transformers' name; of the run's rate, decay and schedule"
    )
    learning_rate: Float = Field(default=5e-5, gt=0, description="peak learning rate")
    loraplus_lr_ratio: Float | None = Field(
        default=None, gt=0, description="LoRA+: rate of the adapters' B matrices over learning_rate; null: 1"
    )
    loraplus_lr_embedding: Float = Field(
        default=1e-6, gt=0, description="LoRA+: rate of the B matrices of adapted embeddings"
    )
    weight_decay: Float = Field(default=0.0, ge=0, description="decoupled weight decay")
    adam_beta1: Float = Field(default=0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    adam_beta2: Float = Field(default=0.999, ge=0, lt=1, description="decay of AdamW's second moment")
    adam_epsilon: Float = Field(default=1e-8, gt=0, description="epsilon in AdamW's denominator")
    max_grad_norm: Float = Field(default=1.0, ge=0, description="clip gradients to this norm; 0: no clipping")
    num_train_epochs: Float = Field(
        default=3.0,
        gt=0,
        description="passes over the training data; with dynamic selection, repetitions of its whole schedule",
    )
    lr_scheduler_type: Scheduler = Field(default="linear", description="learning rate schedule over the whole run")
    warmup_ratio: Float = Field(default=0.0, ge=0, lt=1, description="share of the run in which the rate rises from 0")
    bf16: bool = Field(default=False, description="mixed precision in bfloat16")
    fp16: bool = Field(default=False, description="mixed precision in float16")
    ddp_timeout: Seconds = Field(
        default=DDP_TIMEOUT_SECONDS, description="seconds that ranks wait for each other; false or null: the default"
    )

    # Evaluation
    per_device_eval_batch_size: Int = Field(default=8, ge=1, description="evaluation samples of one forward pass")
    eval_strategy: EvalStrategy = Field(default="no", description="when to evaluate")
    eval_steps: EvalSteps = Field(
        default=None,
        validate_default=True,
        description="optimizer steps between evaluations (eval_strategy: steps); null: logging_steps",
    )
    eval_metric: EvalMetric = Field(
        default=None,
        description="score the model's answers to the evaluation data: a metric (exact_match, module:function, ...), "
        "or parameters of the reward backend metric; null: loss only",
    )
    eval_max_new_tokens: Int = Field(default=128, ge=1, description="longest answer that eval_metric scores, in tokens")
    metric_for_best_model: BestMetric = Field(
        default="eval_loss",
        description="what the best model is best at: eval_loss, or eval_ and the metric's name",
    )
    greater_is_better: GreaterIsBetter = Field(
        default=None,
        validate_default=True,
        description="whether more of that metric is better; null: yes, unless it is eval_loss",
    )
    load_best_model_at_end: bool = Field(default=False, description="end with the best evaluated model, not the last")
    early_stopping_steps: Int | None = Field(
        default=None, ge=1, description="stop after this many evaluations in a row without improvement"
    )
    early_stopping_min_delta: Float = Field(default=0.0, ge=0, description="smallest change that is an improvement")

    # Dynamic selection
    train_type: TrainType = Field(
        default="static",
        description="static: all rows; dynamic_select: rows that a selector chooses again and again; dynamic_mix: "
        "shares of domains that a mixer gives again and again; dynamic_weight: a weight for each sample of a step",
    )
    components_cfg_file: ComponentsFile = Field(
        default=None,
        description="file with the parameters of selectors, mixers and weighters; null: the one that comes with "
        "dataflex; false: none, the component's own defaults",
    )
    component_name: Text | None = Field(
        default=None, description="selector, mixer or weighter: an entry of components_cfg_file"
    )
    component_params: dict[str, Any] = Field(
        default={}, description="parameters of the component, merged deeply over those of components_cfg_file"
    )
    warmup_step: Int = Field(
        default=0, ge=0, description="optimizer steps before the first selection, mixture or weights"
    )
    update_step: Int = Field(default=0, ge=0, description="optimizer steps on the rows of one selection or mixture")
    update_times: Int = Field(default=1, ge=0, description="number of selections or mixtures")
    train_step: Int | None = Field(
        default=None,
        ge=1,
        description="dynamic_weight: optimizer steps of the run, warmup_step included; null: num_train_epochs passes",
    )
    selection_repeats: bool = Field(
        default=False, description="let a selection that is larger than the dataset use rows more than once"
    )

    # Mixtures
    mixture_sample_rule: MixtureRule | None = Field(
        default=None,
        description="shares of the first phase: mixture (init_mixture_proportions), stratified (by size), uniform; "
        "null: mixture where there are some, else the mixer's own, else stratified",
    )
    init_mixture_proportions: list[Float] | dict[Text, Float] | None = Field(
        default=None, description="shares of the first phase, in the order of dataset, or by the domains' names"
    )
    static_mix: bool = Field(default=False, description="keep the shares of the first phase: no mixer is asked")
    domain_column: Text | None = Field(
        default=None, description="column whose values are the domains; null: each dataset is one"
    )
    mixer_eval_dataset: Names | None = Field(
        default=None, description="rows that a mixer measures domains by, named like dataset; null: the training data"
    )
