"""Fail when pyproject.toml and the changelog name different versions, or the changelog lacks an Unreleased section."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Compare the version in pyproject.toml with the newest one in CHANGELOG.md; 0 when they agree."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[?([^\]\n]+)\]?", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading.split()[0] for heading in headings if not heading.startswith("Unreleased")]
    if released[:1] != [version]:
        print(
            f"pyproject.toml says {version}, CHANGELOG.md begins with {released[:1] or 'no version'}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
