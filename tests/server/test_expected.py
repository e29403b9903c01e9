"""Announced devices, and the fleet as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, digest_of, make_kit
from tinysphere import auth, expected, fleet, lifecycle
from tinysphere.errors import BadRequestError, ConflictError, ForbiddenError, InvalidError, NotFoundError
from tinysphere.expected import ExpectedRequest


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def announce(kit: Kit, serial: str, name: str = "hall", **labels: str) -> expected.ExpectedView:
    return expected.announce(kit.db, ExpectedRequest(serial, name, labels), "ada", NOW)


def come(kit: Kit, serial: str, secret: str, token: str) -> fleet.Enrolled:
    return fleet.enrol(kit.db, fleet.EnrolRequest(token, "raspberrypi", digest_of(secret), {}, serial), NOW)[0]


def test_an_announced_device_gets_its_name_and_labels_when_it_comes(kit: Kit) -> None:
    token = kit.join(uses=3)
    announce(kit, "SN:1", "hall", site="berlin")
    announce(kit, "SN:1", "hall 2", site="bonn")  # before it has come it may be said anew
    came = come(kit, "SN:1", "s1", token)
    assert came.name == "hall 2" and come(kit, "SN:1", "s1", token) == came
    device = fleet.get_device(kit.db, came.device_id, NOW)
    assert (device.labels, device.serial) == ({"site": "bonn"}, "SN:1")
    with pytest.raises(ForbiddenError, match=f"enrolled already, as {came.device_id}"):
        come(kit, "SN:1", "thief", token)
    with pytest.raises(ConflictError, match="has enrolled already"):
        announce(kit, "SN:1")
    assert expected.list_expected(kit.db, None, 10).items[0].device_id == came.device_id
    lifecycle.retire(kit.db, came.device_id, "ada", NOW)
    again = come(kit, "SN:1", "s2", token)  # repaired
    assert again.device_id != came.device_id and again.name == "hall 2"
    assert come(kit, "unknown-9", "s3", token).name == "raspberrypi"


def test_a_token_may_be_for_announced_devices_alone(kit: Kit) -> None:
    token = auth.create_join_token(kit.db, 5, 3600, "ada", NOW - 1000, expected_only=True)
    with pytest.raises(ForbiddenError, match="none was sent"):
        come(kit, "", "s", token)
    with pytest.raises(ForbiddenError, match="'SN1' was not"):
        come(kit, "SN1", "s", token)
    announce(kit, "SN1")
    assert come(kit, "SN1", "s", token).name == "hall"


def test_announcements_are_listed_in_pages_and_taken_back(kit: Kit) -> None:
    for number in range(5):
        announce(kit, f"sn{number}")
    first = expected.list_expected(kit.db, None, 3)
    second = expected.list_expected(kit.db, first.next, 3)
    assert [item.serial for item in (*first.items, *second.items)] == [f"sn{n}" for n in range(5)]
    assert expected.withdraw(kit.db, "sn0", "ada", NOW).serial == "sn0"
    with pytest.raises(NotFoundError):
        expected.withdraw(kit.db, "sn0", "ada", NOW)


@pytest.mark.parametrize(
    "request_", [ExpectedRequest("", "n"), ExpectedRequest("a b", "n"), ExpectedRequest("a" * 65, "n"),
                 ExpectedRequest("a", ""), ExpectedRequest("a", "n", {"id": "x"})]
)  # fmt: skip
def test_malformed_announcements_are_refused(kit: Kit, request_: ExpectedRequest) -> None:
    with pytest.raises(InvalidError):
        expected.announce(kit.db, request_, "ada", NOW)


def table(kit: Kit) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO("".join(expected.export_csv(kit.db, NOW)))))


def test_what_is_exported_can_be_edited_and_read_again(kit: Kit) -> None:
    token = kit.join(uses=2)
    one, other = kit.enrol("one", "1" * 64, token), kit.enrol("=HYPERLINK(1)", "2" * 64, token)
    place = fleet.DevicePatch(labels={"site": "köln", "room": "a;b"[:1]}, latitude=50.9, longitude=6.9)
    fleet.patch_device(kit.db, one, place, "*", "ada", NOW)
    found = {row["id"]: row for row in table(kit)}
    assert found[one]["labels"] == "room=a;site=köln" and found[one]["latitude"] == "50.9"
    assert found[other]["name"] == "'=HYPERLINK(1)"  # no spreadsheet runs it
    text = io.StringIO()
    writer = csv.DictWriter(text, expected.COLUMNS)
    writer.writeheader()
    writer.writerows([{**found[one], "name": "first"}, found[other], {"serial": "SN7", "name": "new", "labels": "a=b"}])
    done = expected.import_csv(kit.db, text.getvalue(), "ada", NOW)
    assert (done.announced, done.changed) == (1, 2)
    names = {device.id: device.name for device in fleet.list_devices(kit.db, None, 10, NOW).items}
    assert names == {one: "first", other: "=HYPERLINK(1)"}
    assert expected.list_expected(kit.db, None, 10).items[0].labels == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", BadRequestError, "first line"),
        ("name,labels\nx,y\n", BadRequestError, "first line"),
        ("serial,name\nsn1,ok\n,no serial\n", InvalidError, "line 3: serial"),
        ("serial,name,labels\nsn1,ok,nonsense\n", InvalidError, "line 2: labels: 'nonsense'"),
        ("id,name\ndnone,x\n", InvalidError, "line 2: there is no device"),
        ('serial,name\n"sn1', InvalidError, "line 2"),
        ("id,serial,name,latitude,longitude\nDEVICE,,,91,0\n", InvalidError, "line 2: latitude"),
        ("id,serial,name,latitude,longitude\nDEVICE,,,x,0\n", InvalidError, "line 2: latitude: 'x' is no number"),
        ("serial,name\n" + "\n".join(f"s{n},n" for n in range(20_001)), BadRequestError, "at most 20000"),
    ],
)
def test_a_table_with_a_mistake_changes_nothing(kit: Kit, text: str, error: type[Exception], said: str) -> None:
    device = kit.enrol()
    with pytest.raises(error, match=said):
        expected.import_csv(kit.db, text.replace("DEVICE", device), "ada", NOW)
    assert expected.list_expected(kit.db, None, 10).items == []
