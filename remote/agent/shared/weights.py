"""Pretrained weights of torchvision and timm: their caches, and where they are downloaded from.
Imports on every system."""

import glob
import os
from typing import Optional

HUBS = {"torchvision": "https://download.pytorch.org", "timm": "https://huggingface.co"}
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def hub_of(network: str) -> str:
    place = network.partition(":")[0]
    return os.environ.get("HF_ENDPOINT") or HUBS[place] if place == "timm" else HUBS[place]


def find_weights(network: str) -> Optional[str]:
    """The newest file in the library's cache for a network such as torchvision:resnet50."""
    place, _, name = network.partition(":")
    name = glob.escape(name)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if place == "torchvision":
        home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
        patterns = [os.path.join(home, "hub", "checkpoints", name + "[-_]*.pth")]
    else:
        home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
        hub = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
        patterns = [
            os.path.join(hub, "models--timm--" + name + tag, "snapshots", "*", file)
            for tag in ("", ".*")
            for file in ("model.safetensors", "pytorch_model.bin")
        ]
    found = [path for pattern in patterns for path in glob.glob(pattern)]
    return max(found, key=os.path.getmtime) if found else None
