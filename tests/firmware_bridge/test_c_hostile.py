"""Any bytes at all into the C library, built with ASan and UBSan by the host's compiler.

The same target is fuzzed at length by scripts/fuzz_c.sh (libFuzzer); here it replays inputs that hypothesis and seeded
mutations make, wherever a C compiler is.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from c_board import STRICT, C, compiler
from hypothesis import given, settings

pytestmark = pytest.mark.source_tree  # the target's seeds are made by scripts/fuzz_seeds.py


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "target"
    sources = [str(C / "fuzz" / "tb_fuzz.c"), *map(str, sorted((C / "src").glob("*.c")))]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g", "-DTB_FUZZ_MAIN"]
    subprocess.run(
        [compiler(), *STRICT, *sanitizers, f"-I{C / 'src'}", *sources, "-lm", "-o", str(out)], check=True, timeout=300
    )
    return out


@pytest.fixture(scope="module")
def seeds(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    subprocess.run([sys.executable, str(root / "scripts" / "fuzz_seeds.py"), str(folder)], check=True, timeout=60)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def replay(target: Path, inputs: list[bytes]) -> None:
    stream = b"".join(struct.pack("<I", len(data)) + data for data in inputs)
    done = subprocess.run([str(target)], input=stream, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert done.stdout == f"{len(inputs)} inputs\n".encode()


def mutated(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(1, len(out))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1, 2**32 - 4, len(out)]))
        elif kind == 2:
            out[at : at + 2] = struct.pack("<H", rng.choice([0, 1, 255, 256, 65535]))
        elif kind == 3:
            del out[at : at + rng.randrange(1, 9)]
        else:
            out[at:at] = out[at : at + rng.randrange(1, 9)]
        if len(out) < 2:
            return data
    return bytes(out)


def test_the_seeds_themselves(target: Path, seeds: list[bytes]) -> None:
    assert len(seeds) > 15
    replay(target, seeds)


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_every_seed(target: Path, seeds: list[bytes], seed: int) -> None:
    rng = random.Random(seed)
    replay(target, [mutated(rng, data) for data in seeds for _ in range(250)])


@pytest.mark.parametrize("kind", [2, 4])
def test_every_byte_of_a_model_and_of_a_store_as_every_edge(target: Path, seeds: list[bytes], kind: int) -> None:
    """Each byte in turn as 0, 1, 127, 128 and 255, and the blob cut short at it."""
    inputs = []
    for data in [data for data in seeds if data[0] % 5 == kind][:3]:
        for at in range(1, len(data)):
            inputs += [data[:at] + bytes([value]) + data[at + 1 :] for value in (0, 1, 127, 128, 255)]
            inputs.append(data[:at])
    replay(target, inputs)


@given(st.lists(st.binary(min_size=2, max_size=400), min_size=20, max_size=60))
@settings(max_examples=20, deadline=None)
def test_anything(target: Path, inputs: list[bytes]) -> None:
    replay(target, inputs)
