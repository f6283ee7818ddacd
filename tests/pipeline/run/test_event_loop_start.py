"""A call whose task is cancelled before its first step."""

import asyncio

import pytest

from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.run.event_loop import CoroutineCall, EventLoop

pytestmark = pytest.mark.timeout(30)


async def work(item: int) -> int:
    return item


def test_a_task_that_is_cancelled_before_its_first_step_is_answered() -> None:
    loop = EventLoop(Stage("work", NodeKind.STAGE, fn=work, concurrency=1))
    call = CoroutineCall(loop, (1,))

    async def start_and_cancel() -> None:
        loop._start(call)
        assert call.task is not None
        call.task.cancel()  # in the same step of the loop as the start
        await asyncio.wait([call.task])
        await asyncio.sleep(0)  # the callbacks of the task

    asyncio.run(start_and_cancel())
    with pytest.raises(asyncio.CancelledError):
        call.receive()
