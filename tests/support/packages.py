"""Which installed packages a command loads: the part of its start that the library answers for."""

from __future__ import annotations

import subprocess
import sys

# `import dla`, and what reads a command line; torch, NumPy, Pillow and the rest come when there is work for them.
PARSER = {"docstring_parser", "jsonargparse", "lazy_loader", "typing_extensions", "yaml"}

CODE = """
import atexit, sys
began = set(sys.modules)
def tell():
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    found = {name.split(".")[0] for name in set(files) - began if "site-packages" in files[name]}
    sys.stderr.write("\\nloaded " + " ".join(found - {"dla"} | ALSO & set(files)))
atexit.register(tell)
from dla.cli import main
sys.exit(main(WORDS))
"""


def packages_of(words: list[str], *modules: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run `dla WORDS`; what it answered, and the packages that it loaded, with those of the modules that it loaded."""
    code = f"WORDS, ALSO = {words!r}, {set(modules)!r}\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    done.stderr, _, loaded = done.stderr.rpartition("\nloaded ")
    return done, set(loaded.split())
