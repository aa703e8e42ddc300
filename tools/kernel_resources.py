#!/usr/bin/env python3
"""Compare what the CUDA kernels take of a GPU with csrc/cuda/resources.txt.

More registers leave room for fewer warps, and a spilled one is a memory access in a loop that was
written to have none: neither shows in a test. Reads the log of a build, in which ptxas says what
each kernel takes:

    PVT_WITH_CUDA=1 pip wheel -v --no-deps . > build.log 2>&1
    tools/kernel_resources.py build.log            # fails if any kernel takes more than before
    tools/kernel_resources.py build.log --update   # writes the file
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

RESOURCES = Path(__file__).parents[1] / "csrc/cuda/resources.txt"
HEADER = """\
# What the CUDA kernels take: registers of a thread and, after a plus, spilled bytes.
# Written by tools/kernel_resources.py --update, checked by it in continuous integration.
"""
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")

Table = dict[str, dict[str, tuple[int, int]]]  # kernel -> architecture -> registers, spilled


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
    found: dict[tuple[str, str], tuple[int, int]] = {}
    entry, spilled = None, 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry, spilled = (match[1], match[2]), 0
        elif match := SPILLS.search(line):
            spilled = max(int(match[1]), int(match[2]))
        elif entry is not None and (match := USED.search(line)):
            found[entry] = int(match[1]), spilled
            entry = None
    names = demangled(sorted({name for name, _ in found}))
    table: Table = {}
    for (name, architecture), resources in found.items():
        table.setdefault(names[name], {})[architecture] = resources
    return table


def read_table(text: str) -> Table:
    table: Table = {}
    architectures: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or not line:
            continue
        *cells, name = re.split("  +", line)
        if not architectures:
            architectures = [*cells, name]
            continue
        numbers = [(int(used), int(spilled)) for used, spilled in (c.split("+") for c in cells)]
        table[name] = dict(zip(architectures, numbers, strict=True))
    return table


def written(table: Table) -> str:
    architectures = sorted({a for row in table.values() for a in row})
    lines = [HEADER, "  ".join(f"{a:7}" for a in architectures).rstrip()]
    for name in sorted(table):
        cells = ("{}+{}".format(*table[name][a]) for a in architectures)
        lines.append("  ".join(f"{cell:7}" for cell in cells) + "  " + name)
    return "\n".join(lines) + "\n"


def complaints(now: Table, before: Table) -> list[str]:
    found = [f"{name}: new" for name in now.keys() - before.keys()]
    found += [f"{name}: gone" for name in before.keys() - now.keys()]
    for name in now.keys() & before.keys():
        for architecture in now[name].keys() | before[name].keys():
            old, new = before[name].get(architecture), now[name].get(architecture)
            if old is None or new is None:
                found.append(f"{name}: {architecture} {'new' if old is None else 'gone'}")
            elif new[0] > old[0] or new[1] > old[1]:
                found.append(
                    f"{name}: {new[0]} registers and {new[1]} spilled bytes on {architecture}, "
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
    if arguments.update:
        RESOURCES.write_text(written(now))
    elif found := complaints(now, read_table(RESOURCES.read_text())):
        sys.exit("\n".join([*found, f"if this is meant: {Path(__file__).name} --update"]))
    print(f"{len(now)} CUDA kernels take no more than {RESOURCES.name} says")


if __name__ == "__main__":
    main()
