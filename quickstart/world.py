"""The small world of the quick start: the facts that the corpus tells and the instructions ask for.

Facts of the real world, so that a reader can check an answer. Python standard library only.
"""

# country: (capital, continent, currency, language)
COUNTRIES = {
    "Portugal": ("Lisbon", "Europe", "euro", "Portuguese"),
    "Spain": ("Madrid", "Europe", "euro", "Spanish"),
    "France": ("Paris", "Europe", "euro", "French"),
    "Germany": ("Berlin", "Europe", "euro", "German"),
    "Austria": ("Vienna", "Europe", "euro", "German"),
    "Italy": ("Rome", "Europe", "euro", "Italian"),
    "Greece": ("Athens", "Europe", "euro", "Greek"),
    "Poland": ("Warsaw", "Europe", "zloty", "Polish"),
    "Hungary": ("Budapest", "Europe", "forint", "Hungarian"),
    "Czechia": ("Prague", "Europe", "koruna", "Czech"),
    "Denmark": ("Copenhagen", "Europe", "krone", "Danish"),
    "Norway": ("Oslo", "Europe", "krone", "Norwegian"),
    "Sweden": ("Stockholm", "Europe", "krona", "Swedish"),
    "Ukraine": ("Kyiv", "Europe", "hryvnia", "Ukrainian"),
    "Croatia": ("Zagreb", "Europe", "euro", "Croatian"),
    "China": ("Beijing", "Asia", "yuan", "Chinese"),
    "Japan": ("Tokyo", "Asia", "yen", "Japanese"),
    "Vietnam": ("Hanoi", "Asia", "dong", "Vietnamese"),
    "Thailand": ("Bangkok", "Asia", "baht", "Thai"),
    "Indonesia": ("Jakarta", "Asia", "rupiah", "Indonesian"),
    "Nepal": ("Kathmandu", "Asia", "rupee", "Nepali"),
    "Iran": ("Tehran", "Asia", "rial", "Persian"),
    "Qatar": ("Doha", "Asia", "riyal", "Arabic"),
    "Egypt": ("Cairo", "Africa", "pound", "Arabic"),
    "Nigeria": ("Abuja", "Africa", "naira", "English"),
    "Cuba": ("Havana", "America", "peso", "Spanish"),
    "Jamaica": ("Kingston", "America", "dollar", "English"),
    "Colombia": ("Bogota", "America", "peso", "Spanish"),
    "Peru": ("Lima", "America", "sol", "Spanish"),
    "Chile": ("Santiago", "America", "peso", "Spanish"),
    "Argentina": ("Buenos Aires", "America", "peso", "Spanish"),
    "Brazil": ("Brasilia", "America", "real", "Portuguese"),
}

# animal: (sound, where it lives, legs, baby)
ANIMALS = {
    "cow": ("moos", "on a farm", "four", "calf"),
    "horse": ("neighs", "on a farm", "four", "foal"),
    "sheep": ("bleats", "on a farm", "four", "lamb"),
    "pig": ("grunts", "on a farm", "four", "piglet"),
    "hen": ("clucks", "on a farm", "two", "chick"),
    "duck": ("quacks", "in a pond", "two", "duckling"),
    "frog": ("croaks", "in a pond", "four", "tadpole"),
    "dog": ("barks", "in a house", "four", "puppy"),
    "cat": ("purrs", "in a house", "four", "kitten"),
    "mouse": ("squeaks", "in a field", "four", "pup"),
    "lion": ("roars", "in the savanna", "four", "cub"),
    "wolf": ("howls", "in a forest", "four", "cub"),
    "owl": ("hoots", "in a forest", "two", "owlet"),
    "bee": ("buzzes", "in a hive", "six", "larva"),
    "goat": ("bleats", "in the mountains", "four", "kid"),
    "whale": ("sings", "in the sea", "no", "calf"),
}

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("old", "young"), ("hard", "soft"),
    ("light", "dark"), ("full", "empty"), ("open", "closed"), ("early", "late"), ("wet", "dry"), ("loud", "quiet"),
    ("rich", "poor"), ("strong", "weak"), ("happy", "sad"), ("clean", "dirty"), ("near", "far"), ("thick", "thin"),
    ("wide", "narrow"), ("deep", "shallow"), ("sweet", "bitter"), ("sharp", "blunt"), ("rough", "smooth"),
    ("high", "low"), ("left", "right"), ("up", "down"), ("first", "last"), ("always", "never"), ("begin", "end"),
    ("give", "take"), ("push", "pull"), ("win", "lose"), ("buy", "sell"), ("ask", "answer"), ("come", "go"),
    ("north", "south"), ("east", "west"), ("summer", "winter"), ("day", "night"), ("friend", "enemy"),
]  # fmt: skip

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip

PEOPLE = ["Anna", "Tom", "Mia", "Ben", "Lena", "Omar", "Yuki", "Sara", "Ivan", "Rosa", "Paul", "Nina"]

# single things, to be listed, turned round and spelled
THINGS = [
    "apple", "bag", "ball", "bell", "boat", "book", "bread", "brush", "cake", "chair", "clock", "coat", "cup", "desk",
    "door", "drum", "egg", "fan", "fork", "glass", "hat", "jar", "key", "kite", "knife", "lamp", "leaf", "map", "milk",
    "nail", "nest", "pan", "pear", "pen", "plate", "ring", "rope", "salt", "shell", "ship", "shoe", "soap", "sock",
    "spoon", "star", "stone", "table", "tent", "tree", "wheel",
]  # fmt: skip


class Dice:
    """A generator of its own (Knuth's MMIX constants), so that a seed gives the same bytes on every Python."""

    def __init__(self, seed):
        self.state = seed
        for _ in range(8):
            self.below(2)

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n

    def pick(self, items):
        return items[self.below(len(items))]

    def sample(self, items, n):
        """n different items, in random order"""
        rest, taken = list(items), []
        for _ in range(n):
            taken.append(rest.pop(self.below(len(rest))))
        return taken

    def shuffled(self, items):
        return self.sample(items, len(items))


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def upper_first(text):
    return text[0].upper() + text[1:]
