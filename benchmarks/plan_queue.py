"""How long requests wait and are answered, where a machine takes them in batches.

Requests come at random (Poisson) to one machine. Whenever it is free it takes what waits, up to
the largest batch B; a batch of b takes a known time s(b). With a *window* w it waits, once it is
free and has at least one request, until B are there or w is over. Batches thus grow with the load
by themselves: nobody has to choose their size.

This is the bulk-service queue (N. T. J. Bailey 1954, On queueing processes with bulk service,
J. R. Stat. Soc. B 16; M. F. Neuts 1967, A general class of bulk queues with Poisson input, Ann.
Math. Stat. 38); Y. Inoue 2021 (Performance Evaluation 147, arXiv:1912.06322) holds it against GPU
servers. With B = 1 and no window it is M/D/1. The requests that a machine finds when it becomes
free form a Markov chain, which is solved exactly; the time of a request is summed up over the
moment of its arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# At most this share of the capacity, but for rounding; beyond it the queue is longer than anyone
# plans for.
MOST_LOAD = 0.98 + 1e-8
# Parts of a service in which the arrivals are told apart; bins of the distribution.
PARTS, BINS = 16, 20_000
_RARE = 1e-8


@dataclass(frozen=True, kw_only=True)
class Served:
    """What requests experience at one machine.

    Args:
        mean_s: from arrival to answer, in seconds; ``p50_s``, ``p99_s`` likewise.
        mean_batch: requests of a batch, on average over batches.
        busy: the share of the time that the machine computes.
    """

    mean_s: float
    p50_s: float
    p99_s: float
    mean_batch: float
    busy: float


def served(times: Floats, *, rate: float, window_s: float = 0.0) -> Served:
    """Solve the queue of one machine.

    Args:
        times: seconds that a batch of 1, 2, ... B takes, shape [B].
        rate: requests a second that come to this machine.
        window_s: how long a free machine waits for a batch to fill.

    Raises:
        ValueError: if the rate is beyond ``MOST_LOAD`` of the machine's capacity.
    """
    load = rate * float(times[-1]) / len(times)
    if not 0 < load <= MOST_LOAD:
        raise ValueError(f"load {load:.3f}: outside of 0 to {MOST_LOAD:.2f}")
    return _Queue(times=_reached(times, rate, window_s), rate=rate, window_s=window_s).solve()


def _reached(times: Floats, rate: float, window_s: float) -> Floats:
    """Without the batches that are never reached: too few come while smaller ones are computed."""
    come = rate * (times + window_s)
    enough = np.flatnonzero(come + 8 * np.sqrt(come) + 6 <= np.arange(1, len(times) + 1))
    return times[: enough[0] + 1] if enough.size else times


def _poisson(mean: float, size: int) -> Floats:
    """P(k) for k below ``size``."""
    if mean == 0:
        certain: Floats = np.eye(1, size)[0]
        return certain
    counts = np.arange(size)
    logs = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    found: Floats = np.exp(counts * np.log(mean) - mean - logs)
    return found


def _enough(mean: float) -> int:
    """How many counts of a Poisson distribution hold nearly all of it."""
    return int(mean + 8 * np.sqrt(mean)) + 12


def _stationary(move: Floats) -> Floats:
    """How often a Markov chain is in each state; rows of ``move`` sum to 1, and it is used up.

    State by state (W. K. Grassmann, M. I. Taksar and D. P. Heyman 1985): nothing is subtracted, so
    small probabilities keep their digits, and no BLAS is called, whose threads cost more than this.
    """
    for n in range(len(move) - 1, 0, -1):
        move[:n, n] /= move[n, :n].sum()
        move[:n, :n] += move[:n, n, None] * move[n, :n]
    found = np.ones(len(move))
    for n in range(1, len(move)):
        found[n] = np.sum(found[:n] * move[:n, n])
    total: Floats = found / found.sum()
    return total


@dataclass(kw_only=True)
class _Density:
    """Weights spread over time, gathered as ranges."""

    starts: list[Floats] = field(default_factory=list)
    widths: list[Floats] = field(default_factory=list)
    weights: list[Floats] = field(default_factory=list)

    def add(self, start: Floats, width: float | Floats, weight: Floats) -> None:
        kept = weight > _RARE * 1e-2
        self.starts.append(start[kept])
        self.widths.append(np.broadcast_to(width, start.shape)[kept])
        self.weights.append(weight[kept])

    def summary(self) -> tuple[float, float, float]:
        """Mean, p50 and p99."""
        start, width, weight = map(np.concatenate, (self.starts, self.widths, self.weights))
        step = float(np.max(start + width)) / (BINS - 2)
        first = (start / step).astype(int)
        length = np.maximum(1, np.rint(width / step).astype(int))
        each, last = weight / length, np.minimum(first + length, BINS)
        change = np.bincount(first, each, BINS + 1) - np.bincount(last, each, BINS + 1)
        below = np.cumsum(np.cumsum(change)[:BINS])
        ends = step * np.arange(1, BINS + 1)
        p50, p99 = np.interp([0.5 * below[-1], 0.99 * below[-1]], below, ends)
        mean = float(np.sum(weight * (start + width / 2)) / np.sum(weight))
        return mean, float(p50), float(p99)


class _Queue:
    """B is the largest batch, n the requests found by a machine that becomes free."""

    def __init__(self, *, times: Floats, rate: float, window_s: float) -> None:
        self.times, self.rate, self.window_s = times, rate, window_s
        self.most = len(times)
        load = rate * float(times[-1]) / self.most
        # The tail of n falls as exp(-θn) with θ near 2 (1/load - 1): this far it is nothing.
        self.states = 2 * self.most + int(8 * np.sqrt(self.most) + 20 * load / (1 - load)) + 30
        self.grown = self._grown()
        self.free = self._found_free()

    def solve(self) -> Served:
        """Put the two kinds of requests together: come while it computes, or while it waits."""
        batches = self._batches()
        density = _Density()
        for start, width, weight in self._while_free():
            density.add(start, width, weight)
        for start, width, weight in self._while_busy(batches):
            density.add(start, width, weight)
        mean, p50, p99 = density.summary()
        sizes = np.arange(1, self.most + 1)
        mean_batch = float(batches @ sizes)
        busy = self.rate * float(batches @ self.times) / mean_batch
        return Served(mean_s=mean, p50_s=p50, p99_s=p99, mean_batch=mean_batch, busy=busy)

    def _grown(self) -> Floats:
        """[n - 1, b - 1]: that n requests are b when the window ends."""
        most, found = self.most, np.eye(self.most)
        if self.window_s:
            more = _poisson(self.rate * self.window_s, most)
            for row in range(most - 1):
                found[row, row : most - 1] = more[: most - 1 - row]
                found[row, most - 1] = max(0.0, 1 - found[row, row : most - 1].sum())
        return found

    def _found_free(self) -> Floats:
        """How often a machine that becomes free finds n requests, shape [states]."""
        size, most = self.states, self.most
        come = np.stack([_poisson(self.rate * s, size) for s in self.times])
        move = np.zeros((size, size))
        move[1 : most + 1] = np.einsum("ij,jk", self.grown, come) if self.window_s else come
        move[0] = move[1]  # the first one to come
        for n in range(most + 1, size):
            move[n, n - most :] = come[-1, : size - n + most]
        move[:, -1] += 1 - move.sum(axis=1)
        return _stationary(move)

    def _batches(self) -> Floats:
        """How often a batch is of b requests, shape [B]."""
        found: Floats = self._before_window() @ self.grown
        found[-1] += self.free[self.most + 1 :].sum()
        return found

    def _before_window(self) -> Floats:
        """How often the window begins with n of 1 to B requests, shape [B]."""
        begun = self.free[1 : self.most + 1].copy()
        begun[0] += self.free[0]
        return begun

    def _filled_after(self) -> Floats:
        """The mean time in which n requests become B, where they do within the window, [B].

        E[X; X <= w] of an Erlang time X of k steps is k / rate * P(k + 1 steps take at most w).
        """
        steps = np.arange(self.most - 1, -1, -1)
        if not self.window_s:
            return np.zeros(self.most)
        mean = self.rate * self.window_s
        reached = 1 - np.cumsum(_poisson(mean, self.most + 1))
        within = np.concatenate([[1.0], reached])  # [k]: at least k come within the window
        share = within[steps + 1] / np.maximum(within[steps], 1e-300)
        found: Floats = np.minimum(steps / self.rate * share, self.window_s)
        return found

    def _answers(self, begun: Floats) -> Iterator[tuple[Floats, Floats]]:
        """Times from the window's begin to the answer, and their weights; ``begun`` by n."""
        full = self.times[-1] + self._filled_after()
        late = begun @ self.grown
        late[-1] = 0.0
        yield self.window_s * np.ones(self.most) + self.times, late
        yield full, begun * self.grown[:, -1]

    def _while_free(self) -> Iterator[tuple[Floats, Floats, Floats]]:
        """The first of an empty machine, and those who come in the window."""
        zeros = np.zeros(self.most)
        for time, weight in self._answers(np.eye(1, self.most)[0] * self.free[0]):
            yield time, zeros, weight
        if not self.window_s:
            return
        begun, after = self._before_window(), self._filled_after()
        for n in range(1, self.most):
            joined = np.arange(self.most - n)  # by b from n to B - 1
            weight = begun[n - 1] * self.grown[n - 1, n - 1 : self.most - 1] * joined
            yield self.times[n - 1 : -1], np.full(len(joined), self.window_s), weight
        filled = begun * self.grown[:, -1] * np.arange(self.most - 1, -1, -1)
        yield np.full(self.most, self.times[-1]), after, filled

    def _while_busy(self, batches: Floats) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Those who come while a batch computes: the rest of it, full batches before, their own."""
        left = self.free[self.most + 1 :]
        for size, seconds in enumerate(self.times, 1):
            if batches[size - 1] < _RARE:
                continue
            behind = np.array([batches[size - 1]])
            if size == self.most:
                behind = np.concatenate([behind - left.sum(), left])
            part = seconds / PARTS
            for index in range(PARTS):
                past = (index + 0.5) * part
                come = _poisson(self.rate * past, _enough(self.rate * past))
                ahead = np.convolve(behind, come) * self.rate * part
                yield from self._after(ahead, seconds - past, part)

    def _after(
        self, ahead: Floats, rest: float, part: float
    ) -> Iterator[tuple[Floats, Floats, Floats]]:
        """The same for requests with ``ahead`` by their place in the queue, and ``rest`` to go."""
        most = self.most
        for full in range(-(-len(ahead) // most)):
            place = ahead[full * most : (full + 1) * most]
            if place.sum() < _RARE:
                continue
            wait = rest + full * self.times[-1]
            more = _poisson(self.rate * wait, _enough(self.rate * wait))
            together = np.convolve(place, more)
            begun = np.zeros(most)
            few = min(most - 1, len(together))
            begun[:few] = together[:few]
            begun[-1] = place.sum() - begun[:-1].sum()
            for time, weight in self._answers(begun):
                yield wait - part / 2 + time, np.full(most, part), weight
