"""The forward passes through one target: each thread follows its own, which ends with the pass. Knows no model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class PassSummary:
    """What `report` and `trace` need of a pass that has ended; but for `state` it keeps no tensor per token.

    Attributes:
        tokens: the number of tokens into the first block and out of each, padding included.
        real: (B,) how many of them are real, for each entry of `tokens` with padding; else `None`.
        computed: for each block the tokens an input that its token-wise layers run on, and the pairs of tokens in its
            attention; padding counts where it is computed with.
        blocks_run: how many blocks ran.
        last_queries: how many leading tokens the last block computed, where its others were not read.
        state: the state of the whole pass, with `MergeConfig(trace=True)` only.
    """

    def __init__(
        self,
        tokens: list[int],
        real: list[Tensor | None] | None = None,
        computed: list[tuple[float, float]] | None = None,
        blocks_run: int | None = None,
        state: Any = None,
        last_queries: int | None = None,
    ):
        self.tokens = tokens
        self.real = [None] * len(tokens) if real is None else real
        self.computed = [(count, count**2) for count in tokens] if computed is None else computed
        self.blocks_run = len(tokens) - 1 if blocks_run is None else blocks_run
        self.state = state
        self.last_queries = last_queries

    def mean_tokens(self) -> list[float]:
        """Return `tokens` as means over the inputs, without padding."""
        pairs = zip(self.tokens, self.real)
        return [float(count) if real is None else float(real.float().mean()) for count, real in pairs]


class _Slot:
    """The pass of one thread, or of compiled graphs."""

    state: Any = None
    result: Any = None
    num_readers = 0


class _Reader:
    # A class rather than a generator: graphs trace it.

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def __enter__(self) -> None:
        self.recorder.open_reader()

    def __exit__(self, *error: object) -> None:
        self.recorder.close_reader()


class Recorder:
    """Tracks the passes through one target.

    A pass begins in its first patched block and ends after its last: its state is dropped, and what is left is a
    `summary`, and a `result` where a module behind the blocks reads one (the sizes of the tokens). The result goes
    when the outermost such reader returns.

    Each thread tracks its own pass; `summary` is that of the most recent pass of any thread. Thread-locals cannot be
    traced, so compiled graphs use one slot for all threads.
    """

    def __init__(self) -> None:
        self.summary: PassSummary | None = None
        self._compiled = _Slot()
        self._threads = threading.local()

    def begin(self, state: Any) -> None:
        """Begin a pass with `state`; one that did not end is dropped."""
        self._compiled.state = self._compiled.result = None
        slot = self._begun_slot()
        slot.state, slot.result = state, None

    def current(self) -> Any:
        """Return the state of the pass that runs, or `None` outside of passes."""
        return self._slot().state

    def end(self, summary: PassSummary, result: Any = None) -> None:
        """End the pass; `result` is what modules behind the blocks read of it."""
        slot = self._slot()
        slot.state, slot.result, self.summary = None, result, summary

    def result(self) -> Any:
        """Return what the last pass has for readers, or `None` where there is nothing, as outside of passes."""
        return self._slot(for_result=True).result

    def reader(self) -> _Reader:
        """Return a context in which a module reads a pass that runs inside, or has just run; then it is over."""
        return _Reader(self)

    def open_reader(self) -> None:
        """Enter a reader of this thread's pass."""
        self._begun_slot().num_readers += 1

    def close_reader(self) -> None:
        """Leave a reader; the outermost one drops the pass."""
        slot = self._begun_slot()
        slot.num_readers -= 1
        if not slot.num_readers:
            slot.state = slot.result = None
            self._compiled.state = self._compiled.result = None

    @property
    def is_read(self) -> bool:
        """Whether a reader is around the pass."""
        return self._slot().num_readers > 0

    @contextmanager
    def scoped(self, name: str, value: Any) -> Iterator[None]:
        """Set a value for what this thread runs meanwhile (see `scope`); compiled graphs take no notice."""
        if torch.compiler.is_compiling():
            yield
            return
        values = self._threads.__dict__
        before = values.get(name)
        values[name] = value
        try:
            yield
        finally:
            values[name] = before

    def scope(self, name: str) -> Any:
        """Return the value that `scoped` has set in this thread, or `None`."""
        return None if torch.compiler.is_compiling() else self._threads.__dict__.get(name)

    def _slot(self, for_result: bool = False) -> _Slot:
        # Where a compiled graph breaks, later blocks and readers may run outside of it, in the pass that it began.
        compiled = self._compiled
        if torch.compiler.is_compiling() or compiled.state is not None:
            return compiled
        return compiled if for_result and compiled.result is not None else self._own()

    def _begun_slot(self) -> _Slot:
        return self._compiled if torch.compiler.is_compiling() else self._own()

    def _own(self) -> _Slot:
        slot = getattr(self._threads, "slot", None)
        if slot is None:
            slot = self._threads.slot = _Slot()
        return slot

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, values: dict[str, Any]) -> None:
        Recorder.__init__(self)
