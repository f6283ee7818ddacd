"""Standard streams, logging, signals that stop a command, and worker processes that exchange JSON with their parent.

The command line imports it first: it is light.

May import: nothing.
"""

from threadloom.stages.console.address_space import spare_address_space as spare_address_space
from threadloom.stages.console.json_worker import (
    JsonWorkerProcess as JsonWorkerProcess,
    UpdateServer as UpdateServer,
    WorkerError as WorkerError,
    module_command as module_command,
    module_output as module_output,
    peak_resident_bytes as peak_resident_bytes,
    redirect_stdout_to_stderr as redirect_stdout_to_stderr,
    resident_bytes as resident_bytes,
    serve as serve,
    signals_blocked as signals_blocked,
)
from threadloom.stages.console.log import (
    LogLevel as LogLevel,
    PeriodicLog as PeriodicLog,
    configure as configure,
    logged_messages as logged_messages,
)
from threadloom.stages.console.stop_signals import Stopped as Stopped, StopSignals as StopSignals
from threadloom.stages.console.streams import (
    discard_unwritable as discard_unwritable,
    prepare_streams as prepare_streams,
    write_output as write_output,
)
