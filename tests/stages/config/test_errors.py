"""Messages of errors about input."""

from threadloom.stages.config import ConfigError, InputError, UnknownSettingError


def test_messages_have_a_cause_and_a_hint_only_if_they_are_known() -> None:
    assert (
        str(ConfigError("optimizer.lr", expected="0 to 1000", got="5000"))
        == "optimizer.lr: expected 0 to 1000, got 5000"
    )
    full = InputError("x.npy", expected="8 bytes", got="7 bytes", cause="the file is truncated", hint="copy it again")
    assert str(full) == "x.npy: expected 8 bytes, got 7 bytes (the file is truncated). Hint: copy it again"
    assert (full.subject, full.expected, full.got) == ("x.npy", "8 bytes", "7 bytes")


def test_unknown_settings_are_named_with_similar_ones() -> None:
    error = UnknownSettingError("thread.forward", close=["threads.forward"])
    assert str(error) == "unknown setting 'thread.forward'; did you mean 'threads.forward'?"
    assert error.subject == "thread.forward"
    assert str(UnknownSettingError("x", "run.json")) == "run.json: unknown setting 'x'"
