"""Writes learning rates of transformers' schedules, one list a schedule.
usage: make_schedules.py (needs torch, transformers, llamafactory 0.9.5)"""
import json, os, types
import torch
from llamafactory.train.trainer_utils import create_custom_scheduler
from transformers.optimization import get_scheduler

LR, TOTAL, WARMUP = 2.0, 20, 4
cases = {
    "linear": ("linear", {}),
    "cosine": ("cosine", {}),
    "cosine_with_restarts": ("cosine_with_restarts", {"num_cycles": 2}),
    "polynomial": ("polynomial", {"power": 2.0, "lr_end": 0.1}),
    "constant": ("constant", {}),
    "constant_with_warmup": ("constant_with_warmup", {}),
    "inverse_sqrt": ("inverse_sqrt", {}),
    "cosine_with_min_lr": ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    "cosine_warmup_with_min_lr": ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    "cosine_warmup_from_a_rate": ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2}),
    "warmup_stable_decay_of_llamafactory": ("warmup_stable_decay", None),
    "warmup_stable_decay": ("warmup_stable_decay", {"num_decay_steps": 6, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"}),
}
out = {}
for name, (kind, kwargs) in cases.items():
    if kwargs is None:  # what LLaMA-Factory fills in
        arguments = types.SimpleNamespace(lr_scheduler_type=kind, lr_scheduler_kwargs=None, get_warmup_steps=lambda total: WARMUP)
        create_custom_scheduler(arguments, TOTAL)
        kwargs = arguments.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=WARMUP, num_training_steps=TOTAL, scheduler_specific_kwargs=kwargs)
    rates = []
    for _ in range(TOTAL):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    out[name] = rates
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "schedules.json"), "w") as f:
    json.dump(out, f)
    f.write("\n")
