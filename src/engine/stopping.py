"""Ending a run on request: SIGTERM, SIGUSR1 and SIGINT ask it to finish its step, to save and to leave."""

import ctypes
import os
import select
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STDERR = 2
PERIOD = 0.05  # seconds between looks after the signals' handlers
ACTION_BYTES = 512  # more than `struct sigaction` has anywhere


class Stopped(Exception):  # noqa: N818
    """A run ended before its last step because it was asked to; the same command goes on with it."""


class StopSignals:
    """Within it the first stop signal is noted in `name` and nothing else happens; SIGINT after it ends the process.

    Two things stand in the way. Python runs its handlers between two bytecodes, so not during a compiled step, and
    makes one call of equal signals that arrive meanwhile. So a thread of its own reads every signal's number from a
    pipe, into which it is written the moment the signal arrives. And MindSpore takes signals and does not give them
    back: SIGINT, to send SIGTERM to itself instead, whenever it compiles or runs a graph; SIGTERM, to leave at once
    with exit code 0, when it begins to read data with more than one worker. So that thread and `asked` take them back.
    Until then, for PERIOD at most, a SIGINT counts as SIGTERM, and a SIGTERM just after the start of reading ends the
    process.

    Args:
        exit_code: of the process that is ended at once.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.name: str | None = None

    def __enter__(self) -> "StopSignals":
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        self.previous_pipe = signal.set_wakeup_fd(self.write_end, warn_on_full_buffer=False)
        self.previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        self.sigaction = ctypes.CDLL(None).sigaction
        self.actions = {number: ctypes.create_string_buffer(ACTION_BYTES) for number in SIGNALS}
        for number, action in self.actions.items():
            self.sigaction(number, None, action)
        self.thread = threading.Thread(target=self._watch, name="stop signals", daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self.previous_pipe)
        os.close(self.write_end)  # which ends the thread
        self.thread.join()
        os.close(self.read_end)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a stop signal has arrived."""
        self._take_back()
        return self.name is not None

    def _take_back(self) -> None:
        for number, action in self.actions.items():
            self.sigaction(number, action, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            return
        self.name = signal.Signals(number).name
        # Not print: a handler may interrupt another print.
        os.write(STDERR, f"{self.name}: the run ends as soon as its steps are saved; Ctrl-C again: now\n".encode())

    def _watch(self) -> None:
        arrived: list[int] = []
        while True:
            if select.select([self.read_end], [], [], PERIOD)[0]:
                numbers = os.read(self.read_end, 64)
                if not numbers:
                    return
                arrived += [number for number in numbers if number in SIGNALS]
                if signal.SIGINT in arrived[1:]:
                    os.write(STDERR, b"interrupted again: leaving at once; the last complete checkpoint is kept\n")
                    os._exit(self.exit_code)
            self._take_back()
