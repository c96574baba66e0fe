"""Hugging Face's Trainer on a network and data of one's own; checkpoints below out/."""

import os

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments


class Points(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index):
        point = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return {"x": point, "labels": (point[0] > 0).long()}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


arguments = TrainingArguments(
    "out",
    num_train_epochs=2,
    per_device_train_batch_size=16,
    save_strategy="epoch",
    report_to=[],
    use_cpu=True,
)
trainer = Trainer(Net(), arguments, train_dataset=Points())
trainer.train(resume_from_checkpoint=os.environ.get("REMOTE_CHECKPOINT"))
