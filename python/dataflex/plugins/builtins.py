"""The components that come with dataflex, registered through the hooks that third parties use."""

from __future__ import annotations

from dataflex.plugins.hookspecs import Register, hookimpl


@hookimpl
def register_selectors(register: Register) -> None:
    """Selectors of dataflex."""
    register(
        "nice",
        "dataflex.selectors.nice:NiceSelector",
        summary="rows whose gradients raise the reward of the model's own answers to the evaluation prompts",
    )
    register(
        "less",
        "dataflex.selectors.less:LessSelector",
        summary="rows whose gradients lower the loss on the answers of the evaluation set",
    )
    register("loss", "dataflex.selectors.loss:LossSelector", summary="a draw that favours low, medium or high losses")
    register(
        "delta_loss",
        "dataflex.selectors.delta_loss:DeltaLossSelector",
        summary="a draw that follows how far losses have fallen since the first selection",
    )
    register(
        "in_context",
        "dataflex.selectors.in_context:InContextSelector",
        summary="rows whose answers the model expects after a few answered target rows",
    )
    register("near", "dataflex.selectors.near:NearSelector", summary="nearest rows of each target row, found offline")
    register("rds", "dataflex.selectors.rds:RdsSelector", summary="rows alike to the targets in the model's own states")
    register("random", "dataflex.selectors.random:RandomSelector", summary="uniform draw; the baseline")
    register(
        "tsds",
        "dataflex.selectors.tsds:TsdsSelector",
        summary="draw that matches the target's distribution, near-duplicates counted as one",
    )


@hookimpl
def register_mixers(register: Register) -> None:
    """Mixers of dataflex."""
    register("static", "dataflex.mixers.static:StaticMixer", summary="one mixture for the whole run; the baseline")
    register("random", "dataflex.mixers.random:RandomMixer", summary="another random mixture for every phase")
    register(
        "doremi", "dataflex.mixers.doremi:DoReMiMixer", summary="more of domains with more loss than a reference model"
    )
    register("odm", "dataflex.mixers.odm:OdmMixer", summary="a bandit: more of domains with high training loss")


@hookimpl
def register_weighters(register: Register) -> None:
    """Weighters of dataflex."""
    register(
        "loss", "dataflex.weighters.loss:LossWeighter", summary="samples by their losses, relative to others of a step"
    )
    register(
        "adapt",
        "dataflex.weighters.adapt:AdaptWeighter",
        summary="samples by how alike they are to the evaluation set in the model's own states",
    )


@hookimpl
def register_reward_backends(register: Register) -> None:
    """Reward backends of dataflex."""
    register("metric", "dataflex.rewards.metric:MetricReward", summary="verifiable metrics, no model needed")
    register("api", "dataflex.rewards.api:ApiReward", summary="a judge behind an OpenAI-compatible HTTP API")
    register("local_vllm", "dataflex.rewards.vllm:LocalVllmReward", summary="a judge model in vLLM, in process")
    register("vllm_server", "dataflex.rewards.vllm_server:VllmServerReward", summary="a judge model in a vLLM server")
    register(
        "classifier", "dataflex.rewards.classifier:ClassifierReward", summary="a sequence-classification reward model"
    )


@hookimpl
def register_projections(register: Register) -> None:
    """Projection kinds of dataflex."""
    for name, target, summary in (
        ("sjlt", "fixed_point:SjltProjection", "block-permutation sparse Johnson-Lindenstrauss; exact sums"),
        ("masked", "fixed_point:MaskedProjection", "sjlt of some values of each large matrix, for full fine-tuning"),
        ("rademacher", "fixed_point:RademacherProjection", "dense random signs; exact sums"),
        ("gaussian", "gaussian:GaussianProjection", "dense normal entries"),
        ("identity", "identity:IdentityProjection", "no projection: features are gradients"),
    ):
        register(name, f"dataflex.projection.kinds.{target}", summary=summary)


@hookimpl
def register_dataset_formats(register: Register) -> None:
    """Dataset formats of dataflex."""
    for name, target, summary in (
        ("alpaca", "AlpacaFormat", "instruction, input, output"),
        ("sharegpt", "ShareGptFormat", "conversations of {from, value}"),
        ("openai", "OpenAiFormat", "messages of {role, content}"),
        ("prompt_completion", "PromptCompletionFormat", "prompt and completion, text or messages"),
    ):
        register(name, f"dataflex.data.formats:{target}", summary=summary)
