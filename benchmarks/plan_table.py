"""A plan as text and tables on the terminal: the recommendation first, then what is behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .plan import Plan
from .plan_option import ESTIMATED
from .plan_size import Size
from .report_numbers import number, plural
from .terminal_table import heading, narrow_table, plain


def render_plan(plan: Plan) -> RenderableType:
    """What to deploy and what it gives; machines, batches, windows, buckets, the other options."""
    parts: list[RenderableType] = [*_verdicts(plan)]
    unit = plan.basis.unit
    parts += ["", heading(f"{unit}s", "and while one is down"), _sizes(_machines(plan), "n")]
    if len(plan.batches) > 1:
        parts += ["", heading("largest batch", f"on as many {unit}s"), _sizes(plan.batches, "B")]
    if plan.windows:
        windows = sorted((plan.size, *plan.windows), key=lambda size: size.window_s)
        windows = list({size.window_s: size for size in windows}.values())
        parts += [
            "",
            heading("waiting for a batch", "once a machine is free"),
            _sizes(windows, "w"),
        ]
    if plan.option.tried:
        parts += ["", heading("buckets", f"most samples/s of one {unit}"), _buckets(plan)]
    if plan.alternatives:
        parts += ["", heading("also considered", "and why not"), _alternatives(plan)]
    return Group(*parts, "", *(Text(note, style="dim") for note in _notes(plan)))


def _verdicts(plan: Plan) -> Iterator[Text]:
    size, wish, option = plan.size, plan.wish, plan.option
    word, style = ("[ESTIMATE]", "bold yellow") if _is_estimate(plan) else ("[PLAN]", "bold green")
    unit = plan.basis.unit
    what = f"{plan.basis.hardware} {unit}" if unit == "GPU" else unit
    asked = f", {_ms(wish.latency_s)} asked" if wish.latency_s else ""
    yield Text.assemble(
        (word, style),
        f" {option.name} on {plural(size.machines, what)}: {number(wish.rate)} samples/s, "
        f"p50 {_ms(size.p50_s)}, p99 {_ms(size.p99_s)}{asked}",
    )
    wait = f"waits up to {_ms(size.window_s)}" if size.window_s else "does not wait"
    yield Text(
        f"batches of up to {size.batch}, {number(size.mean_batch)} on average; a free {unit} "
        f"{wait} for more requests"
    )
    if option.edges:
        edges = ", ".join(map(str, option.edges))
        yield Text(f"{plural(len(option.edges), 'bucket')}, to {edges} tokens")
    yield Text(
        f"load {_share(size.load)} of {number(size.machines * size.capacity)} samples/s, "
        f"head-room {_share(1 - size.load)} ({_share(wish.head_room)} asked)"
    )
    if plan.least < size.machines:
        yield Text(f"the rate alone needs {plural(plan.least, unit)}; the latency takes the rest")
    yield Text(_spare(plan))
    if plan.cost_per_hour is not None and plan.cost_per_million is not None:
        yield Text(
            f"costs {number(plan.cost_per_hour)} an hour, {number(plan.cost_per_million)} a "
            "million samples"
        )


def _is_estimate(plan: Plan) -> bool:
    return plan.basis.kind == ESTIMATED


def _spare(plan: Plan) -> str:
    """What happens while one machine is down, and what N+1 takes."""
    unit, size, lost = plan.basis.unit, plan.size, plan.one_lost
    if plan.survives and lost is not None:
        return (
            f"while one {unit} is down the rest answers with p99 {_ms(lost.p99_s)}, at "
            f"{_share(lost.load)} load: no spare is needed (N+1 is within the head-room)"
        )
    if size.machines == 1:
        said = f"while the one {unit} is down nothing is answered"
    elif lost is None:
        said = f"while one {unit} is down the rest cannot take the load"
    else:
        said = f"while one {unit} is down p99 is {_ms(lost.p99_s)}"
    return f"{said}; for N+1 take {size.machines + 1} {unit}s"


def _machines(plan: Plan) -> list[Size]:
    return [size for size in (plan.one_lost, plan.size) if size]


_FIRST: dict[str, tuple[str, Callable[[Size], str]]] = {
    "n": ("machines", lambda size: f"{size.machines:,}"),
    "B": ("largest", lambda size: str(size.batch)),
    "w": ("wait ms", lambda size: f"{size.window_s * 1e3:g}"),
}


def _sizes(sizes: Sequence[Size], kind: str) -> Table:
    name, text = _FIRST[kind]
    columns = (name, "capacity\neach", "load", "busy", "batch\nmean", "p50 ms", "p99 ms")
    return narrow_table(
        (),
        columns,
        (
            [
                text(size),
                number(size.capacity),
                _share(size.load),
                _share(size.busy),
                number(size.mean_batch),
                number(size.p50_s * 1e3),
                number(size.p99_s * 1e3),
            ]
            for size in sizes
        ),
    )


def _buckets(plan: Plan) -> Table:
    tried = plan.option.tried
    return narrow_table(
        ("",),
        tuple(tried),
        [["samples/s", *(f"{rate:,.0f}" for rate in tried.values())]],
    )


def _alternatives(plan: Plan) -> Table:
    table = narrow_table(("option",), (f"{plan.basis.unit}s", "batch", "load", "p99 ms"))
    table.add_column("why not")
    for item in plan.alternatives:
        size = item.size
        cells = ["-"] * 4
        if size is not None:
            load, late = _share(size.load), number(size.p99_s * 1e3)
            cells = [f"{size.machines:,}", str(size.batch), load, late]
        table.add_row(*plain([item.option, *cells, item.reason]))
    return table


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else "<1%"


def _ms(seconds: float) -> str:
    return f"{number(seconds * 1e3)} ms"


def _notes(plan: Plan) -> Iterator[str]:
    yield from plan.basis.notes
    yield (
        "load: of what full batches would allow; busy: of the time, more than the load while "
        "batches are not full; capacity: samples/s"
    )
    for text in plan.assumptions:
        yield f"assumed: {text}"
    models = {item.model for item in plan.alternatives} - {plan.option.model}
    if models:
        yield (
            f"{plan.option.model} and {', '.join(sorted(models))} are different models: compare "
            "what they answer, too; --model keeps one"
        )
    if plan.option.precision == "int8":
        yield "INT8 must pass its accuracy gate on your data: attn-export build --int8 --data FILE"
