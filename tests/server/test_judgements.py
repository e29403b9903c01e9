"""Predictions meet their true labels, whichever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit, record
from tinylcm.wire import Anchor
from tinysphere.judgements import Judged, judged


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def sample(prediction: str, label: object = "walking", **changes: object) -> dict[str, object]:
    return {"prediction": prediction, "model": "gesture", "version": "1.0.0", "label": label, "shape": [3], **changes}


def truth(prediction: str, label: str) -> dict[str, object]:
    return {"prediction": prediction, "label": label}


def found(kit: Kit, since: float = 0.0, until: float = NOW * 2) -> dict[str, Judged]:
    return kit.db.read(lambda connection: judged(connection, "gesture", since, until))


def test_labels_and_samples_meet_in_either_order(kit: Kit) -> None:
    device = kit.enrol()
    kit.sync(device, details=[record(i, "sample", sample(f"p-{i}")) for i in (1, 2, 3, 4)])
    kit.sync(
        device,
        events=[
            record(1, "label", truth("p-1", "walking")),
            record(2, "label", truth("p-2", "sitting")),
            record(3, "label", truth("p-9", "walking")),  # its input comes later
            record(4, "label", truth("p-77", "walking")),  # its input was not kept
        ],
    )
    assert found(kit) == {"1.0.0": Judged(2, 1)} and found(kit)["1.0.0"].accuracy == 0.5
    kit.sync(device, details=[record(9, "sample", sample("p-9"))])
    assert found(kit) == {"1.0.0": Judged(3, 2)}


def test_the_last_true_label_counts_and_a_record_only_once(kit: Kit) -> None:
    device = kit.enrol()
    items = [record(1, "label", truth("p-1", "sitting")), record(2, "label", truth("p-1", "walking"))]
    for _ in range(2):
        kit.sync(device, events=items, details=[record(1, "sample", sample("p-1"))])
    assert found(kit) == {"1.0.0": Judged(1, 1)}


def test_predictions_of_two_devices_are_two(kit: Kit) -> None:
    for name, secret in (("a", "11" * 32), ("b", "22" * 32)):
        device = kit.enrol(name, secret)
        kit.sync(
            device,
            details=[record(1, "sample", sample("p-1", version=name))],
            events=[record(1, "label", truth("p-1", "walking"))],
        )
    assert found(kit) == {"a": Judged(1, 1), "b": Judged(1, 1)}


def test_the_time_is_the_predictions(kit: Kit) -> None:
    device = kit.enrol()
    now_s = kit.clock.wall_s()
    kit.sync(
        device,
        anchor=Anchor(10_000_000_000, now_s),
        details=[record(1, "sample", sample("p-1"), boot_ns=4_000_000_000)],  # 6 s before
    )
    kit.clock.advance(86_400)
    kit.sync(device, events=[record(1, "label", truth("p-1", "walking"), boot_ns=10_000_000_000)])
    assert found(kit, now_s - 7, now_s - 5) == {"1.0.0": Judged(1, 1)} and found(kit, now_s - 5) == {}


@pytest.mark.parametrize("label", [None, 7, "", "x" * 257])
def test_what_names_no_label_is_stored_and_judges_nothing(kit: Kit, label: object) -> None:
    device = kit.enrol()
    answer = kit.sync(
        device,
        details=[record(1, "sample", sample("p-1", label))],
        events=[record(1, "label", truth("p-1", "walking"))],
    )
    assert answer.refused == () and found(kit) == {}


def test_some_devices_are_as_many_as_one_likes(kit: Kit) -> None:
    device = kit.enrol()
    kit.sync(device, details=[record(1, "sample", sample("p-1"))], events=[record(1, "label", truth("p-1", "walking"))])
    names = [f"d{number}" for number in range(450)]
    for some, expected in (([*names, device], {"1.0.0": Judged(1, 1)}), (names, {}), ([], {})):
        assert kit.db.read(lambda connection, s=some: judged(connection, "gesture", 0, NOW * 2, s)) == expected  # type: ignore[misc]
