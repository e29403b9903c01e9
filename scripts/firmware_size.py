"""What the C library takes on a Cortex-M3, by arm-none-eabi-size, with its limits; --write puts it into docs/mcu.md.

    python scripts/firmware_size.py [--write]

The link is everything a board needs to speak the line. RAM beside the buffers is one tb_link and one tb_stream; nothing
of the library is in .data or .bss. Exit code 1 when a limit is passed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "firmware_bridge" / "c" / "src"
PAGE: Final = ROOT / "docs" / "mcu.md"
FLAGS: Final = ("-std=c99", "-mcpu=cortex-m3", "-mthumb", "-Os", "-ffp-contract=off", "-ffunction-sections")
PARTS: Final = {
    "the link": ("tb_crc", "tb_frame", "tb_pack", "tb_link", "tb_requests", "tb_send"),
    "statistics and windows": ("tb_stats", "tb_window"),
    "models": ("tb_model", "tb_features", "tb_trees", "tb_mlp"),
    "slots and updates": ("tb_sha256", "tb_slots", "tb_update"),
}
STRUCTS: Final = {
    "tb_link": "one a board",
    "tb_stream": "one a sensor",
    "tb_stats": "one a feature",
    "tb_update": "one a board that takes models",
    "tb_scratch": "one a board that runs models",
}
LINK_FLASH_MAX: Final = 4096
LINK_RAM_MAX: Final = 1536
STATS_MAX: Final = 72
MARK: Final = re.compile(r"(<!-- firmware size -->\n).*?(<!-- end: firmware size -->)", re.DOTALL)


def run(*command: str | Path) -> str:
    """What a command printed."""
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def object_sizes(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Flash (.text with constants, and .data), RAM (.data and .bss) and largest stack frame of every object."""
    found = {}
    for source in sorted(SOURCES.glob("*.c")):
        made = folder / f"{source.stem}.o"
        run("arm-none-eabi-gcc", *FLAGS, "-fstack-usage", "-c", source, "-o", made)
        text, data, bss = run("arm-none-eabi-size", made).splitlines()[1].split()[:3]
        frames = [int(line.split("\t")[1]) for line in made.with_suffix(".su").read_text().splitlines()]
        found[source.stem] = (int(text) + int(data), int(data) + int(bss), max(frames))
    return found


def struct_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the structs a user declares."""
    source = folder / "sizes.c"
    lines = ['#include "tinybridge.h"', *(f"char size_of_{name}[sizeof({name})];" for name in STRUCTS)]
    source.write_text("\n".join(lines) + "\n")
    run("arm-none-eabi-gcc", *FLAGS, f"-I{SOURCES}", "-c", source, "-o", folder / "sizes.out")
    table = run("arm-none-eabi-nm", "-S", folder / "sizes.out")
    return {name: int(size, 16) for size, name in re.findall(r"^\w+ (\w+) \w size_of_(\w+)$", table, re.MULTILINE)}


def main() -> int:
    """Measure, print, and write on demand."""
    if shutil.which("arm-none-eabi-gcc") is None:
        print(
            "needs a compiler for Cortex-M: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi", file=sys.stderr
        )
        return 1
    with tempfile.TemporaryDirectory() as name:
        objects, structs = object_sizes(Path(name)), struct_sizes(Path(name))
    compiler = run("arm-none-eabi-gcc", "-dumpfullversion").strip()
    flash = {part: sum(objects[stem][0] for stem in stems) for part, stems in PARTS.items()}
    frames = {part: max(objects[stem][2] for stem in stems) for part, stems in PARTS.items()}
    variables = sum(ram for _, ram, _ in objects.values())
    link_ram = structs["tb_link"] + structs["tb_stream"]
    lines = [
        f"GCC {compiler}, `{' '.join(FLAGS[1:4])}`; flash is code and constants, without libgcc and libc:",
        "",
        "| part | flash, bytes | limit | largest stack frame |",
        "|---|---|---|---|",
        *(
            f"| {part} | {size:,} | {f'{LINK_FLASH_MAX:,}' if part == 'the link' else ''} | {frames[part]} |"
            for part, size in flash.items()
        ),
        f"| all | {sum(flash.values()):,} | | {max(frames.values())} |",
        "",
        "| RAM | bytes | limit |",
        "|---|---|---|",
        f"| variables of the library itself | {variables} | 0 |",
        *(
            f"| `{struct}`, {STRUCTS[struct]} | {size:,} | {72 if struct == 'tb_stats' else ''} |"
            for struct, size in structs.items()
        ),
        f"| the link beside its buffers, with one stream | {link_ram:,} | {LINK_RAM_MAX:,} |",
    ]
    text = "\n".join(lines).replace("|  |", "| |") + "\n"
    print(text, end="")
    if "--write" in sys.argv[1:]:
        PAGE.write_text(MARK.sub(lambda found: f"{found[1]}{text}{found[2]}", PAGE.read_text()))
    kept = flash["the link"] <= LINK_FLASH_MAX and link_ram <= LINK_RAM_MAX and structs["tb_stats"] <= STATS_MAX
    return 0 if kept and variables == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
