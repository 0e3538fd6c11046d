"""A progress bar: one line that rewrites itself on a terminal, and a line now and then in a log."""

from __future__ import annotations

import sys
import time


class Progress:
    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total = label, total
        self._done_before = done
        self._begin = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if done < self.total and now - self._shown < (0.2 if self._terminal else 15.0):
            return
        self._shown = now
        elapsed = now - self._begin
        rate = (done - self._done_before) / max(elapsed, 1e-9)
        left = (self.total - done) / rate if rate else 0.0
        share = done / max(self.total, 1)
        bar = ("#" * round(30 * share)).ljust(30, ".")
        text = f"{self.label} [{bar}] {done}/{self.total} {rate:.0f}/s {left:.0f} s left {note}"
        end = "\r" if self._terminal and done < self.total else "\n"
        print(text.rstrip(), end=end, file=sys.stderr, flush=True)
