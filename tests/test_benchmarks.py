"""Benchmarks that build what the scripts build by themselves still run to their tables."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_training_is_timed_to_its_last_part():
    command = [sys.executable, "benchmarks/bench_training.py", "--photos", "100", "--epochs", "1"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    parts = {line.split("  ")[0] for line in done.stdout.splitlines()}
    assert {"axes", "densities", "report", "training, all"} <= parts
