"""The fields of `transformers.TrainingArguments` that firstcli treats specially.

This module imports neither torch nor transformers: fingerprints need it before any work starts.
"""

OWNED = {
    "output_dir": "use --run-dir",
    "seed": "use seed",
    "data_seed": "use seed",
    "learning_rate": "use training.learning_rate",
    "num_train_epochs": "use training.epochs",
    "per_device_train_batch_size": "use training.batch_size",
    "gradient_accumulation_steps": "use training.batch_size",
    "auto_find_batch_size": "use training.micro_batch_size",
    "use_cpu": "use model.options.device",
    "resume_from_checkpoint": "an interrupted run resumes automatically",
    "save_total_limit": "the last checkpoint is kept until training ends",
    "save_only_model": "firstcli needs checkpoints that it can resume from",
    "load_best_model_at_end": "the last checkpoint counts (paper, A.1)",
    "train_sampling_strategy": "batches hold samples of similar length",
    "ignore_data_skip": "a resumed run must not learn the same samples again",
    "use_liger_kernel": "the objective has its own kernels",
    "torch_compile": "the objective replaces the output layer, which cannot be compiled",
    "torch_compile_backend": "models are not compiled",
    "torch_compile_mode": "models are not compiled",
    "dataloader_drop_last": "every sample counts",
    "remove_unused_columns": "firstcli builds the batches itself",
    "label_names": "firstcli builds the batches itself",
    "label_smoothing_factor": "use recalibrator: {name: label-smoothing}",
    "do_train": "it always trains",
    "do_eval": "use evaluate",
    "do_predict": "use evaluate",
    "eval_strategy": "use evaluate",
    "eval_on_start": "use evaluate",
    "push_to_hub": "upload the finished folder yourself",
}
"""Fields that firstcli sets itself, with the reason or what to use instead."""

HARMLESS = frozenset[str]().union(
    ("dataloader_num_workers", "dataloader_persistent_workers"),
    ("dataloader_pin_memory", "dataloader_prefetch_factor"),
    ("ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb"),
    ("ddp_find_unused_parameters", "ddp_timeout", "deepspeed", "fsdp", "fsdp_config"),
    ("activation_checkpointing", "activation_checkpointing_kwargs"),
    ("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
    ("disable_tqdm", "log_level", "log_level_replica", "report_to", "run_name"),
    ("logging_first_step", "logging_steps", "logging_strategy"),
    ("save_on_each_node", "save_steps", "save_strategy"),
)
"""Fields that do not change results, and therefore do not enter fingerprints."""
