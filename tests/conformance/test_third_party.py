"""The suite over a provider of another package, run as docs/providers/own.md tells its authors to."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
THIRD_PARTY = ROOT / "tests" / "third_party"


def test_another_packages_provider_is_held_to_the_same_promises() -> None:
    surrounding = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    here = {"PYTHONPATH": str(THIRD_PARTY), "CONFORMANCE_SUBJECTS": str(THIRD_PARTY / "conformance")}
    command = [sys.executable, "-m", "pytest", "tests/conformance", "-k", "pigeon", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, env=surrounding | here, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    found = re.search(r"(\d+) passed", run.stdout)
    assert found is not None
    assert int(found[1]) >= 20


def test_the_page_for_authors_has_its_subject_as_it_is() -> None:
    page = (ROOT / "docs" / "providers" / "own.md").read_text()
    assert (THIRD_PARTY / "conformance" / "pigeon.py").read_text() in page
