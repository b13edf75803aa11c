"""Every command of the README is known to work: run here, or its options and targets checked."""

import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (REPO / "README.md").read_text(), re.S)
    for line in block.splitlines()
]


def shell(command, cwd):
    return subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command):
    """`make` targets exist and do what they say; `./run.sh` knows the options; the rest runs in test_recipe.py."""
    recipe = REPO / "egs2/mini_st/llmst1"
    if command.startswith("make "):
        done = shell(f"make -n {command.split()[1]}", REPO)
        assert done.returncode == 0
        assert {"make demo": "./run.sh --stage 1 --stop_stage 8", "make test": "-m pytest"}[command] in done.stdout
    elif command.startswith("./run.sh"):
        done = shell(f"{command} --help", recipe)
        assert done.returncode == 0 and "--stop_stage (8)" in done.stdout, done.stderr
    elif command.startswith("cd "):
        assert (REPO / command.split()[1]).is_dir()
    elif command.startswith("llmst_summary "):
        done = shell(f". ./path.sh; {command}", recipe)
        shown = re.search(r"```\n(\S+llast_8b.*?)```", (REPO / "README.md").read_text(), re.S)[1]
        assert done.returncode == 0 and done.stdout == shown, done.stderr
    elif command.startswith(("llmst_compare ", "llmst_report ", "llmst_plan ")):
        methods = re.findall(r"exp/(\w+)", command)
        assert methods and all((recipe / "conf" / method).is_dir() for method in methods)
        options = " ".join(re.findall(r"--\w+", command))
        shown = shell(f". ./path.sh; {command.split()[0]} --help", recipe).stdout
        assert all(option in shown for option in options.split())
    else:
        assert command in (". ./path.sh",) or command.startswith("llmst_example ")


def test_every_path_in_the_tree_exists():
    (tree,) = re.findall(r"```\n(espnet_llmst/ .*?)```", (REPO / "README.md").read_text(), re.S)
    parent = Path()
    for line in tree.splitlines():
        names = re.match(r" *([^ ,]+(?:, [^ ,]+)*)", line)[1].split(", ")
        if not line.startswith(" "):
            parent = Path(names[0])
        for name in names:
            path = REPO / (name if not line.startswith(" ") else parent / name)
            assert path.exists(), path
