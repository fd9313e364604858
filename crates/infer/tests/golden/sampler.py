"""Writes sampler.json: what transformers' logits processors make of the same logits.

Run with transformers installed: python sampler.py > sampler.json
Each case: the logits, the ids that were there before, the options, and the probabilities that are left.
"""

import json
import random

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def processors(options):
    """The order of GenerationMixin._get_logits_processor."""
    chain = LogitsProcessorList()
    if options["repetition_penalty"] != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options["temperature"] != 1.0:
        chain.append(TemperatureLogitsWarper(options["temperature"]))
    if options["top_k"] != 0:
        chain.append(TopKLogitsWarper(options["top_k"], min_tokens_to_keep=1))
    if options["top_p"] < 1.0:
        chain.append(TopPLogitsWarper(options["top_p"], min_tokens_to_keep=1))
    return chain


def main():
    rng = random.Random(7)
    spread = [round(rng.gauss(0.0, 3.0), 3) for _ in range(40)]
    tied = [2.0, 1.0, 2.0, 0.5, 1.0, 2.0, -1.0, 1.0, 0.5, -3.0]
    settings = [
        (1.0, 0, 1.0, 1.0),
        (0.95, 50, 0.7, 1.0),
        (0.5, 0, 0.9, 1.0),
        (1.7, 5, 1.0, 1.0),
        (1.0, 0, 0.01, 1.0),
        (1.0, 3, 0.999, 1.0),
        (0.8, 10, 0.8, 1.3),
        (1.0, 0, 1.0, 0.7),
        (2.5, 2, 0.55, 1.1),
    ]
    cases = []
    for logits in (spread, tied):
        for temperature, top_k, top_p, penalty in settings:
            options = dict(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
            seen = [0, 3, 3, 9, 1]
            scores = torch.tensor([logits], dtype=torch.float32)
            scores = processors(options)(torch.tensor([seen]), scores)
            cases.append(dict(logits=logits, seen=seen, **options, probabilities=scores.softmax(-1)[0].tolist()))
    lines = ",\n".join(json.dumps(case) for case in cases)
    print(f"[\n{lines}\n]")


main()
