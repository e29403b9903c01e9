"""A device is killed at random moments while it syncs through a proxy that does harm: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos import ChaosProxy
from fleet import device_config, enrol, make_keys, sphere
from tinylcm.config import DeviceConfig
from zygote import Zygote, stored

FULL = bool(os.environ.get("TINYMLOPS_TORTURE"))
KILLS = 1000 if FULL else 60
RESENDS_MIN = 50 if FULL else 5
WAIT_S = 60.0


@contextmanager
def zygote(config: Path, log: Path) -> Iterator[Zygote]:
    opened = Zygote(config, log)
    try:
        yield opened
    finally:
        opened.close()


def write_toml(config: DeviceConfig, path: Path) -> None:
    server = config.server
    path.write_text(
        f'[device]\nname = "victim"\ndata = "{config.data}"\n[server]\nsync_interval_s = 0.05\n'
        f"timeout_s = 1.0\nbackoff_min_s = {server.backoff_min_s}\nbackoff_max_s = {server.backoff_max_s}\n"
        "[journal]\ncommit_interval_s = 0.02\n"
    )


def test_no_kill_loses_or_doubles_a_record(tmp_path: Path, report: Callable[..., None]) -> None:
    keys, rng = make_keys(tmp_path / "keys"), random.Random(5)
    with sphere(tmp_path) as server, ChaosProxy(server.port, seed=6) as proxy:
        proxy.calm = True
        join = server.join(keys / "root.pub").replace(f":{server.port}", f":{proxy.port}")
        config = device_config(tmp_path / "device")
        enrol(config, join)
        write_toml(config, tmp_path / "device.toml")
        proxy.calm = False
        with zygote(tmp_path / "device.toml", tmp_path / "victims.log") as victim:
            for number in range(KILLS):
                pid = victim.ask(f"run {number}")
                if rng.random() < 0.8:
                    victim.wait_for("ready")
                    time.sleep(rng.uniform(0.0, 0.4))
                else:  # in the middle of opening
                    time.sleep(rng.uniform(0.0, 0.05))
                os.kill(pid, signal.SIGKILL)
                assert int(victim.wait_for("gone")[1]) == signal.SIGKILL, (tmp_path / "victims.log").read_text()
            proxy.calm = True
            victim.ask("drain")
            assert victim.wait_for("gone", 300)[1] == "0", (tmp_path / "victims.log").read_text()
        found = stored(server.data / "tinysphere.db")
        assert not proxy.errors
    requests, records = proxy.sent_again()
    lost, doubled = victim.acked - set(found), [key for key, count in found.items() if count > 1]
    report(
        "kill -9 of a device that syncs through a proxy that does harm",
        kills=KILLS,
        durable_records=len(victim.acked),
        lost=len(lost),
        doubled_in_the_database=len(doubled),
        answers_cut=proxy.answers_cut,
        connections_doubled=proxy.fates["duplicate"],
        syncs_sent_again=requests,
        records_in_them=records,
    )
    assert len(victim.acked) > 10 * KILLS
    assert lost == set()
    assert doubled == []
    assert requests >= RESENDS_MIN, proxy.fates
