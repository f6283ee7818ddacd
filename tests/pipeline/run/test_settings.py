"""The settings of a run have the names of the keyword arguments of `start`."""

from dataclasses import fields

from threadloom.pipeline import RunOptions
from threadloom.pipeline.run import RunSettings


def test_every_option_of_start_is_a_setting() -> None:
    assert [field.name for field in fields(RunSettings)] == list(RunOptions.__annotations__)
