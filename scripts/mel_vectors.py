"""Write tests/data/mel_librosa.npz: what librosa computes, for the tests of log_mel and mfcc.

Run once, in a place of its own, since librosa is no dependency of ours:

    python3 -m venv /tmp/mel-venv && /tmp/mel-venv/bin/pip install librosa
    /tmp/mel-venv/bin/python scripts/mel_vectors.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import librosa  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

TARGET = Path(__file__).parent.parent / "tests" / "data" / "mel_librosa.npz"
RATE_HZ = 16000
STEPS: list[dict[str, Any]] = [
    {"op": "log_mel", "frame": 512, "hop": 256, "mels": 40},
    {"op": "log_mel", "frame": 512, "hop": 160, "mels": 32, "log": "db", "top_db": 60.0},
    {"op": "log_mel", "frame": 640, "hop": 320, "fft": 1024, "mels": 40, "low_hz": 20.0, "high_hz": 4000.0},
    {"op": "log_mel", "frame": 400, "hop": 160, "fft": 400, "mels": 24, "mel": "htk", "norm": "none", "log": "none"},
    {"op": "log_mel", "frame": 256, "hop": 256, "mels": 20, "power": 1.0, "log": "none"},
    {"op": "mfcc", "frame": 512, "hop": 256, "mels": 40, "coefficients": 13},
    {"op": "mfcc", "frame": 400, "hop": 160, "fft": 512, "mels": 40, "coefficients": 20, "lifter": 22.0, "mel": "htk"},
]


def signal() -> NDArray[np.float32]:
    """A rising tone, noise, and silence at the end: 0.25 s."""
    time_s = np.arange(RATE_HZ // 4) / RATE_HZ
    noise = np.random.default_rng(7).normal(0, 0.01, time_s.size)
    tone = 0.4 * np.sin(2 * np.pi * (200 * time_s + 10000 * time_s**2)) + noise
    tone[-700:] = 0
    return tone.astype(np.float32)


def librosa_says(values: NDArray[np.float32], step: dict[str, Any]) -> Any:
    """`[frames, mels or coefficients]`; ours has as many frames as fit, librosa as many transforms."""
    frame, fft = step["frame"], step.get("fft", step["frame"])
    before = (fft - frame) // 2  # librosa puts a short window into the middle of its transform
    energies = librosa.feature.melspectrogram(
        y=np.pad(values.astype(np.float64), (before, fft - frame - before)),
        sr=RATE_HZ,
        n_fft=fft,
        win_length=frame,
        hop_length=step["hop"],
        n_mels=step["mels"],
        fmin=step.get("low_hz", 0.0),
        fmax=step.get("high_hz"),
        htk=step.get("mel") == "htk",
        norm=None if step.get("norm") == "none" else "slaney",
        power=step.get("power", 2.0),
        center=False,
    )
    if step["op"] == "mfcc":
        decibels = librosa.power_to_db(energies)
        return librosa.feature.mfcc(S=decibels, n_mfcc=step["coefficients"], lifter=step.get("lifter", 0)).T
    if step.get("log") == "none":
        return energies.T
    if step.get("log") == "db":
        return librosa.power_to_db(energies, top_db=step["top_db"]).T
    return np.log(np.maximum(energies, 1e-10)).T


def main() -> None:
    """Write the file."""
    values = signal()
    arrays: dict[str, Any] = {f"case{i}": librosa_says(values, step).astype(np.float32) for i, step in enumerate(STEPS)}
    about = json.dumps({"librosa": librosa.__version__, "rate_hz": RATE_HZ, "steps": STEPS})
    np.savez_compressed(TARGET, signal=values, about=np.array(about), **arrays)


if __name__ == "__main__":
    main()
