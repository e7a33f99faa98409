"""The keys of the offline NEAR step: DataFlex's names, plus those that say how the neighbours are searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from dataflex.config.fields import FileConfig
from dataflex.config.idle import is_written
from dataflex.config.values import Float, Int, Names, Text
from dataflex.utils.messages import shown

EmbedMethod = Literal["auto", "vllm", "sentence-transformer"]
EmbedPrecision = Literal["auto", "fp32", "bf16", "fp16"]
IndexKind = Literal["auto", "exact", "hnsw"]


def _method(value: Any) -> Any:
    """The package is called sentence-transformers, DataFlex's key says sentence-transformer."""
    return "sentence-transformer" if value == "sentence-transformers" else value


def _npy(value: str) -> str:
    if not value.endswith(".npy"):
        raise ValueError(f"expected a name that ends with .npy, got {shown(value)}")
    return value


class EncoderFields(BaseModel):
    """How texts become vectors; shared by every component that embeds samples."""

    embed_method: Annotated[EmbedMethod, BeforeValidator(_method)] = Field(
        default="auto",
        description="auto takes vllm where it is installed and there is a GPU, else sentence-transformer",
    )
    batch_size: Int = Field(default=32, ge=1, description="texts that are encoded at once on one device")
    embed_device: Text | None = Field(
        default=None, description="device, or several with commas (cuda:0,cuda:1); null: all GPUs, else the CPU"
    )
    embed_precision: EmbedPrecision = Field(
        default="auto",
        description="precision of the encoder; auto: bf16 on a GPU that has it (else fp16), fp32 on a CPU",
    )
    trust_remote_code: bool = Field(
        default=False, description="let the model's repository run its own Python code on this machine"
    )
    text_template: Text | None = Field(
        default=None,
        description="Jinja text of a sample: prompt, response, system, messages, tools, metadata, id; "
        "null: question and answer, or all turns of a longer conversation",
    )
    query_template: Text | None = Field(default=None, description="the same for queries; null: text_template")


class NearConfig(FileConfig, EncoderFields):
    """The offline step of NEAR: for each query its nearest candidates, as a matrix of row numbers."""

    candidate_path: Names = Field(
        description="rows to choose from: files, hub ids or names in dataset_dir/dataset_info.json; the training data"
    )
    query_path: Names = Field(description="rows to find neighbours of, named like candidate_path; the target")
    dataset_dir: Text = Field(default="data", description="folder of dataset_info.json and the files that it names")
    candidate_split: Text = Field(default="train", description="split of candidates that come from a hub")
    query_split: Text = Field(default="validation", description="split of queries that come from a hub")
    max_samples: Int | None = Field(default=None, ge=1, description="use the first rows of each candidate set only")
    embed_model: Text = Field(description="encoder: a local folder or a hub id")
    model_name: Text | None = Field(default=None, description="another name of embed_model")
    max_K: Int = Field(default=1000, ge=1, description="neighbours of each query")  # noqa: N815 - DataFlex's name
    save_indices_path: Annotated[Text, AfterValidator(_npy)] = Field(
        default="top_indices.npy", description="file of the matrix (.npy); what it was made from goes beside it (.json)"
    )
    cache_dir: Text | None = Field(
        default=None, description="folder of embeddings and index; null: near_cache beside save_indices_path"
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep",
        description="candidates with equal text: each has a place of its own, or the first stands for all",
    )
    index: IndexKind = Field(
        default="auto", description="exact, hnsw (approximate), or auto: whichever is quicker here"
    )
    min_recall: Float = Field(default=0.99, gt=0, le=1, description="hnsw: share of the true neighbours to be found")
    recall_queries: Int = Field(default=200, ge=1, description="hnsw: queries on which recall is measured")
    hnsw_m: Int = Field(default=32, ge=2, le=512, description="hnsw: links of a vector in the graph")
    hnsw_ef_construction: Int = Field(default=200, ge=1, description="hnsw: breadth of the search while building")
    seed: Int = Field(default=42, ge=0, lt=2**32, description="seed of the hnsw graph and of the recall sample")

    def warnings(self) -> list[str]:
        """What was given and has no effect because of another key, beside what every configuration warns about."""
        found = super().warnings()
        if self.index == "exact":
            found += [
                self.origin.about(key, "has no effect with index exact")
                for key in ("min_recall", "recall_queries", "hnsw_m", "hnsw_ef_construction")
                if is_written(self, key)
            ]
        if self.embed_method == "vllm" and is_written(self, "embed_device"):
            found.append(self.origin.about("embed_device", "has no effect with embed_method vllm"))
        return found

    @model_validator(mode="before")
    @classmethod
    def _model_name_is_embed_model(cls, values: Any) -> Any:
        """DataFlex's documentation calls the encoder by either name."""
        if isinstance(values, Mapping) and values.get("embed_model") is None and "model_name" in values:
            return {**values, "embed_model": values["model_name"]}
        return values

    @field_validator("model_name")
    @classmethod
    def _one_encoder(cls, value: str | None, info: ValidationInfo) -> str | None:
        other = info.data.get("embed_model")
        if None not in (value, other) and value != other:
            raise ValueError(f"{value!r} is not embed_model, which is {other!r}; keep one")
        return value
