"""The README's example runs as it stands, on each broker."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
URL = "amqp://guest:guest@127.0.0.1:5672/"


def test_the_readme_runs(place, tmp_path):
    (program,) = re.findall(r"^```py\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert program.count(URL) == program.count('prefix="shop"') == 1
    place.endpoint("OrderSaga")
    program = program.replace(URL, place.url).replace('prefix="shop"', f'prefix="{place.prefix}"')
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
