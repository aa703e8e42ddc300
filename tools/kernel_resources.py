#!/usr/bin/env python3
"""Compare what the CUDA kernels take of a GPU with csrc/cuda/resources.txt.

More registers leave room for fewer warps, and a spilled one is a memory access in a loop that was
written to have none: neither shows in a test. Reads the log of a build, in which ptxas says what
each kernel takes:

    PVT_WITH_CUDA=1 pip wheel -v --no-deps . > build.log 2>&1
    tools/kernel_resources.py build.log            # fails if any kernel takes more than before
    tools/kernel_resources.py build.log --update   # writes the file

A second build compiles only what changed, and only that is compared, or updated.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

RESOURCES = Path(__file__).parents[1] / "csrc/cuda/resources.txt"
SOURCES = Path(__file__).parents[1] / "csrc/sources.txt"
HEADER = """\
# What the CUDA kernels take: registers of a thread and, after a plus, bytes of memory for what has
# no place there (spilled registers, arrays that are indexed). Written by tools/kernel_resources.py
# --update, checked by it in continuous integration.
"""
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SOURCE = re.compile(r"nvcc .* -c \S*/(\w+\.cu) ")  # precedes what was said of it
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")

# source -> kernel -> architecture -> registers, bytes of memory
Rows = dict[str, dict[str, tuple[int, int]]]
Table = dict[str, Rows]


def demangled(names: list[str]) -> dict[str, str]:
    """Every name as it reads in the source, without namespaces and arguments."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    short = (
        re.sub(r"\(anonymous namespace\)::|pvt::cuda::|^void ", "", line).rsplit("(", 1)[0]
        for line in text.splitlines()
    )
    return dict(zip(names, short, strict=True))


def read_log(log: str) -> Table:
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    source, entry, memory = "", None, 0
    for line in log.splitlines():
        if match := SOURCE.search(line):
            source = match[1]
        elif match := ENTRY.search(line):
            entry, memory = (source, match[1], match[2]), 0
        elif match := MEMORY.search(line):
            memory = max(map(int, match.groups()))
        elif entry is not None and (match := USED.search(line)):
            found[entry] = int(match[1]), memory
            entry = None
    names = demangled(sorted({name for _, name, _ in found}))
    table: Table = {}
    for (source, name, architecture), resources in found.items():
        table.setdefault(source, {}).setdefault(names[name], {})[architecture] = resources
    return table


def read_table(text: str) -> Table:
    table: Table = {}
    architectures: list[str] = []
    rows: Rows = {}
    for line in text.splitlines():
        *cells, name = re.split("  +", line)
        if name.startswith("#") or not name:
            continue
        if name.endswith(":"):
            rows = table.setdefault(name[:-1], {})
        elif not architectures:
            architectures = [*cells, name]
        else:
            numbers = [(int(used), int(memory)) for used, memory in (c.split("+") for c in cells)]
            rows[name] = dict(zip(architectures, numbers, strict=True))
    return table


def written(table: Table) -> str:
    kernels = [row for rows in table.values() for row in rows.values()]
    architectures = sorted({a for row in kernels for a in row})
    if any(len(row) < len(architectures) for row in kernels):
        sys.exit("sources were compiled for different architectures: build all of them again")
    lines = [HEADER, "  ".join(f"{a:7}" for a in architectures).rstrip()]
    for source, rows in sorted(table.items()):
        lines += ["", f"{source}:"]
        for name in sorted(rows):
            cells = ("{}+{}".format(*rows[name][a]) for a in architectures)
            lines.append("  ".join(f"{cell:7}" for cell in cells) + "  " + name)
    return "\n".join(lines) + "\n"


def complaints(now: Rows, before: Rows) -> list[str]:
    found = [f"{name}: new" for name in now.keys() - before.keys()]
    found += [f"{name}: gone" for name in before.keys() - now.keys()]
    for name in now.keys() & before.keys():
        for architecture in now[name].keys() | before[name].keys():
            old, new = before[name].get(architecture), now[name].get(architecture)
            if old is None or new is None:
                found.append(f"{name}: {architecture} {'new' if old is None else 'gone'}")
            elif new[0] > old[0] or new[1] > old[1]:
                found.append(
                    f"{name}: {new[0]} registers and {new[1]} bytes of memory on {architecture}, "
                    f"before {old[0]} and {old[1]}"
                )
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path, help="output of the build, from pip wheel -v")
    parser.add_argument("--update", action="store_true", help=f"write {RESOURCES.name}")
    arguments = parser.parse_args()
    now = read_log(arguments.log.read_text())
    if not now:
        sys.exit(f"{arguments.log}: ptxas says nothing in it; build with pip wheel -v")
    before = read_table(RESOURCES.read_text()) if RESOURCES.exists() else {}
    listed = re.findall(r"^cuda/(\w+\.cu)$", SOURCES.read_text(), re.MULTILINE)
    kept = {source: rows for source, rows in before.items() if source not in now}
    found = [f"{source}: gone" for source in sorted(kept.keys() - set(listed))]
    if arguments.update:
        now |= {source: rows for source, rows in kept.items() if source in listed}
        RESOURCES.write_text(written(now))
    else:
        for source, rows in sorted(now.items()):
            found += complaints(rows, before.get(source, {}))
        if found:
            sys.exit("\n".join([*found, f"if this is meant: {Path(__file__).name} --update"]))
        for source in sorted(kept):
            print(f"{source}: not compared, it was not compiled again")
    print(f"{sum(map(len, now.values()))} CUDA kernels take no more than {RESOURCES.name} says")


if __name__ == "__main__":
    main()
