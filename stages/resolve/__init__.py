"""From a configuration as written to one in which every setting is decided: reading, checks, choices, tuned settings.

May import: all above.
"""

from threadloom.stages.resolve.loading import (
    CONFIG_NAMES,
    apply_overrides,
    from_json,
    load_config,
    resolved_from_json,
    to_json,
)
from threadloom.stages.resolve.precision import (
    EQUAL_SPEED,
    FLOAT32_PRECISIONS,
    MIN_SPEED,
    PrecisionChoice,
    choose_precision,
    choose_precision_and_warn,
    choose_precision_here,
    gemm_description,
    is_precision_open,
    slow_allowed,
    with_precision,
)
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.resolve.resolution import MAX_LANES, resolve
from threadloom.stages.resolve.trajectory_settings import trajectory, trajectory_differences
from threadloom.stages.resolve.tuning_record import (
    TUNED_KEYS,
    TunedSettings,
    TunedValue,
    TuningRecord,
    explicit_settings,
    format_settings,
    format_value,
    record_path,
    with_defaults,
    with_tuned_settings,
    write_record,
)
from threadloom.stages.resolve.validation import validate

__all__ = [
    "CONFIG_NAMES",
    "EQUAL_SPEED",
    "FLOAT32_PRECISIONS",
    "MAX_LANES",
    "MIN_SPEED",
    "TUNED_KEYS",
    "PrecisionChoice",
    "TunedSettings",
    "TunedValue",
    "TuningRecord",
    "apply_overrides",
    "choose_precision",
    "choose_precision_and_warn",
    "choose_precision_here",
    "explicit_settings",
    "format_settings",
    "format_value",
    "from_json",
    "gemm_description",
    "gemm_settings",
    "is_precision_open",
    "load_config",
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
