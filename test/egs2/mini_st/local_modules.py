"""Import of a recipe's local/ modules, which belong to no package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

LOCAL = Path(__file__).resolve().parents[3] / "egs2" / "mini_st" / "llmst1" / "local"


def load(name: str) -> ModuleType:
    """The module ``local/<name>.py`` of mini_st."""
    if str(LOCAL) not in sys.path:
        sys.path.insert(0, str(LOCAL))
    return importlib.import_module(name)
