"""Makes tokenizer files without tokenizer.json, and the ids that their own libraries give for some texts.

pip install sentencepiece tiktoken; python make_tokenizer_files.py

Writes data/unigram.model, data/bpe.model, data/spaces.model (SentencePiece), data/bytes.tiktoken and tokenizer_files.json.
"""

import base64
import json
from pathlib import Path

import sentencepiece as spm
import tiktoken

DATA = Path(__file__).parent / "data"
WORDS = "the cat sat on a mat and the dog ran to the red house where two birds sing all day long in summer rain".split()
LINES = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] + ["Äpfel, Birnen: 1 2 3 456!", "don't  stop; we're here\tnow", "ﬁne № 5 ＡＢＣ"]
TEXTS = ["the cat sat", " two  birds ", "Äpfel und 12345 Birnen!", "don't\n\n stop", "ﬁne ＡＢＣ № 7", "日本 🙂 x", "", "a", "house   house", "we're the\tdogs"]
# White space that is not a space stays where it is.
WHITE = ["a\n", "\n\nthe", "  \tcat ", "\u3000dog \u3000 ", " \n ", "   "]

corpus = Path("corpus.txt")
corpus.write_text("\n".join(LINES * 20))
rules = Path("rules.tsv")
rules.write_text("FB01\t66 69\n2116\t4E 6F\nFF21\t41\nFF22\t42\nFF23\t43\n")
common = {"input": str(corpus), "character_coverage": 1.0, "user_defined_symbols": ["<mark>"], "hard_vocab_limit": False}
spm.SentencePieceTrainer.train(model_prefix="unigram", model_type="unigram", vocab_size=120, normalization_rule_tsv=str(rules), **common)
spm.SentencePieceTrainer.train(
    model_prefix="bpe", model_type="bpe", vocab_size=420, byte_fallback=True, normalization_rule_name="identity",
    remove_extra_whitespaces=False, **common,
)
spm.SentencePieceTrainer.train(
    model_prefix="spaces", model_type="bpe", vocab_size=420, byte_fallback=True, normalization_rule_name="identity", **common
)
cases = {}
for name in ("unigram", "bpe", "spaces"):
    Path(name + ".model").rename(DATA / (name + ".model"))
    model = spm.SentencePieceProcessor(model_file=str(DATA / (name + ".model")))
    cases[name + ".model"] = [[text, model.encode(text)] for text in TEXTS + (WHITE if name == "spaces" else [])]

pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ranks = {bytes([b]): b for b in range(256)}
for word in ("th", "the", " t", " the", "at", "cat", " c", " cat", "in", "ing", "si", "sing", "12", "123", "\n\n", "dog", "do", "og", " d", " dog", "ä".encode().decode()):
    ranks.setdefault(word.encode(), len(ranks))
with open(DATA / "bytes.tiktoken", "wb") as file:
    for token, rank in ranks.items():
        file.write(base64.b64encode(token) + b" %d\n" % rank)
encoding = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
cases["bytes.tiktoken"] = [[text, encoding.encode(text, disallowed_special=())] for text in TEXTS]
out = json.dumps(cases, ensure_ascii=False)
(Path(__file__).parent / "tokenizer_files.json").write_text(out.replace("]], \"", "]],\n\"") + "\n")
for path in (corpus, rules, Path("unigram.vocab"), Path("bpe.vocab"), Path("spaces.vocab")):
    path.unlink(missing_ok=True)
