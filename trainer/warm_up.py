"""Compilation before the training clock starts: torch.compile works at the first use of each form
of input."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.model import Classifier, first_parts, is_out_of_memory, resized
from trainer.processes import say


def compile_network(model: Classifier) -> None:
    """Compile the network and use it once in every form that the training will give it; weights and
    statistics stay as they are.

    `compile auto` does so on GPUs, and goes on without where it fails: compilation needs a C
    compiler, which many images lack.
    """
    if not is_wanted(model.config, model.device):
        return
    model.network.compile()
    try:
        use_once(model)
    except (
        Exception
    ) as error:  # what a compiler's front end, its back end and the driver raise has no common kind
        if is_out_of_memory(error):
            return  # the training meets it again, and halves its parts
        if model.config.compile == "true":
            raise
        model.network._compiled_call_impl = None
        say(
            "torch.compile does not work here, going on without it:"
            f" {' '.join(str(error).split())[:200]}"
        )
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def is_wanted(config: TrainConfig, device: torch.device) -> bool:
    return config.compile == "true" or (config.compile == "auto" and device.type == "cuda")


def use_once(model: Classifier) -> None:
    config, images = model.config, model.data_module.train_images
    share = min(len(images), model.data_module.share)
    size = -(-share // first_parts(config, share, model.device))
    buffers = [(buffer, buffer.clone()) for buffer in model.network.buffers()]
    trained = [p for p in model.network.parameters() if p.requires_grad]
    model.network.train()
    for pixels, mixed in itertools.product(dict.fromkeys(config.resolutions), mixup_forms(config)):
        batch = images.batch(torch.arange(size)).to(model.device)
        batch = resized(
            (batch.float() if mixed else batch).contiguous(memory_format=torch.channels_last),
            pixels,
        )
        with model.trainer.precision_plugin.train_step_context():
            loss: Tensor = model.network(batch).float().sum()
        # Not backward(): it would leave gradients, and several processes would exchange them.
        torch.autograd.grad(loss, trained)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def mixup_forms(config: TrainConfig) -> list[bool]:
    """Mixed images are float, others uint8."""
    return [
        mixed
        for mixed, seen in ((False, config.mixup_prob < 1), (True, config.mixup_prob > 0))
        if seen
    ]
