#!/usr/bin/env python3
"""Check in machine code that every CUDA kernel waits for the one before it.

A kernel is launched while the one before it in its stream still runs (csrc/cuda/begin_kernel.h).
One that reads or writes memory before it waits gives other results now and then, on a busy GPU,
which no test is sure to see. Of the code for compute capability 9.0 in a library:

    tools/kernel_begin.py libpvt_ops_cuda.so --cuobjdump CUOBJDUMP

cuobjdump and nvdisasm beside it are part of the CUDA toolkit, and of Triton.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

FUNCTION = re.compile(r"Function : (\w+)")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@)!?\w+\s+)?([A-Z][\w.]*)")
# griddepcontrol.wait and .launch_dependents, by every thread; "@": not by every one
WAIT, LAUNCH_NEXT = "ACQBULK", "PREEXIT"
GLOBAL_MEMORY = re.compile(r"@?(LDG|STG|LDGSTS|LD|ST|ATOM|ATOMG|RED|UBLKCP|UTMALDG|UTMASTG)\b")


def complaint(instructions: list[str]) -> str | None:
    """What is wrong with a kernel, if anything is."""
    waits = instructions.index(WAIT) if WAIT in instructions else None
    if waits is None:
        return "does not wait"
    if any(GLOBAL_MEMORY.match(name) for name in instructions[:waits]):
        return "touches memory before it waits"
    if LAUNCH_NEXT not in instructions:
        return "does not let the next one begin"
    if instructions.index(LAUNCH_NEXT) < waits:
        return "lets the next one begin before it waits"
    return None


def kernels(lines: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    """Each kernel's name and its instructions."""
    name, instructions = "", []
    for line in lines:
        if match := FUNCTION.search(line):
            if name:
                yield name, instructions
            name, instructions = match[1], []
        elif match := INSTRUCTION.search(line):
            instructions.append((match[1] or "") + match[2])
    if name:
        yield name, instructions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", type=Path)
    parser.add_argument("--cuobjdump", type=Path, default=Path("cuobjdump"))
    arguments = parser.parse_args()
    folders = f"{arguments.cuobjdump.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [arguments.cuobjdump, "-sass", "-arch", "sm_90a", arguments.library]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PATH": folders}
    ) as process:
        assert process.stdout is not None
        found = {name: complaint(code) for name, code in kernels(process.stdout)}
    if process.returncode != 0 or not found:
        sys.exit(f"{arguments.library}: cuobjdump finds no code for compute capability 9.0a in it")
    wrong = [f"{name}: {what}" for name, what in sorted(found.items()) if what]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(found)} CUDA kernels wait for the one before them before they touch memory")


if __name__ == "__main__":
    main()
