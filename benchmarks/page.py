"""``docs/performance.md``, from the results."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]


def quantile(seconds: list[float], share: float) -> float:
    """Milliseconds."""
    return seconds[min(len(seconds) - 1, int(len(seconds) * share))] * 1e3


def ratio(ours: float, floor: float) -> str:
    """How many times the floor."""
    return f"**{ours / floor:.2f}**" if floor else "-"


def page(results: Result) -> str:
    """The whole page; what was not measured is not on it."""
    parts = [HEAD.format(**results["machine"])]
    for name, part in PARTS:
        if name in results:
            parts.append(part(results[name]))
    return "\n".join(parts)


HEAD = """# Performance

Written by `make bench`, never by hand; the figures as JSON are in `benchmarks/results.json`.

Measured on {cores} cores of {cpu}, Linux {kernel}, Python {python}, grpcio {grpcio}, protobuf {protobuf},
Envoy {envoy}, Consul {consul}, Gossamer {gossamer}, with one worker. What writes, what is served and what serves share
these cores.

Every figure stands beside its floor, taken in the same run: what is left when nothing is thought about. The sidecars
are clients that ask and acknowledge as Envoy does and cost next to nothing themselves. Where a mesh is larger than a
Consul can be filled with in a minute, its answers are played back: recorded from the real one at the beginning of the
run, with names, addresses and indices replaced.
"""


def fanout(found: Result) -> str:
    """One endpoint changes in Consul."""
    lines = [
        "## One endpoint changes in Consul",
        "",
        "From the beginning of the write to Consul until the last sidecar has the change. The floor holds one blocking",
        "query on the same Consul and pushes ready bytes, through grpc.aio, to as many streams when that returns.",
        "",
        "| Streams | n | p50 | floor | ratio | p99 | floor | CPU a stream | floor | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for streams, each in found.items():
        ours, floor = each["gossamer"], each["floor"]
        times = [quantile(who["seconds"], share) for share in (0.5, 0.99) for who in (ours, floor)]
        cpu = ours["cpu_us_per_stream"], floor["cpu_us_per_stream"]
        cells = [str(streams), str(len(ours["seconds"]))]
        cells += [f"{times[0]:.1f} ms", f"{times[1]:.1f} ms", ratio(times[0], times[1])]
        cells += [f"{times[2]:.1f} ms", f"{times[3]:.1f} ms"]
        cells += [f"{cpu[0]:.0f} µs", f"{cpu[1]:.0f} µs", ratio(*cpu)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "CPU is the server's, its reading of Consul included.", ""]
    return "\n".join(lines)


def sizes(found: Result) -> str:
    """The same change in meshes of several sizes."""
    first = next(iter(found.values()))["cpu_ms_per_change"]
    lines = [
        "## The same change in larger meshes",
        "",
        "Fifty sidecars, each of which may call, and was sent, every service of the mesh.",
        "",
        "| Services | CPU a change | beside the smallest | p50 | Gossamer's memory |",
        "|---|---|---|---|---|",
    ]
    for services, each in found.items():
        lines.append(
            f"| {services} | {each['cpu_ms_per_change']:.1f} ms | {ratio(each['cpu_ms_per_change'], first)}"
            f" | {quantile(each['seconds'], 0.5):.1f} ms | {each['memory_mib']:.0f} MiB |"
        )
    return "\n".join([*lines, ""])


def appears(found: Result) -> str:
    """A service appears."""
    sent = ", ".join(f"{count} {what}" for what, count in found["messages"].items())
    return f"""## A service appears that a thousand sidecars may call

| | CPU | until the last has it | messages |
|---|---|---|---|
| Gossamer | {found["cpu_s"] * 1e3:.0f} ms | {found["seconds"] * 1e3:.0f} ms | {sent} |
| the same bytes, pushed bare | {found["floor"]["cpu_s"] * 1e3:.0f} ms | {found["floor"]["seconds"] * 1e3:.0f} ms | |
| ratio | {ratio(found["cpu_s"], found["floor"]["cpu_s"])} | {ratio(found["seconds"], found["floor"]["seconds"])} | |

No listener is sent. The new service has to be read from Consul first, which the bare server has not to do.
"""


def flip(found: Result) -> str:
    """A wildcard intention flips."""
    allowed, denied, floor = found["allowed"], found["denied"], found["floor"]
    megabytes = sum(allowed["bytes"].values()) / 1e6
    return f"""## A wildcard intention flips

A thousand services, each with a sidecar; `* -> *` goes from deny to allow, so that every sidecar is sent all the others
({megabytes:.0f} MB in all), and back. The floor pushes the same bytes.

| | CPU | until the last has it |
|---|---|---|
| allowed | {allowed["cpu_s"]:.1f} s | {allowed["seconds"]:.1f} s |
| pushed bare | {floor["cpu_s"]:.1f} s | {floor["seconds"]:.1f} s |
| ratio | {ratio(allowed["cpu_s"], floor["cpu_s"])} | {ratio(allowed["seconds"], floor["seconds"])} |
| denied again | {denied["cpu_s"]:.1f} s | {denied["seconds"]:.1f} s |

Large responses are made one at a time, and small ones pass them, so that nobody who is to lose an endpoint or a right
waits for them: while all were being allowed, {found["urgent"]["n"]} endpoint changes of another service reached a
sidecar of its within {found["urgent"]["median_ms"]:.0f} ms (median) and {found["urgent"]["slowest_ms"]:.0f} ms (the
slowest). Gossamer's memory with all of it sent: {found["memory_mib"]:.0f} MiB.
"""


def start(found: Result) -> str:
    """A cold start."""
    lines = [
        "## A cold start",
        "",
        "Services of 10 instances, all of which the first sidecar may call; until it has all of them. The floor reads",
        "and decodes the same answers, or the same file, with `json` or `yaml` and does nothing with them.",
        "",
        "| Services | from | ready | first sidecar served | floor | ratio | CPU | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for services, sources in found.items():
        for source, each in sources.items():
            served, floor = each["served_s"], each["floor_s"]
            lines.append(
                f"| {services} | {source} | {each['ready_s']:.1f} s | {served:.1f} s | {floor:.1f} s"
                f" | {ratio(served, floor)} | {each['cpu_s']:.1f} s | {each['memory_mib']:.0f} MiB |"
            )
    return "\n".join([*lines, ""])


def reconnect(found: Result) -> str:
    """A thousand sidecars come again."""
    ours, floor = found["gossamer"], found["floor"]
    sent = ", ".join(f"{count} {what}" for what, count in ours["messages"].items()) or "none"
    return f"""## A thousand sidecars reconnect at once

Each with 50 upstreams, which it brings along; nothing has changed. The floor opens the streams and reads what they
send.

| | CPU | responses |
|---|---|---|
| Gossamer | {ours["cpu_s"] * 1e3:.0f} ms | {sent} |
| bare | {floor["cpu_s"] * 1e3:.0f} ms | |
| ratio | {ratio(ours["cpu_s"], floor["cpu_s"])} | |
"""


def idle(found: Result) -> str:
    """Nothing happens."""
    return f"""## Idle

3,000 streams of 300 services, which between them may call all of 10,000; {found["watches"]:.0f} blocking queries.

| | |
|---|---|
| CPU | {found["core_share"] * 100:.1f} % of a core |
| memory | {found["memory_mib"]:.0f} MiB |
| memory a stream, with what is read and made for it | {found["kb_per_stream"]:.0f} KB |
| of that, a bare stream | {found["bare_kb_per_stream"]:.0f} KB |
"""


def rotation(found: Result) -> str:
    """Leaves rotate."""
    sent = ", ".join(f"{count} {what}" for what, count in found["messages"].items())
    return f"""## A thousand leaves rotate within a minute

Sent: {sent}, {sum(found["bytes"].values()) / 1e6:.1f} MB. CPU: {found["cpu_s"]:.1f} s.
"""


def envoys(found: Result) -> str:
    """Real Envoys."""
    lines = [
        "## What upstreams cost an Envoy",
        "",
        "A real Envoy whose service may call so many others, and dials 50 of them through virtual IPs. Beside the two",
        "ways in which Gossamer sends clusters, the same upstreams with a filter chain each and certificates inlined,",
        "as Consul's own control plane has it. The CPU of one more upstream is Envoy's, for one that it does not dial.",
        "",
        "| Upstreams | | to the first dial | CPU | memory | first dial | later | one more upstream |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for services, designs in found.items():
        floor = designs["chains"]
        for design, each in designs.items():
            memory, more = each["memory_mib"], each["one_more_cpu_ms"]
            cells = [services, "a chain each" if design == "chains" else design]
            cells += [f"{each['started_s']:.2f} s", f"{each['start_cpu_s']:.2f} s"]
            cells += [f"{memory:.0f} MiB (1/{floor['memory_mib'] / memory:.1f})"]
            cells += [f"{each['first_dial_ms']:.1f} ms", f"{each['later_dial_ms']:.1f} ms"]
            cells += [f"{more:.1f} ms (1/{floor['one_more_cpu_ms'] / more:.1f})" if more else "-"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


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
)
