"""Mutated packages and models: none is accepted without a valid signature, and none ends this process.

By default 300 packages and 300 models; with TINYMLOPS_TORTURE=1 5,000 of each.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kinds import packaged
from models import linear_model, make_package, make_signer, manifest_of, trust_of, write_keys
from mutations import mutants
from prober import Prober
from tflite_models import load
from tinylcm.errors import ModelError
from tinylcm.keys import PACKAGE_DOMAIN, Revocation, Signer, fingerprint
from tinylcm.package import MAGIC, build_package, parse_package
from tinylcm.probe import probe
from tinylcm.store import SlotStore
from tinylcm.wire import canonical_json

TORTURE = bool(os.environ.get("TINYMLOPS_TORTURE"))
PACKAGES = 5000 if TORTURE else 300
MODELS = 5000 if TORTURE else 300
PROBES = 100 if TORTURE else 16
SEED = 20_261_123
HEADER = struct.Struct("<8sII")
SIGNER = make_signer()
TRUST = trust_of(SIGNER)
SAID = Revocation.sign(make_signer(2).key, {"gesture": 1}, frozenset({fingerprint(bytes(32))}), serial=3)
GOOD = make_package(version="1.0.0", security_counter=4)
TALKING = make_package(version="1.1.0", security_counter=4, signer=replace(SIGNER, statements=(SAID,)))
FOREIGN = make_package(version="1.0.0", signer=make_signer(9))
NEWER = make_package(version="2.0.0", bias=1.0, signer=SIGNER)


def signed(document: bytes, body: bytes, signer: Signer = SIGNER) -> bytes:
    """A package whose manifest can be anything, with a valid signature: a publisher gone wrong."""
    block = canonical_json(
        {
            "release": signer.key.public.hex(),
            "signature": signer.key.sign(PACKAGE_DOMAIN, document).hex(),
            "keyset": signer.keyset.document.decode(),
            "keyset_signature": signer.keyset.signature.hex(),
        }
    )
    return HEADER.pack(MAGIC, len(document), len(block)) + document + block + body


def parts(package: bytes) -> tuple[bytes, bytes]:
    """The manifest and the members of a package."""
    _, manifest, block = HEADER.unpack_from(package)
    return package[HEADER.size : HEADER.size + manifest], package[HEADER.size + manifest + block :]


def refusal(data: bytes) -> str:
    """Why a package is refused; empty when it is not. Any other exception ends the test."""
    try:
        parse_package(data, TRUST)
    except ModelError as error:
        return str(error)
    return ""


def test_a_mutated_package_is_refused_unless_everything_that_is_signed_is_whole(report: Callable[..., None]) -> None:
    found: Counter[str] = Counter()
    for original in (GOOD, TALKING, FOREIGN):
        others = [GOOD, TALKING, FOREIGN, NEWER]
        for name, data in mutants(original, others, count=PACKAGES // 3, seed=SEED):
            if not refusal(data):
                # What may differ is the JSON around the signatures, which holds nothing that counts.
                assert parts(data) == parts(original) and original is not FOREIGN, name
                found["accepted, signed bytes whole"] += 1
            else:
                found["refused"] += 1
    report("mutated packages", mutants=sum(found.values()), **{k.replace(" ", "_"): n for k, n in found.items()})
    assert found["refused"] > 0.98 * sum(found.values())


def test_a_mutated_manifest_is_refused_by_its_signature() -> None:
    document, body = parts(GOOD)
    block = GOOD[HEADER.size + len(document) : len(GOOD) - len(body)]
    for name, changed in mutants(document, [parts(NEWER)[0]], count=PACKAGES // 3, seed=SEED):
        data = HEADER.pack(MAGIC, len(changed), len(block)) + changed + block + body
        assert "does not fit its manifest" in refusal(data), name


def test_a_mutated_manifest_with_a_valid_signature_is_a_model_error_or_a_whole_package(
    report: Callable[..., None],
) -> None:
    document, body = parts(GOOD)
    accepted = 0
    for _, changed in mutants(document, [parts(NEWER)[0]], count=PACKAGES // 3, seed=SEED + 1):
        accepted += not refusal(signed(changed, body))
    report("mutated manifests, validly signed", mutants=PACKAGES // 3, that_still_make_sense=accepted)


def test_a_refused_package_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    store = SlotStore(tmp_path, write_keys(tmp_path / "trust", SIGNER))
    before = sorted(path for path in tmp_path.rglob("*"))
    for _, data in mutants(GOOD, [NEWER], count=60, seed=SEED + 2):
        if refusal(data):
            with pytest.raises(ModelError):
                store.add(data)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.suffix == ".tlm"] == []
    assert set(before) <= set(tmp_path.rglob("*"))


# Containers that are hostile on purpose, validly signed


def member(name: str, content: bytes = b"x") -> dict[str, Any]:
    import hashlib

    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def with_members(*members: dict[str, Any], body: bytes = b"") -> bytes:
    document = json.loads(parts(GOOD)[0])
    model = parts(GOOD)[1]
    document["members"] = [*document["members"], *members]
    return signed(canonical_json(document), model + body)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/cron.d/x", "..\\..\\x", "/etc/passwd", "//x", "C:\\x", "~/.ssh/authorized_keys", "model.onnx/..",
        "./model.onnx", "model.onnx\0.txt", "a/../model.onnx", "model.pkl", "model.so", "__init__.py", ".", "", " ",
        "MODEL.onnx", "ｍodel.onnx", "model.onnx\n", "stage9.onnx", "golden.f32/x",
    ],
)  # fmt: skip
def test_a_member_with_a_hostile_name_is_refused_by_name(name: str) -> None:
    said = "holds a NUL character" if "\0" in name else "is not a member a package may have"
    assert said in refusal(with_members(member(name), body=b"x"))


@pytest.mark.parametrize("link", [{"link": "/etc/passwd"}, {"linkname": "../x"}, {"type": "symlink"}, {"mode": 0o4755}])
def test_there_is_no_way_to_say_link_in_a_package(link: dict[str, Any]) -> None:
    # Members are bytes at a place: what a container says beyond name, size and hash has no effect.
    name = "stage0.npz"
    package = parse_package(with_members({**member(name), **link}, body=b"x"), TRUST)
    assert package.read(name) == b"x"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["members"].append(d["members"][0]), "has a name twice"),
        (lambda d: d["members"][0].update(size=1 << 62), "expected 0 to"),
        (lambda d: d["members"][0].update(size=(256 << 20)), "truncated"),
        (lambda d: d["members"][0].update(size=-1), "expected 0 to"),
        (lambda d: d["members"][0].update(size=0), "too long"),
        (
            lambda d: d["members"].extend(
                [dict(d["members"][0], name=f"stage{n}.x{m}") for n in range(8) for m in range(99)]
            ),
            "members",
        ),
    ],
)
def test_claimed_sizes_and_counts_are_refused_before_they_cost_anything(
    change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    document = json.loads(parts(GOOD)[0])
    change(document)
    assert problem in refusal(signed(canonical_json(document), parts(GOOD)[1]))


@pytest.mark.parametrize("sizes", [(0xFFFFFFFF, 1), (1, 0xFFFFFFFF), (0x7FFFFFFF, 0x7FFFFFFF), ((1 << 20) + 1, 10)])
def test_a_header_that_claims_too_much_is_refused(sizes: tuple[int, int]) -> None:
    assert "larger than any may be" in refusal(HEADER.pack(MAGIC, *sizes) + bytes(100))


# Models that are broken inside a package that is validly signed: the signature says who, not what


def onnx_package(model: bytes) -> bytes:
    return build_package(manifest_of(), {"model.onnx": model}, SIGNER)


def tflite_package(model: bytes) -> bytes:
    document = {"input": {"name": "x:0", "shape": [1, 16], "dtype": "int8"}, "labels": ["a", "b", "c", "d"]}
    return packaged(document, {"model.tflite": model}, format="tflite").data


def broken_packages(count: int) -> Iterator[tuple[str, bytes]]:
    """Mutated models of two engines, each in a package that its publisher has signed."""
    onnx = mutants(linear_model(), [linear_model(bias=2.0)], count=count - count // 2, seed=SEED)
    tflite = mutants(load("fc_int8"), [load("fc_float"), load("image_uint8")], count=count // 2, seed=SEED + 1)
    for name, broken in onnx:
        yield f"onnx, {name}", onnx_package(broken)
    for name, broken in tflite:
        yield f"tflite, {name}", tflite_package(broken)


def test_mutated_models_in_validly_signed_packages_harm_only_the_child_that_tries_them(
    tmp_path: Path, report: Callable[..., None]
) -> None:
    """The host of the probes is one process for all of them; each model is read by a child that was forked off it."""
    prober, outcomes = Prober(memory_bytes=2 << 30, cpu_s=5), Counter[str]()
    path = tmp_path / "broken.tlm"
    for whole in (onnx_package(linear_model()), tflite_package(load("fc_int8"))):
        path.write_bytes(whole)
        answer = prober.probe(path)["answer"]
        assert isinstance(answer, dict) and answer.get("windows") == 1, answer
    for name, data in broken_packages(MODELS):
        path.write_bytes(data)
        found = prober.probe(path)
        answer = found["answer"]
        assert isinstance(answer, dict)
        if found["signal"]:
            outcomes["children_ended_by_a_signal"] += 1
            continue
        assert found["status"] == 0 and answer, f"{name}: {found}"
        outcomes["refused" if "error" in answer else "runs"] += 1
    deaths = int(prober.close() != 0)
    report(
        "mutated models of ONNX and TFLite, validly signed, each read in a child",
        models=MODELS, host_deaths=deaths, **outcomes,
    )  # fmt: skip
    assert deaths == 0
    assert sum(outcomes.values()) == MODELS and outcomes["refused"] > MODELS // 4


def test_the_devices_own_probe_of_mutated_models_ends_in_an_answer_or_a_model_error(
    tmp_path: Path, report: Callable[..., None]
) -> None:
    """As a device does it: a new process a model, with its limits of time and memory."""
    outcomes: Counter[str] = Counter()
    path = tmp_path / "broken.tlm"
    for name, data in broken_packages(PROBES):
        path.write_bytes(data)
        try:
            probe(path, timeout_s=20, memory_bytes=1 << 31)
            outcomes["runs"] += 1
        except ModelError as error:
            outcomes["crashed" if "crashed" in str(error) else "refused"] += 1
            assert str(error), name
    report("the device's own probe of mutated models", models=PROBES, **outcomes)
    assert sum(outcomes.values()) == PROBES and outcomes["refused"] > 0
