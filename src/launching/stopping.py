"""Signals that ask for a stop, and starting again after an end that was not the last word."""

import signal
import time
from collections.abc import Callable

from src.constants import DIVERGED, INTERRUPTED, MISUSE, RESUME

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FINAL = (0, MISUSE, DIVERGED, INTERRUPTED)  # exit codes after which a further start would be of no use or unwanted


class StopRequest:
    """The stop signals that this process got: `requested` is whether there was one, `take` gives the unseen ones."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.seen = 0

    def listen(self) -> None:
        """Catches the signals from now on."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame) -> None:
        self.received.append(number)

    @property
    def requested(self) -> bool:
        return bool(self.received)

    def take(self) -> list[int]:
        """The signals since the last call."""
        new = self.received[self.seen :]
        self.seen += len(new)
        return new


def run_with_retries(
    attempt: Callable[[], int], retries: int, stop: StopRequest, pause: float, say: Callable[[str], None]
) -> int:
    """Calls `attempt` until it returns a code that is final, `retries` are used up or a stop is asked for.

    attempt: returns an exit code as train.py has them, negative for a signal. pause: seconds before the next start.
    say: gets a line for each start. Returns the last code.
    """
    for number in range(retries + 1):
        code = attempt()
        if code in FINAL or stop.requested:
            return code
        ended = "was stopped, its steps saved" if code == RESUME else f"ended with code {code}"
        if number == retries:
            hint = f"; all {retries} RETRIES are used up" if retries else "; RETRIES=n starts again up to n times"
            say(f"the run {ended}{hint}. The same command goes on from its latest checkpoint")
            return code
        say(f"the run {ended}; starts again in {pause:.0f} s, retry {number + 1} of {retries}")
        until = time.monotonic() + pause
        while time.monotonic() < until:
            if stop.requested:
                return code
            time.sleep(0.05)
    return code
