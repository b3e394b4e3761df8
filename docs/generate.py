"""Write the parts of the docs that the program itself says: commands, error codes, the README's example.

python docs/generate.py            write them
python docs/generate.py --check    exit 1 if one is stale
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

from PIL import Image

import dla
from dla.cli import COMMANDS, main
from dla.errors import ERROR_CODES
from dla.inference.classifier import draw_prediction
from dla.inference.result_files import PredictionWriter
from dla.serving.answers import ERRORS

SUBCOMMANDS = {"data": ("check",), "bulk": ("plan", "predict", "features", "segment", "edges", "collect")}
DOCS = Path(__file__).parent
COFFEE = "src/dla/shipped/photos/coffee.jpg"  # from the root of the repository

VARIABLES = """\
`dla predict`, `dla explain`, `dla segment`, `dla edges`, `dla features`, `dla serve` and `dla train` also take their
options from variables: `DLA_TOPK=3` is `--topk 3`. The command line goes before a file of options, and that before the
variables. No other command has variables, except that `dla info`, `dla draw`, `dla bench` and `dla validate` without a
name are about the network that `DLA_MODEL` names.
"""


def commands() -> str:
    """docs/commands.md: every --help."""
    os.environ["COLUMNS"] = "100"  # the width of help, whatever terminal this runs in
    pages = [f"# Commands\n\nMade from `--help` by `python docs/generate.py`.\n\n{VARIABLES}"]
    for words in ([], *(w for name in COMMANDS for w in ([name], *([name, sub] for sub in SUBCOMMANDS.get(name, ()))))):
        page = io.StringIO()
        with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
            main([*words, "--help"])
        pages.append(f"## {' '.join(['dla', *words])}\n\n```\n{page.getvalue().rstrip()}\n```\n")
    return "\n".join(pages)


def filled(text: str, mark: str, content: str) -> str:
    """`text` with `content` between the lines <!-- mark --> and <!-- /mark -->."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    new, count = re.subn(pattern, lambda m: m[1] + content + m[2], text, flags=re.DOTALL)
    assert count == 1, f"{mark} is marked {count} times"
    return new


def example() -> tuple[str, Image.Image]:
    """What `dla predict` prints of the photo, and its picture."""
    path = DOCS.parent / COFFEE
    prediction = dla.load().predict(path)
    table = io.StringIO()
    with PredictionWriter(table, "table", 5) as writer:
        writer.write(prediction)
    return f"```\n{COFFEE}\n{table.getvalue().split(chr(10), 1)[1]}```\n", draw_prediction(Image.open(path), prediction)


def run(check: bool) -> int:
    lines, picture = example()
    head = "\n| code | what it means |\n| --- | --- |\n"
    codes = head + "".join(f"| `{code}` | {meaning} |\n" for code, meaning in ERROR_CODES.items()) + "\n"
    rows = "".join(f"| {status} | `{code}` | {when} |\n" for code, (status, when) in ERRORS.items())
    refusals = f"\n| status | code | when |\n| --- | --- | --- |\n{rows}\n"
    readme, errors, serve = DOCS.parent / "README.md", DOCS / "errors.md", DOCS / "serve.md"
    wanted = {
        DOCS / "commands.md": commands(),
        errors: filled(errors.read_text(), "codes", codes),
        serve: filled(serve.read_text(), "errors", refusals),
        readme: filled(readme.read_text(), "coffee", lines),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if check:
        for path in stale:
            print(f"{path.name} is stale: run python docs/generate.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    (DOCS / "pictures").mkdir(exist_ok=True)
    picture.save(DOCS / "pictures" / "coffee.png", optimize=True)
    dla.draw("dla34", DOCS / "pictures" / "dla34.svg")
    return 0


if __name__ == "__main__":
    sys.exit(run("--check" in sys.argv[1:]))
