"""What a kernel's machine code does, from its disassembly.

Each instruction has 128 bits. In the upper 64, bits 46-48 name the scoreboard that it sets when its
result has come (7 for none), and bits 52-57 those that it waits for (found by the authors of
maxas and TuringAs).
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

_MULTIPLY = r"(FFMA|DFMA|HMMA)\b"
_LINE = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*([^;]*);\s*/\* 0x[0-9a-f]{16} \*/\s*"
    r"/\* 0x([0-9a-f]{16}) \*/"
)
_PART = re.compile(rf"^\.?(\.L_x_\d+):|{_LINE.pattern}", re.MULTILINE)


class Instruction(NamedTuple):
    name: str  # with its modifiers
    operands: str
    sets: int  # a scoreboard, 7 for none
    waits: int  # a mask of scoreboards


class Code:
    """The instructions of a kernel, and its loops as ranges of them."""

    def __init__(self, text: str):
        self.instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for part in _PART.finditer(text):
            if part[1]:
                labels[part[1]] = len(self.instructions)
            else:
                word = int(part[4], 16)
                sets, waits = word >> 46 & 7, word >> 52 & 63
                self.instructions.append(Instruction(part[2], part[3], sets, waits))
        self.loops: list[range] = []
        for i, instruction in enumerate(self.instructions):
            to = re.search(r"\.L_x_\d+", instruction.operands)
            # At the end of the code there is one to itself.
            if instruction.name.startswith("BRA") and to and labels.get(to[0], i) < i:
                self.loops.append(range(labels[to[0]], i + 1))

    def count(self, pattern: str, of: range | None = None) -> int:
        """How many instructions have a name that begins with the pattern."""
        within = range(len(self.instructions)) if of is None else of
        return sum(re.match(pattern, self.instructions[i].name) is not None for i in within)

    @cached_property
    def steps(self) -> range:
        """The loop over the steps: the longest, or that with the products on tensor cores."""
        if self.count("HMMA"):
            return self.hottest
        return max(self.loops, key=len, default=range(0))

    @cached_property
    def hottest(self) -> range:
        """Of the innermost loops with multiply-adds that with the most; all if there is none."""
        loops = [a for a in self.loops if self.count(_MULTIPLY, a)]
        inner = [a for a in loops if not any(b != a and b[0] in a for b in loops)]
        everything = range(len(self.instructions))
        return max(inner, key=lambda of: self.count(_MULTIPLY, of), default=everything)

    @property
    def per_multiply(self) -> float | None:
        """Instructions for each multiply-add in the hottest loop; None without any."""
        multiplies = self.count(_MULTIPLY, self.hottest)
        return round(len(self.hottest) / multiplies, 2) if multiplies else None

    @property
    def exposed_loads(self) -> int:
        """How many times a step waits, before its first product on tensor cores, for loads from
        global memory that it has only just begun."""
        begun, times = set(), 0
        for i in self.steps:
            instruction = self.instructions[i]
            here = {s for s in begun if instruction.waits >> s & 1}
            times += bool(here)
            begun -= here
            if instruction.name.startswith("HMMA"):
                break
            if instruction.name.startswith("LDG") and instruction.sets < 7:
                begun.add(instruction.sets)
        return times


@cache
def disassembler() -> str | None:
    """NVIDIA's, from the package nvidia-cuda-nvdisasm or a toolkit."""
    found = importlib.util.find_spec("nvidia").submodule_search_locations
    here = [str(p) for root in found for p in Path(root).glob("*/bin/nvdisasm")]
    return here[0] if here else shutil.which("nvdisasm")


def disassembled(code: bytes) -> Code | None:
    """The machine's own instructions; None without a disassembler."""
    tool = disassembler()
    if tool is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        # Without the analysis of its data flow, which only takes time here.
        command = [tool, "-hex", "--no-dataflow", file.name]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
    return Code(out.stdout)
