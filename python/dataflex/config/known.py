"""Names that LLaMA-Factory 0.9.x accepts in a YAML and dataflex does not act on.

The lists are those of its argument classes, of transformers' ``Seq2SeqTrainingArguments`` (which it inherits) and of
DataFlex's own arguments. A key of dataflex wins over an entry here.
"""

from __future__ import annotations

from typing import Final

_MODEL = """
adapter_folder add_special_tokens add_tokens audio_sampling_rate block_diag_attn compute_dtype crop_to_patches
device_map disable_gradient_checkpointing enable_liger_kernel export_device export_dir export_hub_model_id
export_legacy_format export_quantization_bit export_quantization_dataset export_quantization_maxlen
export_quantization_nsamples export_size flash_attn fp8 fp8_backend fp8_enable_fsdp_float8_all_gather hf_hub_token
image_do_pan_and_scan image_max_pixels image_min_pixels infer_backend infer_dtype init_special_tokens low_cpu_mem_usage
mixture_of_depths model_max_length model_revision moe_aux_loss_coef ms_hub_token new_special_tokens_config
offload_folder om_hub_token print_param_status quantization_device_map resize_vocab rope_scaling sglang_config
sglang_lora_backend sglang_maxlen sglang_mem_fraction sglang_tp_size shift_attn split_special_tokens train_from_scratch
upcast_layernorm upcast_lmhead_output use_audio_in_video use_cache use_fast_tokenizer use_kv_cache use_reentrant_gc
use_unsloth use_unsloth_gc use_v1_kernels video_fps video_max_pixels video_maxlen video_min_pixels vllm_config
vllm_enforce_eager vllm_gpu_util vllm_max_lora_rank vllm_maxlen
"""

_DATA = """
buffer_size data_shared_file_system default_system enable_thinking eval_num_beams eval_on_each_dataset
ignore_pad_token_for_loss interleave_probs mask_history media_dir mix_strategy neat_packing packing
preprocessing_batch_size streaming tokenized_path tool_format train_on_prompt
"""

_METHOD = """
additional_target apollo_layerwise apollo_proj apollo_proj_type apollo_rank apollo_scale apollo_scale_front
apollo_scale_type apollo_target apollo_update_interval badam_mask_mode badam_mode badam_start_block
badam_switch_interval badam_switch_mode badam_update_ratio badam_verbose compute_accuracy create_new_adapter
dpo_label_smoothing freeze_language_model freeze_multi_modal_projector freeze_vision_tower galore_layerwise
galore_proj_type galore_rank galore_scale galore_target galore_update_interval include_effective_tokens_per_second
kto_chosen_weight kto_rejected_weight ld_alpha module_dropout oft_block_size oft_rank oft_target pissa_convert
pissa_init pissa_iter ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards pref_bco_weight pref_beta
pref_ftx pref_loss pure_bf16 ref_model ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters
reward_model_quantization_bit reward_model_type simpo_gamma use_adam_mini use_apollo use_badam use_dft_loss
use_galore use_llama_pro use_mca use_muon
"""

_GENERATION = """
do_sample length_penalty max_length max_new_tokens num_beams repetition_penalty skip_special_tokens temperature top_k
top_p
"""

_TRAINING = """
accelerator_config adafactor auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16_full_eval
data_seed dataloader_drop_last dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor
ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters debug disable_tqdm do_eval do_predict
eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_use_gather_object fp16_backend
fp16_full_eval fp16_opt_level fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap full_determinism
generation_config generation_max_length generation_num_beams gradient_checkpointing_kwargs group_by_length
half_precision_backend hub_always_push hub_model_id hub_private_repo hub_strategy hub_token ignore_data_skip
include_for_metrics include_inputs_for_metrics include_num_input_tokens_seen include_tokens_per_second jit_mode_eval
label_names label_smoothing_factor length_column_name local_rank log_level log_level_replica log_on_each_node
logging_dir logging_first_step logging_nan_inf_filter logging_strategy lr_scheduler_kwargs max_steps mp_parameters
neftune_noise_alpha no_cuda optim_args optim_target_modules past_index per_gpu_eval_batch_size
per_gpu_train_batch_size placement_strategy predict_with_generate prediction_loss_only push_to_hub
push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_init_kwargs ray_num_workers ray_run_name ray_scope
ray_storage_filesystem ray_storage_path remove_unused_columns resources_per_worker
restore_callback_states_from_checkpoint save_on_each_node save_safetensors save_strategy skip_memory_metrics
sortish_sampler tf32 torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps torchdynamo
tpu_metrics_debug tpu_num_cores use_cpu use_ipex use_legacy_prediction_loop use_liger_kernel use_mps_device
warmup_steps
"""

LLAMA_FACTORY_KEYS: Final = frozenset(" ".join((_MODEL, _DATA, _METHOD, _GENERATION, _TRAINING)).split())

ADVICE: Final = {
    "disable_gradient_checkpointing": "see gradient_checkpointing, which is off by default here",
    "export_dir": "it belongs into the YAML of an export",
    "max_new_tokens": "the answers of nice are bounded by max_new_tokens in its component parameters",
    "max_steps": "the run is as long as its schedule, num_train_epochs times; dynamic_weight has train_step",
    "save_strategy": "checkpoints come every save_steps and before each selection",
    "temperature": "the answers of nice are drawn at generation_temperature in its component parameters",
    "warmup_steps": "the learning rate warms up by warmup_ratio; warmup_step is the phase before the first selection",
}
"""What to say about an ignored key beyond its having no effect."""

QUANTIZATION: Final = {
    "quantization_device_map": "a quantised model spread over devices",
    "export_quantization_bit": "an export of quantised weights",
}
"""Keys that ask for what is not built, and what that is: passed over, the result would be another model."""

RENAMED: Final = {
    "batch_size": "per_device_train_batch_size",
    "component_overrides": "component_params",
    "epochs": "num_train_epochs",
    "evaluation_strategy": "eval_strategy",
    "lr": "learning_rate",
    "max_seq_length": "cutoff_len",
    "model": "model_name_or_path",
}
"""Other common names of keys, for suggestions that spelling alone would miss."""
