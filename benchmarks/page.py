"""``docs/performance.md``, from the results: medians of several runs, with the least and the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import simulation

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """A cell that every run has another value for.

    Args:
        value: this run's.
        form: how it is written; ``{}`` takes the number.
        spread: whether the least and the greatest are written beside the median.
    """

    value: float
    form: str
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark's part of the page, from one run."""

    title: str
    before: str
    head: tuple[str, ...]
    rows: list[list[Figure | str]]
    after: str = ""
    measured: bool = True


def ratio(ours: float, floor: float) -> Figure | str:
    """Return the multiple of the floor."""
    return Figure(ours / floor, "{:.2f}", spread=True) if floor else "-"


def alone(value: float, form: str) -> Figure:
    """Return a figure without a floor."""
    return Figure(value, form, spread=True)


def _quantile(seconds: list[float], share: float) -> float:
    """Milliseconds."""
    return seconds[min(len(seconds) - 1, int(len(seconds) * share))] * 1e3


def page(results: Result) -> str:
    """Return the whole page, without what was not measured."""
    machines = [results["machines"][name] for name, _ in PARTS if name in results]
    usual = max(machines, key=machines.count)
    parts = [HEAD.format(machine=MACHINE.format(**usual))]
    for name, part in PARTS:
        if name in results:
            parts.append("\n".join(_written([part(run) for run in results[name]])))
            if results["machines"][name] != usual:
                parts[-1] += f"\nThis on another machine: {MACHINE.format(**results['machines'][name])}.\n"
    if all(name in results for name in ("fanout", "sizes", "reconnect", "idle", "start")):
        parts.append("\n".join(_written([carried_on(simulation.costs(results))])))
    return "\n".join(parts)


def _written(runs: list[Section]) -> Iterator[str]:
    first = runs[0]
    yield from (f"## {first.title}", "", first.before.strip(), "")
    yield f"| {' | '.join(first.head)} |"
    yield "|" + "---|" * len(first.head)
    for row in zip(*(run.rows for run in runs), strict=True):
        yield f"| {' | '.join(_cell(list(cells)) for cells in zip(*row, strict=True))} |"
    yield ""
    if first.measured:
        yield from (f"{first.after.strip()} Runs: {len(runs)}.".strip(), "")


def _cell(runs: list[Figure | str]) -> str:
    first = runs[0]
    if isinstance(first, str):
        return first
    values = [each.value for each in runs if isinstance(each, Figure)]
    middle = first.form.format(statistics.median(values))
    if not first.spread:
        return middle
    low, high = (first.form.format(value).split()[0] for value in (min(values), max(values)))
    return f"**{middle}**" if low == high else f"**{middle}** ({low} to {high})"


MACHINE = """{cores} cores of {cpu}, Linux {kernel}, Python {python}, grpcio {grpcio}, protobuf {protobuf},
Envoy {envoy}, Consul {consul}, Gossamer {gossamer}"""
HEAD = """# Performance

Written by `make bench`, never by hand; every run's figures are in `benchmarks/results.json`.

Measured on {machine}, with one worker. The writer, the server and the clients share
these cores. Each figure is the median of several runs, each of which started everything again; the least and the
greatest are in parentheses.

Every figure has a floor beside it, measured in the same run: the same messages without any processing. The sidecars
are light clients that subscribe and acknowledge as Envoy does. Where a mesh is larger than what a Consul can be filled
with in a minute, its answers are recorded from a real Consul at the beginning of the run and played back, with names,
addresses and indices replaced.
"""


def fanout(found: Result) -> Section:
    """Return the section about one endpoint that changes."""
    rows: list[list[Figure | str]] = []
    for streams, each in found.items():
        ours, floor = each["gossamer"], each["floor"]
        cells: list[Figure | str] = [streams]
        for share in (0.5, 0.99):
            times = [_quantile(who["seconds"], share) for who in (ours, floor)]
            cells += [*(Figure(value, "{:.1f} ms") for value in times), ratio(*times)]
        cpu = ours["cpu_us_per_stream"], floor["cpu_us_per_stream"]
        rows.append([*cells, *(Figure(value, "{:.0f} µs") for value in cpu), ratio(*cpu)])
    changes = ", ".join(str(len(each["gossamer"]["seconds"])) for each in found.values())
    return Section(
        "One endpoint changes in Consul",
        "From the beginning of the write to Consul until the last sidecar has the change. The floor holds one\n"
        "blocking query on the same Consul and pushes ready bytes, through grpc.aio, to as many streams when that\n"
        "returns.",
        ("Streams", "p50", "floor", "ratio", "p99", "floor", "ratio", "CPU a stream", "floor", "ratio"),
        rows,
        f"Number of changes in each run: {changes}. CPU is the server's, including its reading of Consul.",
    )


def sizes(found: Result) -> Section:
    """Return the section about the same change in meshes of several sizes."""
    first = next(iter(found.values()))["cpu_ms_per_change"]
    rows: list[list[Figure | str]] = [
        [
            services,
            Figure(each["cpu_ms_per_change"], "{:.1f} ms"),
            ratio(each["cpu_ms_per_change"], first),
            Figure(_quantile(each["seconds"], 0.5), "{:.1f} ms"),
            Figure(each["rest_share"] * 100, "{:.1f} %"),
            Figure(each["memory_mib"], "{:.0f} MiB"),
        ]
        for services, each in found.items()
    ]
    return Section(
        "The same change in larger meshes",
        "Fifty sidecars, each of which may call, and was sent, every service of the mesh. The CPU of a change is the\n"
        "CPU during the changes minus that of as much time at rest, which has a column of its own.",
        ("Services", "CPU a change", "beside the smallest", "p50", "CPU at rest, of a core", "Gossamer's memory"),
        rows,
    )


def appears(found: Result) -> Section:
    """Return the section about a service that appears."""
    sent = ", ".join(f"{count} {what}" for what, count in found["messages"].items())
    floor = found["floor"]
    return Section(
        "A service appears that a thousand sidecars may call",
        f"All that is sent: {sent}.",
        ("", "Gossamer", "the same bytes, only pushed", "ratio"),
        [
            [
                "CPU",
                Figure(found["cpu_s"] * 1e3, "{:.0f} ms"),
                Figure(floor["cpu_s"] * 1e3, "{:.0f} ms"),
                ratio(found["cpu_s"], floor["cpu_s"]),
            ],
            [
                "until the last has it",
                Figure(found["seconds"] * 1e3, "{:.0f} ms"),
                Figure(floor["seconds"] * 1e3, "{:.0f} ms"),
                ratio(found["seconds"], floor["seconds"]),
            ],
        ],
        "Gossamer has to read the new service from Consul first; the floor does not.",
    )


def flip(found: Result) -> Section:
    """Return the section about a wildcard intention that flips."""
    floor = found["floor"]
    megabytes = sum(found["allowed"]["bytes"].values()) / 1e6
    costs = (("until the last has it", "seconds"), ("CPU", "cpu_s"))
    rows: list[list[Figure | str]] = [
        [
            "allowed",
            what,
            Figure(found["allowed"][key], "{:.1f} s"),
            Figure(floor[key], "{:.1f} s"),
            ratio(found["allowed"][key], floor[key]),
        ]
        for what, key in costs
    ]
    rows += [["denied again", what, Figure(found["denied"][key], "{:.1f} s"), "", ""] for what, key in costs]
    for when, said in (("allowed", "while allowed"), ("denied", "while denied")):
        waits = found[when]["meanwhile_s"]
        rows.append([said, "another's endpoint change, median", alone(_quantile(waits, 0.5), "{:.0f} ms"), "", ""])
        rows.append([said, "another's endpoint change, slowest", alone(max(waits) * 1e3, "{:.0f} ms"), "", ""])
    rows.append(["all sent", "Gossamer's memory", Figure(found["memory_mib"], "{:.0f} MiB"), "", ""])
    return Section(
        "A wildcard intention flips",
        "A thousand services, each with a sidecar; `* -> *` goes from deny to allow, so that every sidecar is sent\n"
        f"all the others ({megabytes:.0f} MB in all), and back. The floor pushes the same bytes.",
        ("", "", "Gossamer", "only pushed", "ratio"),
        rows,
        "Large responses wait for slots, and small ones pass them. Meanwhile another service changes, which one\n"
        "sidecar calls and the flip does not affect.",
    )


def start(found: Result) -> Section:
    """Return the section about a cold start."""
    rows: list[list[Figure | str]] = []
    for services, sources in found.items():
        for source, each in sources.items():
            cells = [Figure(each[key], "{:.1f} s") for key in ("ready_s", "served_s", "floor_s")]
            cpu, memory = Figure(each["cpu_s"], "{:.1f} s"), Figure(each["memory_mib"], "{:.0f} MiB")
            rows.append([services, source, *cells, ratio(each["served_s"], each["floor_s"]), cpu, memory])
    return Section(
        "A cold start",
        "Services of 10 instances, all of which the first sidecar may call; until it has all of them. The floor reads\n"
        "and decodes the same answers, or the same file, with `json` or `yaml` and does nothing with them.",
        ("Services", "from", "ready", "first sidecar served", "floor", "ratio", "CPU", "memory"),
        rows,
    )


def reconnect(found: Result) -> Section:
    """Return the section about a thousand sidecars that reconnect."""
    ours, floor = found["gossamer"], found["floor"]
    sent = ", ".join(f"{count} {what}" for what, count in ours["messages"].items()) or "nothing"
    cpu = ours["cpu_s"], floor["cpu_s"]
    return Section(
        "A thousand sidecars reconnect at once",
        "Each has 50 upstreams already, and nothing has changed. The floor opens the streams and reads\n"
        f"what they send. Responses sent to them, with or without resources: {sent}.",
        ("", "Gossamer", "bare", "ratio"),
        [["CPU", *(Figure(value * 1e3, "{:.0f} ms") for value in cpu), ratio(*cpu)]],
    )


def idle(found: Result) -> Section:
    """Return the section about an idle server."""
    return Section(
        "Idle",
        "3,000 streams of 300 services, which between them may call all of 10,000;"
        f" {found['watches']:.0f} blocking queries. The first stream of\n"
        "each service causes the reads; the memory of a stream is what the other 2,700 add.",
        ("", ""),
        [
            ["CPU, of a core", alone(found["core_share"] * 100, "{:.1f} %")],
            ["memory", Figure(found["memory_mib"], "{:.0f} MiB")],
            ["memory a stream", Figure(found["kb_per_stream"], "{:.0f} KB")],
            ["a bare stream", Figure(found["bare_kb_per_stream"], "{:.0f} KB")],
            ["a stream beyond that", alone(found["kb_per_stream"] - found["bare_kb_per_stream"], "{:.0f} KB")],
        ],
    )


def rotation(found: Result) -> Section:
    """Return the section about leaves that rotate."""
    sent = ", ".join(f"{count} {what}" for what, count in found["messages"].items())
    return Section(
        "A thousand leaves rotate within a minute",
        f"All that is sent: {sent}.",
        ("", ""),
        [
            ["bytes", Figure(sum(found["bytes"].values()) / 1e6, "{:.1f} MB")],
            ["CPU", alone(found["cpu_s"], "{:.1f} s")],
            [
                "certificates that a real Consul signs at its limit",
                alone(found["signed_a_second"], "{:.0f} a second"),
            ],
        ],
    )


def envoys(found: Result) -> Section:
    """Return the section about real Envoys."""
    rows: list[list[Figure | str]] = []
    for services, designs in found.items():
        floor = designs["chains"]
        for design, each in designs.items():
            memory, more = each["memory_mib"], each["one_more_cpu_ms"]
            is_floor, compared = design == "chains", not design.endswith(("chains", "HTTP"))
            rows.append(
                [
                    services,
                    "a chain each" if is_floor else design,
                    Figure(each["started_s"], "{:.2f} s"),
                    Figure(each["start_cpu_s"], "{:.2f} s"),
                    Figure(memory, "{:.0f} MiB"),
                    alone(floor["memory_mib"] / memory, "1/{:.1f}") if compared else "",
                    Figure(each["first_dial_ms"], "{:.1f} ms"),
                    Figure(each["later_dial_ms"], "{:.1f} ms"),
                    Figure(more, "{:.1f} ms"),
                    alone(floor["one_more_cpu_ms"] / more, "1/{:.1f}") if compared and more else "",
                ]
            )
    return Section(
        "What upstreams cost an Envoy",
        "A real Envoy whose service may call so many others, and dials 50 of them through virtual IPs. Beside the two\n"
        "ways in which Gossamer sends clusters, the same upstreams with a filter chain each and certificates inlined,\n"
        "as Consul's own control plane has it. HTTP upstreams are dialed with a request each. The CPU of one more\n"
        "upstream is Envoy's, for one that it does not dial.",
        (
            "Upstreams", "", "to the first dial", "CPU", "memory", "of a chain each", "first dial", "later",
            "one more upstream", "of a chain each",
        ),
        rows,
    )  # fmt: skip


def tenants(found: Result) -> Section:
    """Return what one owner's configuration costs the others."""
    return Section(
        "How long the owner of one service can delay others",
        "The configuration of one service, as large as the quotas allow or larger (then the service is set aside).\n"
        "The second column is the longest time for which it held the event loop, and so the longest delay of a change\n"
        "of another service.",
        ("", "until it is in force", "others wait"),
        [
            [name, Figure(each["took_ms"], "{:.0f} ms"), alone(each["blocked_ms"], "{:.0f} ms")]
            for name, each in found.items()
        ],
    )


def carried_on(cost: simulation.Costs) -> Section:
    """Return the section that extrapolates the measurements to larger meshes."""
    rows: list[list[Figure | str]] = []
    for world in simulation.WORLDS:
        out = simulation.simulate(cost, world)
        used, what = out.limits(by_socket=world.by_socket)[0]
        rows.append(
            [
                f"{world.sidecars:,}",
                f"{world.services:,}",
                f"{world.servers} × {world.workers}",
                "socket" if world.by_socket else "TCP",
                f"{out.reader * 100:.0f} %",
                f"{out.worker * 100:.1f} %",
                f"{out.median_s * 1e3:.1f} / {out.p99_s * 1e3:.1f} ms",
                f"{out.reconnect_s:.1f} s",
                f"{out.memory_gib:.1f} GiB",
                f"{out.connections:,.0f}",
                f"{out.start_s:.0f} s",
                f"{'**breaks**: ' if used >= 1 else ''}{what} ({used * 100:.0f} %)",
            ]
        )
    return Section(
        "Carried to a hundred thousand sidecars",
        f"""
Not measured but simulated (`benchmarks/simulation.py`), with the costs above: services of {simulation.INSTANCES}
instances that may call {simulation.CALLED} others each, every instance replaced {simulation.REPLACED_A_DAY} times
a day, in the busiest hour {simulation.BUSY} times as often. A server is a process that reads Consul and some that
serve, each with a core; sidecars connect anywhere. A change is timed from Consul's answer to the last sidecar's
message. The last column has the limit that is nearest and how much of it is used: over 100 % it breaks. What Consul
itself can bear is not in it.
""",
        (
            "Sidecars", "Services", "Servers × workers", "Consul by", "reader", "each worker", "a change, p50 / p99",
            "a worker's sidecars reconnect", "largest process", "connections to Consul, a server", "cold start",
            "nearest limit",
        ),
        rows,
        measured=False,
    )  # fmt: skip


PARTS = (
    ("fanout", fanout),
    ("sizes", sizes),
    ("appears", appears),
    ("flip", flip),
    ("start", start),
    ("reconnect", reconnect),
    ("idle", idle),
    ("rotation", rotation),
    ("envoys", envoys),
    ("tenants", tenants),
)
