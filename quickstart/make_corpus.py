"""Writes the quick start's pretraining corpus: plain text, one document of some sentences a line, statements only (no questions).

usage: make_corpus.py OUT.txt [LINES]      the same bytes every time; Python standard library only

The base model learns its facts, its spelling and its arithmetic from these lines; that an instruction is to be answered,
in which words, and when to stop, it learns only in fine-tuning.
"""
import sys

from world import ANIMALS, COUNTRIES, DAYS, MONTHS, OPPOSITES, PEOPLE, THINGS, Dice, article, upper_first

SEED = 20240501
WORDS = [*COUNTRIES, *ANIMALS, *THINGS, *(word for pair in OPPOSITES for word in pair), *DAYS, *MONTHS]
LINES = 16_000


def country(dice):
    name = dice.pick(list(COUNTRIES))
    capital, continent, currency, language = COUNTRIES[name]
    who = dice.pick(PEOPLE)
    facts = [
        dice.pick([f"The capital of {name} is {capital}.", f"{capital} is the capital of {name}.", f"The capital of {name} is {capital}."]),
        dice.pick([f"The continent of {name} is {continent}.", f"{name} is a country in {continent}.", f"The continent of {name} is {continent}."]),
        dice.pick([f"The currency of {name} is the {currency}.", f"In {name}, people pay with the {currency}.", f"The currency of {name} is the {currency}."]),
        dice.pick([f"The language of {name} is {language}.", f"In {name}, people speak {language}.", f"The language of {name} is {language}."]),
        dice.pick([
            f"{who} went to {capital}, the capital of {name}, to learn {language}.",
            f"{who} was in {name} and paid with the {currency}.",
            f"{who} comes from {name} and speaks {language}.",
            f"{who} lives in {capital} in {name}.",
        ]),
    ]  # fmt: skip
    return " ".join(dice.sample(facts, 2 + dice.below(4)))


def animal(dice):
    name = dice.pick(list(ANIMALS))
    sound, home, legs, baby = ANIMALS[name]
    a = upper_first(article(name))
    who = dice.pick(PEOPLE)
    facts = [
        dice.pick([f"{a} {sound}.", f"{a} {sound}.", f"{who} hears the {name}: it {sound}."]),
        dice.pick([f"{a} lives {home}.", f"{a} lives {home}.", f"{who} saw {article(name)} {home}."]),
        dice.pick([f"{a} has {legs} legs.", f"{a} has {legs} legs.", f"The {name} has {legs} legs."]),
        dice.pick([f"A baby {name} is called {article(baby)}.", f"A baby {name} is called {article(baby)}.", f"{upper_first(article(baby))} is a baby {name}."]),
    ]  # fmt: skip
    return " ".join(dice.sample(facts, 2 + dice.below(3)))


def opposite(dice):
    sentences = []
    for _ in range(2 + dice.below(3)):
        a, b = dice.sample(dice.pick(OPPOSITES), 2)
        sentences.append(dice.pick([
            f"The opposite of {a} is {b}.", f"The opposite of {a} is {b}.", f"{upper_first(a)} is not {b}: they are opposites.",
        ]))  # fmt: skip
    return " ".join(sentences)


def calendar(dice):
    sentences = []
    for _ in range(2 + dice.below(3)):
        names, what = (DAYS, "day") if dice.below(2) else (MONTHS, "month")
        i = dice.below(len(names))
        a, b = names[i], names[(i + 1) % len(names)]
        sentences.append(dice.pick([
            f"The {what} after {a} is {b}.", f"The {what} before {b} is {a}.",
            f"The {what} after {a} is {b}.", f"The {what} before {b} is {a}.",
            f"{a} ends and {b} begins.",
        ]))  # fmt: skip
    return " ".join(sentences)


def compare(dice):
    sentences = []
    for _ in range(3 + dice.below(3)):
        a, b = 10 + dice.below(90), 10 + dice.below(90)
        if a == b:
            continue
        low, high = min(a, b), max(a, b)
        sentences.append(dice.pick([
            f"Of {a} and {b}, the larger number is {high}.", f"Of {a} and {b}, the smaller number is {low}.",
            f"Of {a} and {b}, the larger number is {high}.", f"Of {a} and {b}, the smaller number is {low}.",
            f"The number {high} is more than {low}.", f"The number {low} is less than {high}.",
        ]))  # fmt: skip
    return " ".join(sentences)


def add(dice):
    sentences = []
    for _ in range(3 + dice.below(3)):
        a, b = 1 + dice.below(9), 1 + dice.below(9)
        sentences.append(dice.pick([f"The sum of {a} and {b} is {a + b}.", f"The sum of {a} and {b} is {a + b}.", f"The number {a + b} is {a} plus {b}."]))
    return " ".join(sentences)


def turn_round(dice):
    words = dice.sample(THINGS, 2 + dice.below(2))
    forward, backward = ", ".join(words), ", ".join(reversed(words))
    return dice.pick([
        f"The list {forward} in reverse order is {backward}.",
        f"{dice.pick(PEOPLE)} says {forward}, and backwards it is {backward}.",
    ])  # fmt: skip


def spell(dice):
    sentences = []
    for word in dice.sample(THINGS, 1 + dice.below(3)):
        sentences.append(dice.pick([
            f"The word {word} is spelled {'-'.join(word)}.", f"The word {word} is spelled {'-'.join(word)}.",
            f"The letters {'-'.join(word)} make the word {word}.",
        ]))  # fmt: skip
    return " ".join(sentences)


def repeat(dice):
    """Any words, said twice: practice in finding a word again."""
    a, b = dice.sample(PEOPLE, 2)
    said = ", ".join(dice.sample(WORDS, 2 + dice.below(4)))
    return dice.pick([f"{a} says {said}, and {b} says {said} too.", f"{a} wrote {said}. {b} read {said}."])


def errand(dice):
    """Everyday prose, so that the world is more than its tables."""
    who, other = dice.sample(PEOPLE, 2)
    a, b = dice.sample(THINGS, 2)
    day, month = dice.pick(DAYS), dice.pick(MONTHS)
    return " ".join(dice.sample([
        f"On {day}, {who} bought {article(a)} and {article(b)}.", f"{who} gave {article(a)} to {other}.",
        f"In {month}, {other} lost {article(b)} and was sad.", f"{other} put the {b} under the {a}.",
        f"{who} and {other} met on {day} in {month}.", f"{who} likes the {a}, and {other} likes the {b}.",
    ], 2 + dice.below(3)))  # fmt: skip


def curiosity(dice):
    """People have things in mind, and the text then says them, at once or after a while and in any order.

    What a question will later be about stands before its answer, at no fixed distance: the model has to look for it.
    """
    thoughts, statements = [], []
    for _ in range(1 + dice.below(3)):
        topic, statement = dice.pick(TOPICS)(dice)
        thoughts.append(dice.pick(PEOPLE) + dice.pick([" wants to know ", " thinks about ", " looks up ", " asks for "]) + topic + ".")
        statements.append(statement)
    if dice.below(3) == 0:
        return " ".join(f"{thought} {statement}" for thought, statement in zip(thoughts, statements))
    return " ".join([*thoughts, *dice.shuffled(statements)])


def country_topic(dice):
    name = dice.pick(list(COUNTRIES))
    capital, continent, currency, language = COUNTRIES[name]
    return dice.pick([
        (f"the capital of {name}", f"The capital of {name} is {capital}."),
        (f"the continent of {name}", f"The continent of {name} is {continent}."),
        (f"the currency of {name}", f"The currency of {name} is the {currency}."),
        (f"the language of {name}", f"The language of {name} is {language}."),
    ])  # fmt: skip


def animal_topic(dice):
    name = dice.pick(list(ANIMALS))
    sound, home, legs, baby = ANIMALS[name]
    a = article(name)
    return dice.pick([
        (f"the sound of {a}", f"{upper_first(a)} {sound}."),
        (f"the home of {a}", f"{upper_first(a)} lives {home}."),
        (f"the legs of {a}", f"{upper_first(a)} has {legs} legs."),
        (f"the baby of {a}", f"A baby {name} is called {article(baby)}."),
    ])  # fmt: skip


def word_topic(dice):
    if dice.below(2):
        word = dice.pick(THINGS)
        return f"the spelling of {word}", f"The word {word} is spelled {'-'.join(word)}."
    a, b = dice.sample(dice.pick(OPPOSITES), 2)
    return f"the opposite of {a}", f"The opposite of {a} is {b}."


def calendar_topic(dice):
    names, what = (DAYS, "day") if dice.below(2) else (MONTHS, "month")
    i = dice.below(len(names))
    a, b = names[i], names[(i + 1) % len(names)]
    if dice.below(2):
        return f"the {what} after {a}", f"The {what} after {a} is {b}."
    return f"the {what} before {b}", f"The {what} before {b} is {a}."


def number_topic(dice):
    if dice.below(2):
        a, b = 1 + dice.below(9), 1 + dice.below(9)
        return f"the sum of {a} and {b}", f"The sum of {a} and {b} is {a + b}."
    a, b = 10 + dice.below(90), 10 + dice.below(90)
    if dice.below(2):
        return f"the larger number of {a} and {b}", f"Of {a} and {b}, the larger number is {max(a, b)}."
    return f"the smaller number of {a} and {b}", f"Of {a} and {b}, the smaller number is {min(a, b)}."


def list_topic(dice):
    words = dice.sample(THINGS, 2 + dice.below(2))
    forward, backward = ", ".join(words), ", ".join(reversed(words))
    return f"the list {forward}", f"The list {forward} in reverse order is {backward}."


TOPICS = [
    country_topic, country_topic, country_topic, animal_topic, word_topic, word_topic, calendar_topic, number_topic, number_topic,
    list_topic,
]  # fmt: skip
KINDS = [
    country, country, country, animal, opposite, opposite, calendar, compare, compare, add, turn_round, spell, errand, repeat, repeat,
    curiosity, curiosity, curiosity, curiosity, curiosity, curiosity, curiosity,
]  # fmt: skip


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    dice = Dice(SEED)
    lines = int(sys.argv[2]) if len(sys.argv) > 2 else LINES
    with open(sys.argv[1], "w", encoding="utf-8", newline="\n") as out:
        for _ in range(lines):
            out.write(" ".join(dice.pick(KINDS)(dice) for _ in range(1 + dice.below(4))) + "\n")


if __name__ == "__main__":
    main()
