"""What a process counts of itself."""

from __future__ import annotations

from tinysphere.instruments import Requests, family, series


def test_answers_are_counted_by_route_and_status_with_their_times() -> None:
    requests = Requests()
    for status, took_s in ((200, 0.001), (200, 0.005), (503, 0.3), (200, 9.0)):
        requests.note("GET", "/api/v1/devices/{id}", status, took_s)
    lines = list(requests.families())
    where = 'method="GET",route="/api/v1/devices/{id}"'
    assert f'tinysphere_requests_total{{{where},status="200"}} 3' in lines
    assert f'tinysphere_requests_total{{{where},status="503"}} 1' in lines
    found = [line.partition("} ")[2] for line in lines if "seconds_bucket" in line]
    assert found == ["2", "2", "2", "3", "3", "4"]
    assert f"tinysphere_request_seconds_count{{{where}}} 4" in lines
    assert f"tinysphere_request_seconds_sum{{{where}}} 9.306" in lines


def test_values_and_labels_are_written_as_prometheus_reads_them() -> None:
    assert series("x", (("a", 'q"\\\n'),), 0.5) == 'tinysphere_x{a="q\\"\\\\\\n"} 0.5'
    assert family("up", "gauge", "whether it is up", 1)[-1] == "tinysphere_up 1"
