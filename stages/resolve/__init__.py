"""From a configuration as written to one in which every setting is decided: reading, checks, choices, tuned settings.

May import: all above.
"""

from threadloom.stages.resolve.adapters import (
    require_model_under_adapters as require_model_under_adapters,
    with_adapters as with_adapters,
)
from threadloom.stages.resolve.delay_cost import (
    DelayCost as DelayCost,
    delay_costs as delay_costs,
    delay_summary as delay_summary,
    delay_warning as delay_warning,
)
from threadloom.stages.resolve.initial_model import (
    fine_tuning_config as fine_tuning_config,
    require_initial_model as require_initial_model,
    with_initial_model as with_initial_model,
)
from threadloom.stages.resolve.learning_rate import (
    RATE_RULE as RATE_RULE,
    WARMUP_SHARE as WARMUP_SHARE,
    RateRule as RateRule,
    rate_and_warmup as rate_and_warmup,
    rate_summary as rate_summary,
    with_saved_rate as with_saved_rate,
)
from threadloom.stages.resolve.loading import (
    CONFIG_NAMES as CONFIG_NAMES,
    apply_overrides as apply_overrides,
    from_json as from_json,
    load_config as load_config,
    resolved_from_json as resolved_from_json,
    run_config_from_json as run_config_from_json,
    to_json as to_json,
)
from threadloom.stages.resolve.precision import (
    BF16X3_GRADE as BF16X3_GRADE,
    EQUAL_SPEED as EQUAL_SPEED,
    FLOAT32_PRECISIONS as FLOAT32_PRECISIONS,
    MIN_SPEED as MIN_SPEED,
    PrecisionChoice as PrecisionChoice,
    choose_precision as choose_precision,
    choose_precision_and_warn as choose_precision_and_warn,
    choose_precision_here as choose_precision_here,
    gemm_description as gemm_description,
    is_precision_open as is_precision_open,
    slow_allowed as slow_allowed,
    with_precision as with_precision,
)
from threadloom.stages.resolve.process_wide import float32_settings as float32_settings, gemm_settings as gemm_settings
from threadloom.stages.resolve.resolution import MAX_LANES as MAX_LANES, resolve as resolve
from threadloom.stages.resolve.stage_threads import (
    stage_threads as stage_threads,
    with_threads_of_this_process as with_threads_of_this_process,
)
from threadloom.stages.resolve.trajectory_settings import (
    trajectory as trajectory,
    trajectory_differences as trajectory_differences,
)
from threadloom.stages.resolve.tuning_record import (
    TUNED_KEYS as TUNED_KEYS,
    TunedSettings as TunedSettings,
    TunedValue as TunedValue,
    TuningRecord as TuningRecord,
    explicit_settings as explicit_settings,
    format_settings as format_settings,
    format_value as format_value,
    record_path as record_path,
    with_defaults as with_defaults,
    with_tuned_settings as with_tuned_settings,
    write_record as write_record,
)
from threadloom.stages.resolve.validation import validate as validate
