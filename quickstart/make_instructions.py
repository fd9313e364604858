"""Writes the quick start's instruction set: data/train.json and data/heldout.json, alpaca format.

usage: make_instructions.py OUT_DIR      the same bytes every time; Python standard library only

A held-out row asks a skill that the training rows teach about something they never ask: another country's capital, another pair of
numbers. No held-out question, in none of its wordings, is in train.json.
"""
import json
import os
import sys

from world import ANIMALS, COUNTRIES, DAYS, MONTHS, OPPOSITES, THINGS, Dice, article, upper_first

SEED = 2026


def country_facts():
    for name, (capital, continent, currency, language) in COUNTRIES.items():
        yield [f"What is the capital of {name}?", f"Name the capital of {name}.", f"Which city is the capital of {name}?"], f"The capital of {name} is {capital}."
        yield [f"What is the continent of {name}?", f"Name the continent of {name}."], f"The continent of {name} is {continent}."
        yield [f"What is the currency of {name}?", f"Name the currency of {name}."], f"The currency of {name} is the {currency}."
        yield [f"What is the language of {name}?", f"Name the language of {name}."], f"The language of {name} is {language}."


def animal_facts():
    for name, (sound, home, legs, baby) in ANIMALS.items():
        a = article(name)
        yield [f"What sound does {a} make?", f"How does {a} sound?"], f"{upper_first(a)} {sound}."
        yield [f"Where does {a} live?", f"Tell me where {a} lives."], f"{upper_first(a)} lives {home}."
        yield [f"How many legs does {a} have?", f"Count the legs of {a}."], f"{upper_first(a)} has {legs} legs."
        yield [f"What is a baby {name} called?", f"Name the baby of {a}."], f"A baby {name} is called {article(baby)}."


def opposites():
    for pair in OPPOSITES:
        for a, b in (pair, pair[::-1]):
            yield [f"What is the opposite of {a}?", f"Name the opposite of {a}."], f"The opposite of {a} is {b}."


def calendar():
    for names, what in ((DAYS, "day"), (MONTHS, "month")):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            yield [f"Which {what} comes after {name}?", f"Name the {what} after {name}."], f"The {what} after {name} is {after}."
            yield [f"Which {what} comes before {name}?", f"Name the {what} before {name}."], f"The {what} before {name} is {before}."


def comparisons(dice, n):
    for a, b in distinct(lambda: tuple(10 + dice.below(90) for _ in range(2)), n, lambda pair: pair[0] != pair[1]):
        if dice.below(2):
            yield [f"Which number is larger, {a} or {b}?"], f"Of {a} and {b}, the larger number is {max(a, b)}."
        else:
            yield [f"Which number is smaller, {a} or {b}?"], f"Of {a} and {b}, the smaller number is {min(a, b)}."


def sums():
    for a in range(1, 10):
        for b in range(1, 10):
            yield [f"What is {a} plus {b}?", f"What is the sum of {a} and {b}?"], f"The sum of {a} and {b} is {a + b}."


def reversals(dice, n):
    for words in distinct(lambda: tuple(dice.sample(THINGS, 2 + dice.below(2))), n, lambda words: True):
        forward, backward = ", ".join(words), ", ".join(reversed(words))
        # the second column of alpaca rows: what the instruction is about
        yield [("Put the list in reverse order.", f"List: {forward}")], f"The list {forward} in reverse order is {backward}."


def spellings():
    for word in THINGS:
        yield [f"Spell the word {word}.", f"How is the word {word} spelled?"], f"The word {word} is spelled {'-'.join(word)}."


def distinct(draw, n, keep):
    found = []
    while len(found) < n:
        item = draw()
        if keep(item) and item not in found:
            found.append(item)
    return found


def row(question, answer):
    instruction, about = question if isinstance(question, tuple) else (question, "")
    return {"instruction": instruction, "input": about, "output": answer}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    dice = Dice(SEED)
    # skill, how many of its questions are held out
    skills = [
        (list(country_facts()), 20), (list(animal_facts()), 8), (list(opposites()), 10), (list(calendar()), 4),
        (list(comparisons(dice, 400)), 12), (list(sums()), 8), (list(reversals(dice, 400)), 12), (list(spellings()), 8),
    ]  # fmt: skip
    train, held_out = [], []
    for questions, n in skills:
        questions = dice.shuffled(questions)
        held_out += [row(dice.pick(wordings), answer) for wordings, answer in questions[:n]]
        train += [row(wording, answer) for wordings, answer in questions[n:] for wording in wordings]
    for name, rows in (("train", dice.shuffled(train)), ("heldout", dice.shuffled(held_out))):
        with open(os.path.join(sys.argv[1], f"{name}.json"), "w", encoding="utf-8", newline="\n") as out:
            out.write("[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]\n")
        print(f"{name}.json: {len(rows)} rows")


if __name__ == "__main__":
    main()
