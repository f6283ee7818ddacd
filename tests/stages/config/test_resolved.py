"""The resolved configuration: the fields of the open one, in the same order, none of which may be None."""

import typing

import msgspec
import pytest

from threadloom.stages.config import BatchSizes, Config, ResolvedConfig
from threadloom.stages.resolve import load_config, resolve, resolved_from_json, to_json
from threadloom.stages.resolve.setting_types import setting_types


def test_both_kinds_have_the_same_fields_in_the_same_order() -> None:
    assert list(setting_types(ResolvedConfig)) == list(setting_types(Config))
    config = load_config("small")
    assert list(msgspec.to_builtins(resolve(config, 2))) == list(msgspec.to_builtins(config))


def test_no_resolved_setting_may_be_none() -> None:
    open_settings = {key for key, kind in setting_types(Config).items() if type(None) in typing.get_args(kind)}
    assert {"lanes", "gemm_backend", "threads.blas", "model.vocab_size"} < open_settings
    optional = {key for key, kind in setting_types(ResolvedConfig).items() if type(None) in typing.get_args(kind)}
    assert optional == {"data.conversations"}, "where None is a value"


def test_an_open_setting_in_a_resolved_file_is_rejected() -> None:
    text = to_json(resolve(load_config("small"), 2)).replace('"lanes": 2', '"lanes": null')
    with pytest.raises(ValueError, match="lanes: expected an integer, got null"):
        resolved_from_json(text)


def test_micro_batches_divide_the_sequences_of_an_update() -> None:
    assert BatchSizes(12, 3).micro_batches == 4
    with pytest.raises(ValueError, match="do not divide"):
        BatchSizes(12, 5)
