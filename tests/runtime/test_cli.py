"""`tinylcm` as a user types it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tinylcm import Device
from tinylcm.cli import main, make_parser
from tinylcm.package import load_package
from tinylcm.status import StatusServer

ARGUMENTS = ["--manifest", "model.toml", "--key", "keys/release.key"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activity: Path) -> Path:
    for name in ("model.onnx", "model.toml", "reference.json"):
        (tmp_path / name).write_bytes((activity / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


@pytest.fixture
def package(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    run(capsys, "keys", "init", "keys")
    return json.loads(run(capsys, "package", "build", "model.onnx", *ARGUMENTS, "-o", "activity-1.0.0.tlm", "--json"))


def test_keys_package_verify_and_show(folder: Path, package: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert package["path"] == "activity-1.0.0.tlm" and package["monitors"][:2] == ["input", "features"]
    refused = run(capsys, "package", "verify", "activity-1.0.0.tlm", code=1)
    assert "not trusted here" in refused and "tinylcm keys trust" in refused
    run(capsys, "keys", "trust", "keys/root.pub")
    verified = json.loads(run(capsys, "package", "verify", "activity-1.0.0.tlm", "--run", "--json"))
    assert verified["golden"]["windows"] == 4 and verified["sha256"] == package["sha256"]
    assert "sound" in run(capsys, "package", "verify", "activity-1.0.0.tlm", "--root", "keys/root.pub")
    assert '"hop": 10' in run(capsys, "package", "show", "activity-1.0.0.tlm")
    assert "may sign until" in run(capsys, "keys", "renew", "keys", "--days", "10")


def test_an_edited_or_truncated_package_is_refused(
    folder: Path, package: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (folder / "activity-1.0.0.tlm").read_bytes()
    (folder / "cut.tlm").write_bytes(data[:-1])
    (folder / "edited.tlm").write_bytes(data.replace(b"walking", b"wadding", 1))
    assert "truncated" in run(capsys, "package", "verify", "cut.tlm", "--any-root", code=1)
    assert "changed after it was signed" in run(capsys, "package", "verify", "edited.tlm", "--any-root", code=1)


def test_a_stand_alone_device_runs_reports_and_rolls_back(
    folder: Path, package: dict, activity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "init")
    run(capsys, "keys", "trust", "keys/root.pub")
    assert "on trial" in run(capsys, "package", "install", "activity-1.0.0.tlm")
    np.save(folder / "samples.npy", np.load(activity / "data" / "basic_motions.npz")["x_test"][0].T)
    line = run(capsys, "run", "--model", "activity", "--input", "samples.npy", "--json")
    prediction = json.loads(line)
    assert prediction["model"] == "activity" and prediction["last_sample"] == 99
    status = json.loads(run(capsys, "status", "--json"))
    assert status["models"]["activity"]["state"] == "trial" and status["device_id"] is None
    assert status["journal_bytes"]["events"] > 0
    assert "not enrolled" in run(capsys, "status")
    assert "not enrolled" in run(capsys, "sync", code=1)
    assert "back to no model" in run(capsys, "rollback", "activity")
    assert "empty" in run(capsys, "rollback", "activity", code=1)


def test_infer_takes_files_and_json_lines(
    folder: Path, activity: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    window = np.load(activity / "data" / "basic_motions.npz")["x_test"][:2].transpose(0, 2, 1)
    np.save(folder / "windows.npy", window)
    lines = run(capsys, "infer", "model.onnx", "--input", "windows.npy", "--json").splitlines()
    assert len(lines) == 2
    rows = "\n".join(json.dumps(row) for row in window[0].tolist())
    monkeypatch.setattr(sys, "stdin", io.StringIO(rows))
    labels = "badminton,running,standing,walking"
    line = json.loads(run(capsys, "infer", "model.onnx", "--labels", labels, "--json"))
    assert line["label"] in labels.split(",")
    assert line["scores"] == pytest.approx(json.loads(lines[0])["scores"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]\n"))
    assert "expected shape [100, 6], got [1, 2]" in run(capsys, "infer", "model.onnx", code=1)


@pytest.mark.parametrize(("line", "got"), [("no json", "'no json"), ("[1, 2]", "2 values"), ("7", "7")])
def test_infer_names_the_line_that_does_not_fit(
    line: str, got: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{[0] * 6}\n" * 99 + line + "\n"))
    refused = run(capsys, "infer", "model.onnx", code=1)
    assert f"line 100: expected a list of 6 numbers as in the first, got {got}" in refused


@pytest.mark.parametrize("kind", ["json", "int16", "float32"])
def test_run_takes_a_sensor_on_standard_input(
    kind: str,
    folder: Path,
    package: dict,
    activity: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(capsys, "init")
    run(capsys, "keys", "trust", "keys/root.pub")
    run(capsys, "package", "install", "activity-1.0.0.tlm")
    series = np.round(np.load(activity / "data" / "basic_motions.npz")["x_test"][0].T)  # what every kind can say
    series = np.vstack([series, series[:10]])
    if kind == "json":
        data = "".join(f"{row}\n" for row in [*series[:5].tolist(), "no numbers", *series[5:].tolist()]).encode()
        expected = [104]  # the window begins anew after what is no sample: the package says `drop`
    else:
        data = series.astype("<i2" if kind == "int16" else "<f4").tobytes()
        expected = [99, 109]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    lines = run(capsys, "run", "--model", "activity", "--kind", kind, "--json").splitlines()
    assert [json.loads(line)["last_sample"] for line in lines] == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["package", "build", "model.onnx", "--manifest", "model.toml", "--key", "none.key"], "does not exist"),
        (["infer", "none.onnx", "--input", "none.npy"], "none"),
        (["run", "--model", "activity", "--config", "none.toml"], "none.toml does not exist"),
        (["enrol", "hello"], "no join string"),
        (["run", "--model", "activity"], "there is no model 'activity'"),
    ],
)
def test_a_mistake_is_one_line_without_a_traceback(
    folder: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments)
    error = capsys.readouterr().err
    assert code in (1, 2) and problem in error
    assert error.count("\n") == 1 and "Traceback" not in error


def test_a_private_key_that_others_can_read_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "keys", "init", "keys")
    (folder / "keys" / "release.key").chmod(0o644)
    assert "chmod 600" in run(capsys, "package", "build", "model.onnx", *ARGUMENTS, code=2)
    assert "never overwritten" in run(capsys, "keys", "init", "keys", code=2)


def test_doctor_answers_people_and_scripts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "onnxruntime is installed" in run(capsys, "doctor")
    names = {check["name"] for check in json.loads(run(capsys, "doctor", "--json"))}
    assert {"clock", "compiler", "data folder", "onnx"} <= names


def test_wrong_usage_exits_2_and_help_needs_nothing() -> None:
    for arguments, code in (([], 2), (["fly"], 2), (["package"], 2), (["--help"], 0), (["--version"], 0)):
        result = subprocess.run(
            [sys.executable, "-m", "tinylcm.cli", *arguments], capture_output=True, text=True, check=False
        )
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr


def test_every_command_has_a_handler_and_json() -> None:
    def leaves(parser):
        for action in parser._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for child in action.choices.values():
                    yield from leaves(child)
                return
        yield parser

    commands = list(leaves(make_parser()))
    assert len(commands) >= 14
    for command in commands:
        assert command.get_default("handler") is not None
        assert "--json" in command.format_help()


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(3)
    monkeypatch.chdir(tmp_path)
    np.savez("ref.npz", a=rng.normal(0, 1, 4000), b=rng.normal(5, 2, 4000))
    np.savez("cur.npz", a=rng.normal(0, 1, 3000), b=rng.normal(7, 2, 3000))
    return tmp_path


def test_calibrate_prints_a_threshold_for_each_column_and_the_set(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, "drift", "calibrate", "ref.npz", "--detector", "CUSUM", "--arl0", "1000")
    assert "all together" in text and "each monitor got 2,000" in text
    document = json.loads(
        run(capsys, "drift", "calibrate", "ref.npz", "--detector", "CUSUM", "--arl0", "1000", "--column", "b",
            "--param", "k=0.25", "--param", "policy=latch", "--monitors", "3", "--seed", "4", "--json")
    )  # fmt: skip
    assert document["monitors"] == 3 and document["low"] <= document["measured"] <= document["high"]
    rows = json.loads(
        run(capsys, "drift", "calibrate", "ref.npz", "--detector", "Mahalanobis", "--arl0", "500", "--json")
    )
    assert rows["detector"] == "Mahalanobis"


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["ref.npz", "--detector", "Nothing", "--arl0", "1000"], 2, "no detector"),
        (["none.npz", "--detector", "CUSUM", "--arl0", "1000"], 1, "no such file"),
        (["ref.npz", "--detector", "CUSUM", "--arl0", "1e8"], 2, "cannot support"),
        (["ref.npz", "--detector", "CUSUM", "--arl0", "1000", "--column", "z"], 2, "no column z"),
        (["ref.npz", "--detector", "CUSUM", "--arl0", "1000", "--param", "k"], 2, "NAME=VALUE"),
        (["ref.npz", "--detector", "CUSUM", "--arl0", "1000", "--param", "x=1"], 2, "x"),
        (["ref.npz", "--detector", "CUSUM", "--arl0", "1000", "--monitors", "2"], 2, "for one column"),
    ],
)
def test_calibrate_says_what_is_wrong(
    tables: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, problem: str
) -> None:
    assert problem in run(capsys, "drift", "calibrate", *arguments, code=code)


def test_a_report_is_written_and_told(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "drift", "report", "ref.npz", "cur.npz", "-o", "report.html")
    assert text.startswith("drift: b\n") and "a: no drift" in text
    page = (tables / "report.html").read_text()
    assert (
        "ref.npz" in page
        and "<svg" in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    )
    document = json.loads(run(capsys, "drift", "report", "ref.npz", "cur.npz", "--json"))
    assert document["verdict"] == "drift"
    (tables / "torn.npz").write_bytes((tables / "ref.npz").read_bytes()[:100])
    assert "torn.npz" in run(capsys, "drift", "report", "ref.npz", "torn.npz", code=1)


@pytest.fixture
def device(folder: Path, package: dict, capsys: pytest.CaptureFixture[str]) -> Path:
    run(capsys, "init")
    run(capsys, "keys", "trust", "keys/root.pub")
    run(capsys, "package", "install", "activity-1.0.0.tlm")
    return folder


def test_status_tells_of_the_process_that_runs_and_of_none(
    device: Path, activity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "process  none runs here now" in run(capsys, "status")
    assert json.loads(run(capsys, "status", "--json"))["running"] is None
    window = np.load(activity / "data" / "basic_motions.npz")["x_test"][0].T
    with Device.open("device.toml") as opened:
        list(opened.model("activity").stream([window]))
        text = run(capsys, "status")
        document = json.loads(run(capsys, "status", "--json"))
    assert "model    activity 1.0.0 (trial)" in text and "running  activity 1.0.0: 1 windows" in text
    assert "wait for the server, 0 for the disk" in text
    assert "process  " in text and "MiB" in text and "0 errors, 0 samples dropped, 0 gaps" in text
    running = document["running"]["models"]["activity"]
    assert running["windows"] == 1 and running["latency"]["total"]["p50_us"] > 0
    assert document["running"]["system"]["threads"] >= 2
    assert "process  none runs here now" in run(capsys, "status")


def test_status_for_prometheus_has_the_metrics_of_the_process_that_runs(
    device: Path, activity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    window = np.load(activity / "data" / "basic_motions.npz")["x_test"][0].T
    with Device.open("device.toml") as opened:
        list(opened.model("activity").stream([window]))
        text = run(capsys, "status", "--prometheus")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (sample,) = families["tinylcm_predictions"].samples
    assert sample.value == 1 and sample.labels == {"model": "activity", "version": "1.0.0"}
    assert families["tinylcm_latency_seconds"].type == "histogram"
    idle = {family.name for family in text_string_to_metric_families(run(capsys, "status", "--prometheus"))}
    assert {"tinylcm_disk_free_bytes", "tinylcm_journal_bytes"} <= idle and "tinylcm_predictions" not in idle


def test_status_says_what_is_wrong_with_an_answer(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> dict[str, object]:
        raise KeyError("models")

    data = Path(json.loads(run(capsys, "status", "--json"))["data"])
    server = StatusServer(data, read)
    assert server.start()
    try:
        assert "gave no status" in run(capsys, "status", code=1)
    finally:
        server.close()


def test_bench_prints_a_table_and_writes_figures_and_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(
        capsys, "bench", "model.onnx", "--seconds", "0.05", "-o", "bench.json", "--picture", "bench.svg"
    )  # fmt: skip
    assert "hot, infer" in text and "at 100 Hz, bare backend" in text and "windows/s" in text
    document = json.loads((folder / "bench.json").read_text())
    assert document["model"] == "model" and document["rate_hz"] == 100
    assert document["hot"]["ratio"] == document["hot"]["full"]["p50"] / document["hot"]["bare"]["p50"]
    root = ElementTree.fromstring((folder / "bench.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert any("infer: p50" in (element.text or "") for element in root.iter())


def test_bench_measures_a_package_that_is_trusted(
    folder: Path, package: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "activity-1.0.0.tlm", "--seconds", "0.05", "--json"]
    assert "not trusted here" in run(capsys, *arguments, code=1)
    assert json.loads(run(capsys, *arguments, "--any-root"))["monitors"] == package["monitors"]
    run(capsys, "keys", "trust", "keys/root.pub")
    document = json.loads(run(capsys, *arguments, "--rate-hz", "200"))
    assert (document["model"], document["version"], document["rate_hz"]) == ("activity", "1.0.0", 200)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["none.onnx"], 1, "none.onnx"),
        (["model.onnx", "--seconds", "0"], 2, "expected seconds of 0.05 to 3600"),
        (["model.onnx", "--rate-hz", "-1"], 2, "a rate_hz of 0 to 100000"),
        (["model.onnx", "--rate-hz", "0.01"], 2, "measure for at least 400 s"),
        (["model.onnx", "--threads", "0"], 2, "threads=0"),
    ],
)
def test_bench_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, problem: str
) -> None:
    assert problem in run(capsys, "bench", *arguments, code=code)


def test_metadata_of_the_training_is_given_at_the_build(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "keys", "init", "keys")
    given = ["--meta", "run_id=r-1", "--meta", 'training={"epochs": 3}', "--meta", "seed=7", "--meta", "note=a=b"]
    run(capsys, "package", "build", "model.onnx", *ARGUMENTS, *given, "-o", "p.tlm")
    metadata = load_package("p.tlm", None).manifest.metadata
    assert metadata["training"] == {"epochs": 3} and metadata["seed"] == 7 and metadata["note"] == "a=b"
    assert metadata["run_id"] == "r-1"
    for wrong in ("run_id", "=x", ""):
        assert "KEY=VALUE" in run(capsys, "package", "build", "model.onnx", *ARGUMENTS, "--meta", wrong, code=2)
