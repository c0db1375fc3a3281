"""What is written down from the declaration of settings: `python tests/lab/declared.py` writes it anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config.json"
PAGE = ROOT / "docs/operations.md"
_BEGIN, _END = "<!-- settings, written by tests/lab/declared.py -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """Every setting, as docs/operations.md lists it."""
    from brokervol.settings import ALL

    rows = ["| variable | option | read by | default | accepted | meaning |", "|---|---|---|---|---|---|"]
    for setting in ALL:
        default = f"`{setting.default}`" if setting.default else setting.otherwise
        in_plugin = f", in the plugin `{setting.in_plugin}`" if setting.in_plugin else ""
        fixed = "" if setting.is_settable and setting.is_of_plugin else "; not set in the plugin"
        cells = (
            f"`{setting.variable}`",
            "" if setting.is_of_sdk else f"`{setting.option}`",
            ", ".join(setting.readers),
            default + in_plugin,
            setting.kind.accepted,
            setting.meaning + fixed,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def page(written: str) -> str:
    """docs/operations.md with the table as it should be."""
    before, _, rest = written.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table()}{_END}{after}"


def config(written: str) -> str:
    """config.json with the settings as they should be."""
    from brokervol.settings import plugin_environment

    document = {**json.loads(written), "env": [*plugin_environment()]}
    return json.dumps(document, indent=2) + "\n"


def main() -> int:
    CONFIG.write_text(config(CONFIG.read_text()))
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "daemon"))
    sys.exit(main())
