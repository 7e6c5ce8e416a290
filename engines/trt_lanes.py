"""Which thread has which lane: batches wait for a free one, a stopped consumer holds none up."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from attn_export.errors import AttnExportError, HostError, UsageError

from .session import Feeds, Outputs
from .trt_lane import Lane, Shape

log = logging.getLogger("attn_export")


class LanePool:
    """Lanes, made when they are needed, at most ``limit``.

    Args:
        wait_s: how long a batch waits for a lane.
        free: called once, when the pool is closed and all its lanes are freed.
    """

    def __init__(
        self, make: Callable[[], Lane], *, limit: int, wait_s: float, free: Callable[[], None]
    ) -> None:
        self.limit = limit
        self._make = make
        self._wait_s = wait_s
        self._free = free
        self._changed = threading.Condition()
        self._lanes = 0
        self._idle: list[Lane] = []
        self._flights: deque[Flight] = deque()
        self._closed = False

    def refuse_if_closed(self) -> None:
        """Raise UsageError after :meth:`close`."""
        if self._closed:
            raise UsageError("the engine is closed; load the bundle again")

    def take(self) -> Lane:
        """A lane for this thread alone, until :meth:`give`.

        Raises:
            HostError: if all stay busy for too long, or none can be made.
            UsageError: after :meth:`close`.
        """
        deadline = time.monotonic() + self._wait_s
        while True:
            with self._changed:
                self.refuse_if_closed()
                if self._idle:
                    # The one that was used last: it has seen the most shapes.
                    return self._idle.pop()
                is_new = self._lanes < self.limit
                if is_new:
                    self._lanes += 1
                flight = None if is_new or not self._flights else self._flights.popleft()
                if not is_new and flight is None:
                    self._wait(deadline)
            if is_new:
                lane = self._made()
                if lane is not None:
                    return lane
            elif flight is not None:
                flight.land()

    def give(self, lane: Lane) -> None:
        """Give a lane back; a broken one is freed and not used again."""
        if lane.broken:
            lane.close()
        with self._changed:
            if lane.broken:
                self._lanes -= 1
            else:
                self._idle.append(lane)
            self._changed.notify_all()

    def launch(self, feeds: Feeds, shape: Shape) -> Flight:
        """Start a batch whose outputs are asked for later.

        Raises:
            HostError, UsageError: as :meth:`take` does.
            InputError, HostError: as :meth:`Lane.start` does.
        """
        lane = self.take()
        try:
            lane.start(feeds, shape)
        except BaseException:
            self.give(lane)
            raise
        flight = Flight(self, lane)
        with self._changed:
            self._flights.append(flight)
            self._changed.notify_all()
        return flight

    def forget(self, flight: Flight) -> None:
        """Take a flight off the list of those whose lane could be freed."""
        with self._changed, contextlib.suppress(ValueError):
            self._flights.remove(flight)

    def close(self) -> None:
        """Wait for the batches in work, then free everything; once."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        while True:
            with self._changed:
                flight = self._flights.popleft() if self._flights else None
                if flight is None:
                    if len(self._idle) == self._lanes:
                        break
                    self._changed.wait()
            if flight is not None:
                flight.land()
        for lane in self._idle:
            lane.close()
        self._idle.clear()
        self._free()

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise HostError(
                f"all {self.limit} streams were busy for {self._wait_s:g} s; send fewer batches at "
                "a time, or load the engine with more streams"
            )
        self._changed.wait(left)

    def _made(self) -> Lane | None:
        """A new lane; None where its memory does not fit beside the lanes that there are."""
        try:
            return self._make()
        except BaseException as error:
            with self._changed:
                self._lanes -= 1
                fewer = self._lanes
                fits = isinstance(error, HostError) and fewer > 0
                asked = self.limit
                if fits:
                    self.limit = fewer
                self._changed.notify_all()
            if not fits:
                raise
            log.warning("this engine goes on with %d of %d streams: %s", fewer, asked, error)
            return None


class Flight:
    """A batch that was started. Whoever needs its lane may finish it; its outputs wait here."""

    def __init__(self, pool: LanePool, lane: Lane) -> None:
        self._pool = pool
        self._lane: Lane | None = lane
        self._lock = threading.Lock()
        self._outputs: Outputs | None = None
        # Stays where another thread was stopped while it finished this batch.
        self._error: AttnExportError = HostError("this batch was interrupted; run it again")

    def land(self) -> None:
        """Wait for its end and give its lane back; does nothing the second time."""
        with self._lock:
            lane, self._lane = self._lane, None
            if lane is None:
                return
            try:
                self._outputs = lane.finish()
            except AttnExportError as error:
                self._error = error
            finally:
                self._pool.give(lane)

    def outputs(self) -> Outputs:
        """What it gave.

        Raises:
            HostError: if it failed.
        """
        self._pool.forget(self)
        self.land()
        if self._outputs is None:
            raise self._error
        return self._outputs
