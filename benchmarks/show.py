"""Rows of a record for a terminal."""

from __future__ import annotations

from rich.table import Table

from benchmarks.record import Record, of_the_limit

COLUMNS = (
    "contender",
    "median",
    "IQR",
    "× fused",
    "IQR",
    "error",
    "of the limit",
    "with Winograd",
    "peak memory",
)


def limits_line(limits: Record) -> str:
    fma, half = limits["fma_gflops"], limits.get("gemm_bf16_gflops")
    peak = "no C compiler to measure the peak" if fma is None else f"peak {fma:.0f} GFLOP/s"
    bf16 = f", in bf16 {half:.0f} GFLOP/s" if half else ", no bf16 arithmetic"
    return (
        f"This machine, fp32: {peak}, matrix product {limits['gemm_gflops']:.0f} GFLOP/s{bf16}, "
        f"copy {limits['copy_gbs']:.1f} GB/s"
    )


def table(row: Record, limits: Record) -> Table:
    shown = Table(title=f"{row['title']} ({row['rounds']} rounds)", title_justify="left")
    for column in COLUMNS:
        side = "left" if column == "contender" else "right"
        shown.add_column(column, justify=side, no_wrap=True)
    for name, found in row["contenders"].items():
        if "seconds" not in found:
            continue
        seconds, ratio = found["seconds"], found.get("ratio")
        fractions = of_the_limit(row, found, limits) or {}
        memory = found.get("memory", {})
        mebibytes = memory.get("bytes", 0) / 2**20
        shown.add_row(
            name,
            f"{seconds['median'] * 1e3:.2f} ms",
            f"{seconds['q1'] * 1e3:.2f}-{seconds['q3'] * 1e3:.2f}",
            f"{ratio['median']:.2f}" if ratio else "-",
            f"{ratio['q1']:.2f}-{ratio['q3']:.2f}" if ratio else "-",
            f"{found['error']:.1e}",
            *(f"{100 * fractions[a]:.0f} %" if a in fractions else "-" for a in ARITHMETICS),
            f"{mebibytes:.0f} MiB" if mebibytes else memory.get("problem", ""),
        )
    return shown


ARITHMETICS = ("direct", "winograd")


def problems(row: Record) -> dict[str, list[str]]:
    """Contenders by the reason for which they weren't timed."""
    found: dict[str, list[str]] = {}
    for name, contender in row["contenders"].items():
        if "problem" in contender:
            found.setdefault(contender["problem"], []).append(name)
    return found
