"""What every command of ours shares: its option parser and one clear line for bad input."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import yaml

if TYPE_CHECKING:
    from configargparse import ArgumentParser


class InputError(Exception):
    """Bad input from the user. The message is one line: file, utterance or option, and the remedy."""


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        InputError: no such file, broken YAML, or something else than a mapping.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: 'key: value' lines are expected")
    return content


def get_parser(prog: str, description: str) -> "ArgumentParser":
    """A parser whose options may also stand in a YAML file given with ``--config``."""
    import configargparse  # late: the search and its benchmark run where it is not installed

    class Parser(configargparse.ArgumentParser):
        """One line instead of a page of usage; a misspelt option is named before the one that is missing for it."""

        def parse_args(self, args: Sequence[str] | None = None, *others, **options):
            self.words = sys.argv[1:] if args is None else args
            return super().parse_args(args, *others, **options)

        def error(self, message: str) -> NoReturn:
            given = [word.split("=")[0] for word in getattr(self, "words", ()) if word.startswith("--")]
            unknown = [word for word in given if word not in self._option_string_actions]
            message = f"unknown option {unknown[0]}" if "required" in message and unknown else message
            raise InputError(f"{message} (--help lists the options)")

    parser = Parser(
        prog=prog,
        description=description,
        config_file_parser_class=configargparse.YAMLConfigFileParser,
        formatter_class=configargparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        add_config_file_help=False,
    )
    parser.add_argument("--config", is_config_file=True, help="YAML file with options of this command")
    return parser


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main``; an InputError becomes one line on stderr and exit status 1."""
    try:
        return main(argv) or 0
    except InputError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def script() -> None:
    """Entry point of every console script: runs the module of ``espnet_llmst.bin`` that bears its name."""
    module = importlib.import_module(f"espnet_llmst.bin.{Path(sys.argv[0]).stem}")
    sys.exit(run(module.main))
