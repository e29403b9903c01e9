"""The C library as others take it: Arduino, Zephyr, ESP-IDF, PlatformIO, CMake, make; strict on every compiler."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import line_reference as line
import msgpack
import pytest
from c_board import STRICT, SUPPORT, C, compiler

SOURCES = sorted((C / "src").glob("*.c"))
CLANG = "apt-get install clang"
ARM = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"
CMAKE = "apt-get install cmake"


def needed(program: str, how: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}: {how}")
    return found


def properties(path: Path) -> dict[str, str]:
    return dict(row.split("=", 1) for row in path.read_text().splitlines() if row)


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def header_version() -> str:
    found = re.search(r'TB_LIBRARY_VERSION "([^"]+)"', (C / "src" / "tb_codes.h").read_text())
    assert found
    return found[1]


def test_every_package_has_the_same_version(root: Path) -> None:
    wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert header_version() == wanted
    assert properties(C / "library.properties")["version"] == wanted
    assert json.loads((C / "library.json").read_text())["version"] == wanted
    assert f'version: "{wanted}"' in (C / "idf_component.yml").read_text()


def test_every_package_names_what_is_there() -> None:
    arduino = properties(C / "library.properties")
    assert {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "architectures"} <= set(
        arduino
    )
    assert (C / "src" / arduino["includes"]).is_file()
    platformio = json.loads((C / "library.json").read_text())
    assert platformio["name"] == arduino["name"]
    assert (C / platformio["build"]["srcDir"] / platformio["headers"]).is_file()
    module = (C / "zephyr" / "module.yml").read_text()
    assert (C / re.search(r"cmake: (\S+)", module)[1] / "CMakeLists.txt").is_file()
    assert (C / re.search(r"kconfig: (\S+)", module)[1]).is_file()
    used = set(re.findall(r"CONFIG_(\w+)", (C / "zephyr" / "CMakeLists.txt").read_text()))
    assert used == set(re.findall(r"^config (\w+)", (C / "zephyr" / "Kconfig").read_text(), re.MULTILINE))


def test_the_umbrella_header_has_every_public_header() -> None:
    included = set(re.findall(r'#include "(\w+\.h)"', (C / "src" / "tinybridge.h").read_text()))
    inner = {
        "tb_bytes.h",
        "tb_crc.h",
        "tb_frame.h",
        "tb_pack.h",
        "tb_ring.h",
        "tb_sha256.h",
        "tb_slots.h",
        "tinybridge.h",
    }
    inner |= {path.name for path in (C / "src").glob("*_internal.h")}
    assert included == {path.name for path in (C / "src").glob("*.h")} - inner


def test_no_malloc_and_no_globals(tmp_path: Path) -> None:
    """The objects ask for memory and string functions and a square root alone, and hold no variables."""
    allowed = {"memcpy", "memset", "memmove", "memcmp", "strlen", "sqrtf", "sqrt"}
    run(compiler(), *STRICT, "-Os", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-c", *SOURCES, cwd=tmp_path)
    table = run("nm", *tmp_path.glob("*.o"))
    undefined = set(re.findall(r"^\s+U (\w+)$", table, re.MULTILINE))
    assert {name for name in undefined if not name.startswith(("tb_", "__aeabi", "_GLOBAL"))} <= allowed
    assert re.findall(r"^\w+ [BbDdC] (\w+)$", table, re.MULTILINE) == []


@pytest.mark.parametrize("arm", [False, True])
@pytest.mark.parametrize("name", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-Os", "-O3"])
def test_no_compiler_warns(name: str, arm: bool, level: str, tmp_path: Path) -> None:
    program = needed(name, CLANG if name == "clang" else "apt-get install gcc")
    target: list[str] = []
    if arm:
        cross = needed("arm-none-eabi-gcc", ARM)
        target = ["-mcpu=cortex-m3", "-mthumb"]
        if name == "clang":  # with newlib's headers
            (tmp_path / "which.c").write_text("#include <string.h>\n")
            found = re.search(r"(\S+)/string\.h", run(cross, "-M", tmp_path / "which.c"))
            assert found is not None
            target += ["--target=arm-none-eabi", "-isystem", found[1]]
        program = program if name == "clang" else cross
    run(program, *STRICT, "-Wshadow", "-Wpedantic", *target, level, "-c", *SOURCES, cwd=tmp_path)


def test_a_cortex_m0_without_atomic_instructions_will_do(tmp_path: Path) -> None:
    program = needed("arm-none-eabi-gcc", ARM)
    run(program, *STRICT, "-mcpu=cortex-m0", "-mthumb", "-Os", "-c", *SOURCES, cwd=tmp_path)
    table = run("arm-none-eabi-nm", *tmp_path.glob("*.o"))
    assert "__atomic" not in table and "__sync" not in table


def test_the_plain_makefile(tmp_path: Path) -> None:
    run("make", "-s", "-C", C, f"OUT={tmp_path}")
    members = set(run("ar", "t", tmp_path / "libtinybridge.a").split())
    assert members == {f"{source.stem}.o" for source in SOURCES}


def cmake_project(folder: Path, text: str) -> Path:
    (folder / "CMakeLists.txt").write_text(text)
    needed("cmake", CMAKE)
    run("cmake", "-S", folder, "-B", folder / "build")
    return folder / "build"


def test_as_a_cmake_library(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text('#include "tinybridge.h"\nint main(void) { return TB_PROTOCOL_VERSION - 1; }\n')
    build = cmake_project(
        tmp_path,
        f"cmake_minimum_required(VERSION 3.16)\nproject(user C)\nadd_subdirectory({C} tinybridge)\n"
        "add_executable(user main.c)\ntarget_link_libraries(user tinybridge)\n",
    )
    run("cmake", "--build", build)
    run(build / "user")


def test_as_a_component_of_esp_idf(tmp_path: Path) -> None:
    """With IDF's function standing in: it is called once with folders that hold the sources and headers."""
    build = cmake_project(
        tmp_path,
        "cmake_minimum_required(VERSION 3.16)\nproject(idf C)\nset(ESP_PLATFORM 1)\n"
        "macro(idf_component_register)\n"
        '  cmake_parse_arguments(GIVEN "" "" "SRC_DIRS;INCLUDE_DIRS" ${ARGN})\n'
        "  set(COMPONENT_LIB component)\n"
        "  file(GLOB FOUND ${CMAKE_CURRENT_LIST_DIR}/${GIVEN_SRC_DIRS}/*.c)\n"
        "  add_library(component STATIC ${FOUND})\n"
        "  target_include_directories(component PUBLIC ${CMAKE_CURRENT_LIST_DIR}/${GIVEN_INCLUDE_DIRS})\n"
        f"endmacro()\nadd_subdirectory({C} component)\n",
    )
    run("cmake", "--build", build)
    assert len(run("ar", "t", build / "component" / "libcomponent.a").split()) == len(SOURCES)


def test_as_a_zephyr_module(tmp_path: Path) -> None:
    """With Zephyr's functions standing in."""
    build = cmake_project(
        tmp_path,
        "cmake_minimum_required(VERSION 3.16)\nproject(zephyr C)\nset(CONFIG_TINYBRIDGE y)\n"
        "set(CONFIG_TINYBRIDGE_DRIFT_PENDING 7)\n"
        "macro(zephyr_include_directories)\n  include_directories(${ARGN})\nendmacro()\n"
        "macro(zephyr_library)\n  add_library(module STATIC)\nendmacro()\n"
        "macro(zephyr_library_sources)\n  target_sources(module PRIVATE ${ARGN})\nendmacro()\n"
        "macro(zephyr_library_compile_options)\n  target_compile_options(module PRIVATE ${ARGN})\nendmacro()\n"
        "macro(zephyr_compile_definitions)\n  target_compile_definitions(module PRIVATE ${ARGN})\nendmacro()\n"
        f"add_subdirectory({C}/zephyr module)\n",
    )
    run("cmake", "--build", build)
    assert len(run("ar", "t", build / "module" / "libmodule.a").split()) == len(SOURCES)


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The Arduino example as C++, with what it needs of Arduino standing in."""
    folder = tmp_path_factory.mktemp("sketch")
    run(compiler(), *STRICT, "-Os", "-fPIC", "-c", *SOURCES, cwd=folder)
    plus = needed("g++", "apt-get install g++")
    run(
        *(plus, "-std=c++11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{C / 'src'}"),
        *(f"-I{C / 'examples' / 'analog'}", f"-I{SUPPORT / 'arduino'}", SUPPORT / "arduino" / "board.cpp"),
        *(*folder.glob("*.o"), "-lm", "-o", folder / "sketch.so"),
    )
    loaded = ctypes.CDLL(str(folder / "sketch.so"))
    loaded.sketch_run.restype = ctypes.c_size_t
    loaded.sketch_run.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p]
    return loaded


def test_the_arduino_example_speaks_the_line_and_finds_drift(sketch: ctypes.CDLL) -> None:
    out = ctypes.create_string_buffer(1 << 20)
    reader = line.Reader()

    def passed(frames: list[line.Frame], ms: int, value: int = 300) -> list[line.Frame]:
        data = b"".join(map(line.encode, frames))
        n = sketch.sketch_run(data, len(data), ms * 1000, value, ctypes.addressof(out))
        return reader.feed(out.raw[:n])

    sketch.sketch_setup(2**32 - 3_000_000)  # the clock comes round while it runs
    (started,) = passed([], 5)
    assert started.payload[9:] == b"started"
    hello, on = passed(
        [
            line.Frame(line.ACKREQ, line.HELLO, 1, struct.pack("<BBHI", 1, 1, 1024, 5)),
            line.Frame(line.ACKREQ, line.STREAM, 2, struct.pack("<BBI", 0, 1, 0xFFFFFFFF)),
        ],
        20,
    )
    caps = msgpack.unpackb(hello.payload)
    assert caps["uid"] == "arduino-analog-1" and caps["slots"] == 0 and "model" not in caps
    assert on.type == line.STREAM
    steady = passed([], 6000)
    rows = [frame for frame in steady if frame.type == line.SENSOR]
    assert len(rows) == 60 and [frame.seq for frame in rows] == list(range(60))
    times = [struct.unpack_from("<Q", frame.payload, 8)[0] for frame in rows]
    assert [b - a for a, b in pairwise(times)] == [100_000] * 59
    assert not [frame for frame in steady if frame.type == line.DRIFT]
    changed = passed([], 3000, value=500)
    drift = next(frame for frame in changed if frame.type == line.DRIFT)
    assert drift.payload[10] == 1, "up"
    assert reader.bad == 0
    refused = passed([line.Frame(line.ACKREQ, line.BEGIN, 9, bytes(40))], 10)[0]
    assert refused.flags & line.ERR and refused.payload[0] == 1


def test_the_board_of_the_guide_compiles(root: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```c\n(.*?)^```", (root / "docs" / "mcu.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    (tmp_path / "board.c").write_text(blocks[0])
    run(compiler(), *STRICT, f"-I{C / 'src'}", "-c", tmp_path / "board.c", "-o", tmp_path / "board.o")


@pytest.mark.source_tree
def test_the_library_keeps_to_its_sizes_on_a_cortex_m3(root: Path) -> None:
    """Its limits hold, and the guide says what the last measurement said, which another compiler may put otherwise."""
    needed("arm-none-eabi-gcc", ARM)
    printed = run(sys.executable, root / "scripts" / "firmware_size.py")
    written = (root / "docs" / "mcu.md").read_text()
    assert "| the link | " in printed and "| the link | " in written
    if printed.splitlines()[0] in written:
        assert printed in written, "run scripts/firmware_size.py --write"
