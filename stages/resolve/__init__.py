"""From a configuration as written to one in which every setting is decided, with the reasons.

May import: models, config, storage, machine, memory.
"""

from threadloom.stages.resolve.gemm_settings import numerics
from threadloom.stages.resolve.loading import (
    CONFIG_NAMES,
    apply_overrides,
    from_json,
    load_config,
    resolved_from_json,
    to_json,
    trajectory,
    trajectory_differences,
)
from threadloom.stages.resolve.precision import (
    FLOAT32_PRECISIONS,
    LEAST,
    LEVEL,
    Choice,
    choose,
    choose_and_warn,
    choose_here,
    is_open,
    product_words,
    slow_allowed,
    with_precision,
)
from threadloom.stages.resolve.resolution import MAX_LANES, resolve, validate
from threadloom.stages.resolve.tuning_record import (
    TUNED_KEYS,
    TunedSettings,
    TuningRecord,
    Value,
    explicit_settings,
    format_settings,
    format_value,
    record_path,
    with_defaults,
    with_tuned_settings,
    write_record,
)

__all__ = [
    "CONFIG_NAMES",
    "FLOAT32_PRECISIONS",
    "LEAST",
    "LEVEL",
    "MAX_LANES",
    "TUNED_KEYS",
    "Choice",
    "TunedSettings",
    "TuningRecord",
    "Value",
    "apply_overrides",
    "choose",
    "choose_and_warn",
    "choose_here",
    "explicit_settings",
    "format_settings",
    "format_value",
    "from_json",
    "is_open",
    "load_config",
    "numerics",
    "product_words",
    "record_path",
    "resolve",
    "resolved_from_json",
    "slow_allowed",
    "to_json",
    "trajectory",
    "trajectory_differences",
    "validate",
    "with_defaults",
    "with_precision",
    "with_tuned_settings",
    "write_record",
]
