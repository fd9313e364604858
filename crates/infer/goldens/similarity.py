"""Writes similarity.json: figures of BLEU-4 and ROUGE for pairs of texts.

    pip install jieba==0.42.1 nltk rouge-chinese==1.0.3
    python similarity.py                      # writes similarity.json
    python similarity.py PREDICTIONS.jsonl    # prints the means over `generated_predictions.jsonl`

The rules are those of LLaMA-Factory 0.9.5 (`train/sft/metric.py`): words by jieba, characters for BLEU, each row rounded to four
decimals.
"""

import json
import logging
import pathlib
import sys

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

jieba.setLogLevel(logging.ERROR)

PAIRS = [
    ("今天天气很好，我们去公园散步吧。", "今天天气不错，我们一起去公园散步。"),
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("Paris", "The capital of France is Paris."),
    ("completely different", "今天天气"),
    ("", "an expected answer"),
    ("an answer", ""),
    (" \n ", "text"),
    ("a", "a"),
    ("ab", "abc"),
    ("1. First\n2. Second\n\n3. Third", "1. First\n\n2. Second\n3. Third point"),
    ("Use text.split('_') on Wi-Fi 10.5% of 192.168.0.1", "Use split() with Wi-Fi for 10.5 of 192.168.0.2, C++ and AT&T"),
    ("“你好！”他说。“再见？”\n\n她走了……真的吗？是的......好", "“你好！”他说。她走了……真的。\n\n是的......不好"),
    ("the the the the the the the", "the cat is on the mat"),
    ("def f(x):\n    return x * 2\n", "def g(y):\n    return 2 * y\n"),
    ("深度学习是机器学习的一个分支，它使用多层神经网络。", "机器学习包括深度学习；深度学习使用神经网络，层数很多。"),
    ("多国语言 mixed with English 和数字 3.14 以及 emoji 🙂", "mixed 语言 with 数字 3.14 and emoji 🙂🙂"),
    ("\u3000全角空格\u3000与\x1c分隔", "全角空格 与 分隔"),
    ("？。？！end", "？。end"),
]


def scores(predict, label):
    hypothesis, reference = list(jieba.cut(predict)), list(jieba.cut(label))
    if not " ".join(hypothesis).split() or not " ".join(reference).split():
        rouge = {key: {"f": 0.0} for key in ("rouge-1", "rouge-2", "rouge-l")}
    else:
        rouge = Rouge().get_scores(" ".join(hypothesis), " ".join(reference))[0]
    bleu = sentence_bleu([list(label)], list(predict), smoothing_function=SmoothingFunction().method3)
    return {**{key: round(value["f"] * 100, 4) for key, value in rouge.items()}, "bleu-4": round(bleu * 100, 4)}


def main():
    if len(sys.argv) > 1:
        lines = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
        # LLaMA-Factory counts rows without an expected answer as 0.
        rows = [row for row in map(json.loads, lines) if row["label"].strip()]
        rows = [scores(row["predict"], row["label"]) for row in rows]
        print({key: sum(row[key] for row in rows) / len(rows) for key in rows[0]})
        return
    rows = [{"predict": p, "label": q, **scores(p, q)} for p, q in PAIRS]
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    pathlib.Path(__file__).with_name("similarity.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


main()
