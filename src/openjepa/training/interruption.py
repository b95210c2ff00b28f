"""Signals that ask a run to save and leave."""

import signal
import time
from typing import Any

from openjepa.signals import ENDING


class Interruption:
    """The signals of ``ENDING`` ask the loop to save and leave; a second one exits at once.

    One that is ignored stays so, as whoever started the process wants it: ``nohup``, ``&`` in a script.
    Two within ``_SAME`` seconds are one: ``timeout`` and terminals send to the process and to its group.
    """

    _SAME = 0.5

    def __init__(self) -> None:
        self.asked: str | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked is None:
            self.asked, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > self._SAME:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
