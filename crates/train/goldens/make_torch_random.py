"""Writes normal numbers and seeds of torch's CPU generator. usage: make_torch_random.py (needs torch, apollo-torch)"""
import json, os
import torch
from apollo_torch.random_projector import next_seed, stable_randn

seeds, seed = [], 3
for _ in range(4):
    seeds.append([seed, next_seed(seed)])
    seed = seeds[-1][1]
normal = [dict(seed=s, values=stable_randn((n,), s).tolist()) for s, n in [(1, 5), (2, 16), (3, 37), (seed, 64)]]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_random.json"), "w") as f:
    json.dump(dict(seeds=seeds, normal=normal), f)
    f.write("\n")
