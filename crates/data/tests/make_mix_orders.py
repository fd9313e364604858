"""Prints the orders in which Hugging Face's `datasets` (5.2) mixes data sets of 3, 4 and 7 rows, in memory and streamed.

pip install datasets; python make_mix_orders.py > mix_orders.json
"""

import json

from datasets import Dataset, interleave_datasets

LENGTHS = [3, 4, 7]
SETS = [Dataset.from_list([{"at": [s, r]} for r in range(n)]) for s, n in enumerate(LENGTHS)]
STRATEGIES = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}

cases = []
for name, strategy in STRATEGIES.items():
    for probs in (None, [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]):
        for seed in (42, 7):
            options = {"probabilities": probs, "seed": seed, "stopping_strategy": strategy}
            for streaming in (False, True):
                sets = [s.to_iterable_dataset() for s in SETS] if streaming else SETS
                rows = interleave_datasets(sets, **options)
                order = [row["at"] for row in rows]
                cases.append({"mix_strategy": name, "interleave_probs": probs, "seed": seed, "streaming": streaming, "order": order})
shuffles = []
for length, size in ((20, 5), (10, 16), (3000, 1000)):
    rows = Dataset.from_list([{"at": i} for i in range(length)]).to_iterable_dataset()
    order = [row["at"] for row in rows.shuffle(seed=42, buffer_size=size)]
    shuffles.append({"rows": length, "buffer_size": size, "seed": 42, "order": order[:40]})
passes = []
for name, strategy in STRATEGIES.items():
    probs = [0.5, 0.3, 0.2]
    sets = [s.to_iterable_dataset() for s in SETS]
    rows = interleave_datasets(sets, probabilities=probs, seed=42, stopping_strategy=strategy).shuffle(seed=42, buffer_size=4)
    orders = []
    for epoch in range(3):
        rows.set_epoch(epoch)
        orders.append([row["at"] for row in rows])
    passes.append({"mix_strategy": name, "interleave_probs": probs, "seed": 42, "buffer_size": 4, "orders": orders})
print("{\"lengths\": %s, \"mixes\": [" % json.dumps(LENGTHS))
print(",\n".join(json.dumps(case) for case in cases))
print("], \"shuffles\": [")
print(",\n".join(json.dumps(case) for case in shuffles))
print("], \"passes\": [")
print(",\n".join(json.dumps(case) for case in passes))
print("]}")
