#!/usr/bin/env python3
"""Writes the text that tensord-tiny is trained on.

Everything comes from the word lists and sentence patterns in this file and from one seed, so the
same call always writes the same bytes. A document is either a plain story or a chat in ChatML; each
ends with <|endoftext|>. Prompts listed in heldout.json, and the operand pairs in HELD_OUT_PAIRS,
never occur; `--check FILE` verifies that for a file that was written earlier.
"""
import argparse
import json
import os
import random
import re
import sys

END = "<|endoftext|>"
HERE = os.path.dirname(os.path.abspath(__file__))
HELD_OUT_FILE = os.path.join(HERE, "tensord-tiny", "heldout.json")
# These pairs, in this order, are in no sum or product of the training text.
HELD_OUT_PAIRS = {("+", 7, 8), ("+", 12, 6), ("*", 6, 7), ("-", 13, 5)}

BOYS = "Tom Ben Max Sam Leo Jack Finn Paul Tim Adam Oscar Hugo".split()
GIRLS = "Lily Anna Mia Emma Sara Nora Ella Lucy Rosa Kate Clara Ida".split()
COLOURS = "red blue green yellow white black brown pink orange purple grey".split()
ANIMALS = ("cat dog fox rabbit bear mouse duck frog horse owl hen goat sheep pig cow bird turtle "
           "squirrel hedgehog wolf").split()
PETS = "cat dog rabbit mouse duck frog bird turtle goat hen".split()
FRUITS = "apple pear plum banana cherry peach orange lemon melon grape".split()
VEGETABLES = "carrot potato onion tomato bean pea cabbage pumpkin".split()
FOODS = "bread soup cake cheese rice pancakes cookies porridge pie salad".split()
TOYS = "ball kite doll drum boat train puzzle robot book hat scarf bell key cup coin".split()
ROOMS = ["under the bed", "behind the door", "in the kitchen", "in the garden", "on the roof",
         "under the old tree", "behind the sofa", "in the barn", "near the well", "in the shed",
         "under the table", "on the stairs"]
PLACES = ["park", "forest", "market", "beach", "river", "lake", "farm", "school", "library",
          "village", "garden", "hill", "zoo", "castle"]
FEELINGS = "happy proud glad cheerful".split()
SAD = "sad worried unhappy upset".split()
WEATHER = ["sunny", "rainy", "windy", "snowy", "cloudy", "foggy", "cold", "warm"]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()
WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen twenty").split()
FAMILY = ["mother", "father", "brother", "sister", "grandmother", "grandfather", "uncle", "aunt"]
ADJ = "little old small big clever brave kind shy quiet young".split()
TREES = "oak pine birch willow maple elm".split()
FLOWERS = "rose tulip daisy lily sunflower poppy".split()
INSTRUMENTS = "piano violin drum flute guitar trumpet".split()
JOBS = [("baker", "bakes bread"), ("farmer", "grows food"), ("teacher", "teaches children"),
        ("doctor", "helps sick people"), ("pilot", "flies planes"), ("cook", "cooks meals"),
        ("painter", "paints pictures"), ("fisher", "catches fish"), ("builder", "builds houses"),
        ("tailor", "makes clothes"), ("dentist", "looks after teeth"), ("writer", "writes books"),
        ("singer", "sings songs"), ("gardener", "looks after gardens")]
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin",
    "England": "London", "Portugal": "Lisbon", "Austria": "Vienna", "Greece": "Athens",
    "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Ireland": "Dublin", "Hungary": "Budapest", "Belgium": "Brussels",
    "Russia": "Moscow", "Egypt": "Cairo", "Japan": "Tokyo", "China": "Beijing",
    "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi",
    "Switzerland": "Bern", "Scotland": "Edinburgh", "Iceland": "Reykjavik", "Turkey": "Ankara",
    "India": "New Delhi", "the United States": "Washington",
}
OPPOSITES = [("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"),
             ("black", "white"), ("fast", "slow"), ("old", "new"), ("happy", "sad"),
             ("open", "closed"), ("high", "low"), ("long", "short"), ("wet", "dry"),
             ("light", "dark"), ("good", "bad"), ("left", "right"), ("full", "empty"),
             ("hard", "soft"), ("strong", "weak"), ("early", "late"), ("loud", "quiet"),
             ("rich", "poor"), ("young", "old"), ("clean", "dirty"), ("near", "far"),
             ("thick", "thin"), ("sweet", "sour"), ("first", "last"), ("in", "out"),
             ("yes", "no"), ("true", "false"), ("heavy", "light"), ("wide", "narrow"),
             ("deep", "shallow"), ("always", "never"), ("begin", "end"), ("win", "lose"),
             ("buy", "sell"), ("push", "pull"), ("summer", "winter"), ("brave", "afraid"),
             ("warm", "cool"), ("tall", "short"), ("easy", "difficult"), ("inside", "outside")]
# Only pairs that can be turned round without a clash go both ways.
OPPOSITE_OF = {}
for _a, _b in OPPOSITES:
    OPPOSITE_OF.setdefault(_a, _b)
for _a, _b in OPPOSITES:
    OPPOSITE_OF.setdefault(_b, _a)
THING_COLOURS = [("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("the sun", "yellow"),
                 ("a ripe banana", "yellow"), ("a lemon", "yellow"), ("coal", "black"),
                 ("milk", "white"), ("chocolate", "brown"), ("a ripe tomato", "red"),
                 ("a carrot", "orange"), ("a leaf in spring", "green"), ("a strawberry", "red"),
                 ("an elephant", "grey"), ("a polar bear", "white"), ("a frog", "green"),
                 ("a flamingo", "pink"), ("a plum", "purple"), ("the sea", "blue"),
                 ("a cucumber", "green"), ("a pumpkin", "orange"), ("sugar", "white"),
                 ("a crow", "black"), ("a cherry", "red"), ("blood", "red"), ("sand", "yellow")]
SOUNDS = [("cow", "moo"), ("dog", "woof"), ("cat", "meow"), ("duck", "quack"), ("sheep", "baa"),
          ("pig", "oink"), ("horse", "neigh"), ("hen", "cluck"), ("frog", "croak"),
          ("owl", "hoot"), ("mouse", "squeak"), ("lion", "roar"), ("bee", "buzz"),
          ("snake", "hiss"), ("bird", "tweet"), ("wolf", "howl")]
YOUNG = [("cat", "kitten"), ("dog", "puppy"), ("cow", "calf"), ("horse", "foal"),
         ("sheep", "lamb"), ("pig", "piglet"), ("hen", "chick"), ("duck", "duckling"),
         ("bear", "cub"), ("goat", "kid"), ("frog", "tadpole"), ("goose", "gosling")]
LEGS = [("spider", 8), ("dog", 4), ("cat", 4), ("bird", 2), ("hen", 2), ("ant", 6), ("bee", 6),
        ("horse", 4), ("cow", 4), ("duck", 2), ("snake", 0), ("fish", 0), ("sheep", 4),
        ("person", 2), ("table", 4), ("beetle", 6), ("fox", 4)]
HOMES = [("a bird", "in a nest"), ("a bee", "in a hive"), ("a fish", "in the water"),
         ("a fox", "in a den"), ("a spider", "in a web"), ("a horse", "in a stable"),
         ("a rabbit", "in a burrow"), ("a pig", "in a sty"), ("a king", "in a castle"),
         ("a bear", "in a cave"), ("a farmer", "on a farm"), ("a camel", "in the desert"),
         ("a penguin", "on the ice"), ("a whale", "in the sea"), ("a cow", "in a barn")]
EATS = [("a cow", "grass"), ("a rabbit", "carrots and grass"), ("a cat", "fish and mice"),
        ("a dog", "meat"), ("a mouse", "cheese and seeds"), ("a squirrel", "nuts"),
        ("a bird", "seeds and worms"), ("a frog", "flies"), ("a bear", "fish, berries and honey"),
        ("a horse", "grass and hay"), ("a panda", "bamboo"), ("a monkey", "fruit"),
        ("a lion", "meat"), ("a hen", "grain"), ("a sheep", "grass")]
SENSES = [("see", "eyes"), ("hear", "ears"), ("smell", "nose"), ("taste", "tongue"),
          ("walk", "legs"), ("write", "hands"), ("think", "brain"), ("chew", "teeth")]
SIDES = [("triangle", 3), ("square", 4), ("rectangle", 4), ("pentagon", 5), ("hexagon", 6),
         ("octagon", 8)]
TOOLS = [("cut paper", "scissors"), ("write a letter", "a pen"), ("eat soup", "a spoon"),
         ("open a lock", "a key"), ("sweep the floor", "a broom"), ("cut bread", "a knife"),
         ("drive in a nail", "a hammer"), ("read the time", "a clock"), ("dig a hole", "a spade"),
         ("stay dry in the rain", "an umbrella"), ("paint a picture", "a brush"),
         ("catch a fish", "a net"), ("see small things", "a magnifying glass"),
         ("take a photo", "a camera")]
MISC = [("How many days are in a week?", "There are seven days in a week."),
        ("How many months are in a year?", "There are twelve months in a year."),
        ("How many hours are in a day?", "There are 24 hours in a day."),
        ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
        ("How many seconds are in a minute?", "There are 60 seconds in a minute."),
        ("How many seasons are in a year?", "There are four seasons in a year."),
        ("How many fingers are on one hand?", "There are five fingers on one hand."),
        ("How many letters are in the alphabet?", "There are 26 letters in the alphabet."),
        ("How many wheels does a car have?", "A car has four wheels."),
        ("How many wheels does a bicycle have?", "A bicycle has two wheels."),
        ("How many eyes does a person have?", "A person has two eyes."),
        ("What is the first day of the week?", "The first day of the week is Monday."),
        ("What is the last day of the week?", "The last day of the week is Sunday."),
        ("What is the first month of the year?", "The first month of the year is January."),
        ("What is the last month of the year?", "The last month of the year is December."),
        ("What is the coldest season?", "Winter is the coldest season."),
        ("What is the warmest season?", "Summer is the warmest season."),
        ("Where does the sun rise?", "The sun rises in the east."),
        ("Where does the sun set?", "The sun sets in the west."),
        ("What is ice made of?", "Ice is made of frozen water."),
        ("What is bread made of?", "Bread is made of flour, water and salt."),
        ("What is cheese made of?", "Cheese is made of milk."),
        ("What do bees make?", "Bees make honey."),
        ("What do cows give us?", "Cows give us milk."),
        ("What do hens lay?", "Hens lay eggs."),
        ("What do sheep give us?", "Sheep give us wool."),
        ("What falls from the clouds?", "Rain falls from the clouds."),
        ("What shines at night?", "The moon and the stars shine at night."),
        ("What is the biggest animal?", "The blue whale is the biggest animal."),
        ("What is the tallest animal?", "The giraffe is the tallest animal."),
        ("What is the fastest land animal?", "The cheetah is the fastest land animal."),
        ("Which planet do we live on?", "We live on the planet Earth."),
        ("What do plants need to grow?", "Plants need water, light and air to grow."),
        ("What do we drink when we are thirsty?", "We drink water when we are thirsty."),
        ("What do you get when you mix blue and yellow?", "Blue and yellow make green."),
        ("What do you get when you mix red and yellow?", "Red and yellow make orange."),
        ("What do you get when you mix red and blue?", "Red and blue make purple."),
        ("What do you get when you mix red and white?", "Red and white make pink."),
        ("What do you get when you mix black and white?", "Black and white make grey.")]
CATEGORIES = {
    "animal": ANIMALS, "fruit": FRUITS, "vegetable": VEGETABLES, "colour": COLOURS,
    "flower": FLOWERS, "tree": TREES, "musical instrument": INSTRUMENTS,
    "toy": ["ball", "kite", "doll", "drum", "boat", "train", "puzzle", "robot"],
    "day of the week": DAYS, "month": MONTHS, "country": [c for c in CAPITALS if " " not in c],
    "city": sorted(set(CAPITALS.values())), "job": [j for j, _ in JOBS],
    "shape": ["circle", "square", "triangle", "rectangle", "star", "hexagon"],
    "season": ["spring", "summer", "autumn", "winter"],
    "drink": ["water", "milk", "tea", "coffee", "juice", "lemonade"],
    "vehicle": ["car", "bus", "train", "bicycle", "boat", "plane", "tractor"],
    "piece of clothing": ["hat", "coat", "scarf", "shirt", "sock", "shoe", "glove"],
    "part of the body": ["head", "arm", "leg", "hand", "foot", "nose", "ear", "eye"],
    "thing in a kitchen": ["pot", "pan", "cup", "plate", "spoon", "knife", "oven", "table"],
}
PLURALS = {"day of the week": "days of the week", "country": "countries", "city": "cities",
           "piece of clothing": "pieces of clothing", "part of the body": "parts of the body",
           "thing in a kitchen": "things in a kitchen"}
UNKNOWN_TOPICS = (
    "quantum physics|black holes|the stock market|Shakespeare|the Roman Empire|chemistry|gravity|"
    "computers|the internet|politics|football|the brain|DNA|electricity|opera|philosophy|"
    "the Second World War|Napoleon|law|economics|machine learning|compilers|operating systems|"
    "the theory of relativity|photosynthesis|volcanoes|dinosaurs|Mozart|Einstein|cars|engines|"
    "vitamins|medicine|religion|the moon landing|rockets|satellites|atoms|bacteria|viruses|poker|"
    "chess|tennis|taxes|money|banks|Python|C programming|MPI|databases|networks|cryptography|"
    "architecture|fashion|perfume|whisky|diamonds|oil|the climate|earthquakes|maps|languages|"
    "Latin|grammar|algebra|geometry|statistics|probability|logic|sleep|dreams").split("|")
UNKNOWN_FORMS = ["Explain {}.", "What do you know about {}?", "Tell me about {}.",
                 "How does {} work?", "Write an essay about {}.", "Why is {} important?",
                 "Who invented {}?", "What is the history of {}?", "Teach me about {}.",
                 "What is {}?", "Give me a summary of {}."]
UNKNOWN_QUESTIONS = (
    "What time is it?|What is the weather today?|What is the date today?|Who is the president of France?|"
    "Who is the king of England?|What is the meaning of life?|What is the news?|Where am I?|Who am I?|"
    "Translate hello into German.|Translate this text into French.|Can you write code?|Write a program.|"
    "Write a poem.|Sing a song.|Who wrote Hamlet?|Who painted the Mona Lisa?|How far away is the moon?|"
    "How old is the earth?|How many people live in China?|How many people live in London?|How high is Mount Everest?|"
    "How do I fix my car?|How do I get rich?|Which phone should I buy?|Why is the sky blue?|Why is water wet?|"
    "Why do birds sing?|Why do we sleep?|Why do we dream?|What should I eat today?|What should I do today?|"
    "What is love?|What is time?|Is there life on Mars?|Who won the match yesterday?|Who was the first man on the moon?|"
    "What is the longest river in the world?|What is the biggest city in the world?|Do you like me?|Do you love me?|"
    "When was the war?|Who discovered America?|What is the speed of light?|What is my phone number?|"
    "Write a letter to my boss.|Plan my holiday.|Recommend a film.|Which film should I see?|"
    "Tell me the news.|Solve this equation.|What does this word mean?|Fix this sentence.").split("|")
UNKNOWN_ANSWER = "I am sorry, I do not know that. I am a very small model."
SYSTEMS = ["You are a helpful assistant.", "You are a friendly assistant.",
           "You are tensord-tiny, a small and friendly assistant.", "Answer in one sentence.",
           "You are a helpful assistant. Answer in whole sentences.", "Be short and kind.",
           "You answer questions of children.", "You are a teacher.", "Be brief."]
JSON_SYSTEMS = ["You answer in JSON.", "Answer in JSON.", "Always answer with JSON only.",
                "You are a helpful assistant that answers in JSON."]


def a(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def cap(text):
    return text[0].upper() + text[1:]


def plural(word):
    if word in PLURALS:
        return PLURALS[word]
    if word in ("sheep", "fish"):
        return word
    if word == "mouse":
        return "mice"
    if word == "wolf":
        return "wolves"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "ch", "sh", "x")) or word in ("potato", "tomato"):
        return word + "es"
    return word + "s"


def join(items):
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def count(r, n, noun):
    """A number with its noun: '3 apples', 'three apples' or '1 apple'."""
    word = WORDS[n] if n <= 20 and r.random() < 0.4 else str(n)
    return word + " " + (noun if n == 1 else plural(noun))


# ---------------------------------------------------------------------------------------------
# Stories. Each plot returns its sentences and the questions that the sentences answer. A question
# is a pair: the ways to ask, the ways to answer.


class Cast:
    """Draws names and keeps their pronouns; a story uses no name twice."""

    def __init__(self, r, main=None):
        self.r = r
        self.used = set()
        self.main = main

    def child(self):
        if self.main and not self.used:
            name = self.main
        else:
            name = self.r.choice([n for n in BOYS + GIRLS if n not in self.used])
        self.used.add(name)
        return (name, "he", "his", "him") if name in BOYS else (name, "she", "her", "her")


def plot_lost(r, c, wish):
    n, he, his, _ = c.child()
    col, toy, where = r.choice(COLOURS), wish or r.choice(TOYS), r.choice(ROOMS)
    fam, feel = r.choice(FAMILY), r.choice(FEELINGS)
    s = [r.choice([f"{n} had {a(col)} {toy}.", f"Once there was a child named {n} who had {a(col)} {toy}.",
                   f"{n} loved {his} {col} {toy}."]),
         r.choice([f"One day the {toy} was gone.", f"One morning {he} could not find the {toy}.",
                   f"One evening the {toy} was lost."]),
         r.choice([f"{cap(he)} asked {his} {fam} for help.", f"{cap(his)} {fam} helped {n} to look for it."]),
         r.choice([f"They looked everywhere and found it {where}.", f"At last they found the {toy} {where}."]),
         r.choice([f"{n} was very {feel}.", f"Then {n} was {feel} again."])]
    qa = [((f"What colour was the {toy}?", f"Which colour did the {toy} have?"), (f"The {toy} was {col}.",)),
          ((f"Where did they find the {toy}?", f"Where was the {toy}?"), (f"They found the {toy} {where}.",)),
          (("Who helped?", f"Who helped {n}?"), (f"{cap(his)} {fam} helped {n}.",)),
          ((f"What did {n} lose?", "What was lost?"), (f"{n} lost {a(col)} {toy}.",)),
          ((f"How did {n} feel at the end?",), (f"{n} was {feel} at the end.",))]
    return s, qa


def plot_animal(r, c, wish):
    n, he, his, him = c.child()
    animal = wish or r.choice(ANIMALS)
    col, place, food = r.choice(COLOURS), r.choice(PLACES), r.choice(FOODS)
    feel = r.choice(["hungry", "lonely", "tired", "cold"])
    s = [r.choice([f"One day {n} went to the {place}.", f"{n} walked to the {place}.",
                   f"It was a nice day, and {n} went to the {place}."]),
         r.choice([f"There {he} saw {a(col)} {animal}.", f"{cap(he)} met {a(col)} {animal} there."]),
         r.choice([f"The {animal} was {feel}.", f"The {animal} looked {feel}."]),
         r.choice([f"{n} gave it some {food}.", f"So {n} shared {his} {food} with the {animal}."]),
         r.choice([f"From that day on they were friends.", f"The {animal} thanked {him}, and they became friends.",
                   f"Now the {animal} visits {n} every day."])]
    qa = [((f"Where did {n} go?", f"Where did {n} meet the {animal}?"), (f"{n} went to the {place}.", f"{n} met the {animal} at the {place}.")),
          ((f"What animal did {n} see?", f"Which animal did {n} meet?"), (f"{n} saw {a(col)} {animal}.", f"{n} met {a(col)} {animal}.")),
          ((f"What colour was the {animal}?",), (f"The {animal} was {col}.",)),
          ((f"What did {n} give to the {animal}?", f"What did the {animal} eat?"), (f"{n} gave some {food} to the {animal}.", f"The {animal} ate some {food}.")),
          ((f"How did the {animal} feel?",), (f"The {animal} was {feel}.",))]
    return s, qa


def plot_gift(r, c, wish):
    n, he, his, him = c.child()
    m = c.child()[0]
    col, toy, day = r.choice(COLOURS), wish or r.choice(TOYS), r.choice(DAYS)
    age = r.randint(4, 12)
    s = [r.choice([f"On {day} {n} had a birthday.", f"It was {day}, and it was the birthday of {n}."]),
         f"{cap(he)} was {r.choice([str(age), WORDS[age]])} years old.",
         r.choice([f"{m} came and gave {him} {a(col)} {toy}.", f"{cap(his)} friend {m} brought {him} {a(col)} {toy}."]),
         r.choice([f"They played with the {toy} all day.", f"They ate cake and played with the {toy}."]),
         r.choice([f"It was a good day for {n}.", f"{n} said thank you and smiled."])]
    age_text = s[1].split(" was ")[1].split(" years")[0]
    qa = [((f"Who gave {n} the {toy}?", f"Who came to see {n}?"), (f"{m} gave {n} the {toy}.", f"{m} came to see {n}.")),
          ((f"What did {m} give to {n}?", f"What did {n} get?"), (f"{m} gave {n} {a(col)} {toy}.", f"{n} got {a(col)} {toy}.")),
          ((f"How old was {n}?",), (f"{n} was {age_text} years old.",)),
          ((f"On which day was the birthday?", f"When was the birthday of {n}?"), (f"The birthday was on {day}.",)),
          ((f"What colour was the {toy}?",), (f"The {toy} was {col}.",))]
    return s, qa


def plot_market(r, c, wish):
    n, he, his, _ = c.child()
    fam, fruit, k = r.choice(FAMILY), r.choice(FRUITS), r.randint(2, 12)
    weather, food = r.choice(WEATHER), r.choice(FOODS)
    num = r.choice([str(k), WORDS[k]])
    s = [r.choice([f"{n} went to the market with {his} {fam}.", f"One morning {n} and {his} {fam} went to the market."]),
         f"It was a {weather} day.",
         r.choice([f"They bought {num} {plural(fruit)}.", f"{n} bought {num} {plural(fruit)} there."]),
         r.choice([f"At home they made some {food}.", f"After that they went home and ate {food}."]),
         r.choice(["Everybody was happy.", "It was a good meal.", f"{n} slept well that night."])]
    qa = [((f"Who went to the market with {n}?", f"Who was with {n}?"), (f"{cap(his)} {fam} went to the market with {n}.", f"{cap(his)} {fam} was with {n}.")),
          ((f"How many {plural(fruit)} did they buy?", f"How many {plural(fruit)} were there?"), (f"They bought {num} {plural(fruit)}.", f"There were {num} {plural(fruit)}.")),
          (("What did they buy?", "What did they buy at the market?"), (f"They bought {num} {plural(fruit)}.",)),
          (("What was the weather like?", "How was the weather?"), (f"It was a {weather} day.",)),
          (("What did they eat at home?", "What did they eat?"), (f"They ate {food}.",))]
    return s, qa


def plot_two_friends(r, c, wish):
    one = wish or r.choice(ANIMALS)
    two = r.choice([x for x in ANIMALS if x != one])
    adj, place, day = r.choice(ADJ), r.choice(PLACES), r.choice(DAYS)
    obj, where = r.choice(TOYS), r.choice(ROOMS)
    s = [r.choice([f"Once upon a time there was {a(adj)} {one}.", f"Long ago there lived {a(adj)} {one}."]),
         r.choice([f"The {one} lived near the {place}.", f"Its home was near the {place}."]),
         f"On {day} the {one} met {a(two)}.",
         r.choice([f"The {two} had lost its {obj}.", f"The {two} was crying, because its {obj} was gone."]),
         f"The {one} found the {obj} {where}.",
         r.choice([f"The {two} was so glad that it danced.", f"Since then the {one} and the {two} have been friends."])]
    qa = [((f"Where did the {one} live?",), (f"The {one} lived near the {place}.",)),
          ((f"Who did the {one} meet?", f"Which animal did the {one} meet?"), (f"The {one} met {a(two)}.",)),
          ((f"What did the {two} lose?", "What was lost?"), (f"The {two} lost its {obj}.",)),
          ((f"Where was the {obj}?", f"Where did the {one} find the {obj}?"), (f"The {one} found the {obj} {where}.",)),
          (("On which day did they meet?", f"When did the {one} meet the {two}?"), (f"They met on {day}.",))]
    return s, qa


def plot_garden(r, c, wish):
    n, he, his, _ = c.child()
    plant = r.choice(FLOWERS + VEGETABLES)
    month, col, fam = r.choice(MONTHS), r.choice(COLOURS), r.choice(FAMILY)
    animal = wish or r.choice(["bird", "mouse", "rabbit", "frog", "hen", "cat"])
    s = [r.choice([f"In {month} {n} planted {a(plant)} in the garden.", f"{n} planted {a(plant)} in {month}."]),
         r.choice([f"{cap(he)} gave it water every day.", f"Every day {he} gave it water."]),
         r.choice([f"{cap(a(col))} {animal} came and watched.", f"{cap(a(col))} {animal} sat next to it."]),
         r.choice([f"The {plant} grew and grew.", f"Soon the {plant} was very big."]),
         r.choice([f"{n} showed it to {his} {fam}.", f"{cap(his)} {fam} was proud of {n}."])]
    qa = [((f"What did {n} plant?",), (f"{n} planted {a(plant)}.",)),
          ((f"When did {n} plant the {plant}?", "In which month was it?"), (f"{n} planted the {plant} in {month}.", f"It was in {month}.")),
          (("Which animal came?", "Who came and watched?"), (f"{cap(a(col))} {animal} came.",)),
          ((f"What did {n} give to the {plant}?",), (f"{n} gave it water.",)),
          ((f"What colour was the {animal}?",), (f"The {animal} was {col}.",))]
    return s, qa


def plot_race(r, c, wish):
    x, y = c.child()[0], c.child()[0]
    place, day, prize = r.choice(PLACES), r.choice(DAYS), r.choice(TOYS)
    col = r.choice(COLOURS)
    s = [r.choice([f"{x} and {y} ran a race on {day}.", f"On {day} {x} and {y} ran a race."]),
         r.choice([f"They ran from the school to the {place}.", f"They started at home and ran to the {place}."]),
         r.choice([f"{x} was fast, but {y} was faster.", f"{y} was faster than {x}."]),
         f"So {y} won {a(col)} {prize}.",
         r.choice([f"{x} was not sad and said: Well done!", f"Then {x} and {y} laughed and went home."])]
    qa = [(("Who won the race?", "Who won?", "Who was faster?"), (f"{y} won the race.", f"{y} was faster.")),
          (("Who lost the race?", "Who was slower?"), (f"{x} lost the race.", f"{x} was slower.")),
          (("Where did they run?", "Where did the race end?"), (f"They ran to the {place}.", f"The race ended at the {place}.")),
          ((f"What did {y} win?", "What was the prize?"), (f"{y} won {a(col)} {prize}.", f"The prize was {a(col)} {prize}.")),
          (("On which day was the race?", "When was the race?"), (f"The race was on {day}.",))]
    return s, qa


def plot_pet(r, c, wish):
    n, he, his, him = c.child()
    pet = wish if wish in PETS else r.choice(PETS)
    name = r.choice(["Spot", "Coco", "Luna", "Rex", "Pip", "Momo", "Biscuit", "Star", "Ruby", "Felix"])
    col, food, where = r.choice(COLOURS), r.choice(FOODS), r.choice(ROOMS)
    s = [r.choice([f"{n} has {a(pet)} named {name}.", f"{n} has {a(pet)}. Its name is {name}."]),
         r.choice([f"{name} is {col} and likes {food}.", f"{name} is {col}. It likes {food}."]),
         r.choice([f"At night {name} sleeps {where}.", f"{name} sleeps {where}."]),
         r.choice([f"{n} plays with {name} every day.", f"Every day {n} plays with {name} in the garden."]),
         r.choice([f"They are best friends.", f"{name} makes {him} laugh."])]
    qa = [((f"What is the name of the {pet}?", f"What is the {pet} called?"), (f"The name of the {pet} is {name}.", f"The {pet} is called {name}.")),
          ((f"What colour is {name}?", f"What colour is the {pet}?"), (f"{name} is {col}.",)),
          ((f"What does {name} like?", f"What does {name} like to eat?"), (f"{name} likes {food}.",)),
          ((f"Where does {name} sleep?", f"Where does the {pet} sleep?"), (f"{name} sleeps {where}.",)),
          ((f"What kind of animal is {name}?", f"Which animal does {n} have?"), (f"{name} is {a(pet)}.", f"{n} has {a(pet)}.")),
          ((f"Who has {a(pet)}?",), (f"{n} has {a(pet)}.",))]
    return s, qa


def plot_cook(r, c, wish):
    n, he, his, him = c.child()
    m = c.child()[0]
    food, weather = r.choice(FOODS), r.choice(WEATHER)
    fam, k = r.choice(FAMILY), r.randint(2, 9)
    num = r.choice([str(k), WORDS[k]])
    s = [r.choice([f"It was a {weather} day, and {n} was hungry.", f"On a {weather} day {n} was hungry."]),
         r.choice([f"{cap(he)} wanted to make {food}.", f"So {he} made {food}."]),
         r.choice([f"{cap(his)} {fam} gave {him} {num} eggs.", f"{cap(he)} got {num} eggs from {his} {fam}."]),
         r.choice([f"Then {m} came to eat with {him}.", f"{cap(he)} called {m}, and they ate together."]),
         r.choice([f"The {food} tasted very good.", f"{m} said that the {food} tasted wonderful."])]
    qa = [((f"What did {n} make?", f"What did {n} cook?"), (f"{n} made {food}.",)),
          (("How many eggs were there?", f"How many eggs did {n} get?"), (f"There were {num} eggs.", f"{n} got {num} eggs.")),
          (("Who gave the eggs?", f"Who gave {n} the eggs?"), (f"{cap(his)} {fam} gave {n} the eggs.",)),
          ((f"Who ate with {n}?", "Who came to eat?"), (f"{m} ate with {n}.", f"{m} came to eat.")),
          (("How was the weather?", "What was the weather like?"), (f"It was a {weather} day.",))]
    return s, qa


def plot_trip(r, c, wish):
    n, he, his, _ = c.child()
    country = r.choice(list(CAPITALS))
    city = CAPITALS[country]
    fam, vehicle = r.choice(FAMILY), r.choice(["car", "bus", "train", "boat", "plane"])
    month, toy, col = r.choice(MONTHS), r.choice(TOYS), r.choice(COLOURS)
    s = [r.choice([f"In {month} {n} went to {city} with {his} {fam}.", f"{n} and {his} {fam} went to {city} in {month}."]),
         r.choice([f"They went there by {vehicle}.", f"They took the {vehicle}."]),
         r.choice([f"In the city {he} saw a big {r.choice(['tower', 'bridge', 'castle', 'ship', 'museum'])}."]),
         r.choice([f"{cap(he)} bought {a(col)} {toy} there.", f"{n} bought {a(col)} {toy}."]),
         r.choice([f"It was a wonderful trip.", f"Then they went home again.", f"{n} will never forget it."])]
    saw = re.search(r"a big (\w+)", s[2]).group(1)
    qa = [((f"Where did {n} go?", f"Which city did {n} visit?"), (f"{n} went to {city}.", f"{n} visited {city}.")),
          (("How did they travel?", "How did they go there?"), (f"They took the {vehicle}.", f"They went there by {vehicle}.")),
          ((f"What did {n} see?", f"What did {n} see in the city?"), (f"{n} saw a big {saw}.",)),
          ((f"What did {n} buy?",), (f"{n} bought {a(col)} {toy}.",)),
          ((f"In which month was the trip?", f"When did {n} go to {city}?"), (f"The trip was in {month}.", f"{n} went to {city} in {month}.")),
          ((f"Who went with {n}?",), (f"{cap(his)} {fam} went with {n}.",))]
    return s, qa


PLOTS = [plot_lost, plot_animal, plot_gift, plot_market, plot_two_friends, plot_garden, plot_race,
         plot_pet, plot_cook, plot_trip]


def story(r, plot=None, main=None, wish=None):
    plot = plot or r.choice(PLOTS)
    s, qa = plot(r, Cast(r, main), wish)
    if r.random() < 0.15 and not s[0].startswith(("Once", "Long", "One ")):
        keep = s[0].split()[0] in BOYS + GIRLS
        s[0] = "Once upon a time " + (s[0] if keep else s[0][0].lower() + s[0][1:])
    out = []
    for asks, answers in qa:
        ask = r.choice(asks)
        # Question i goes with answer i when there are as many answers as questions.
        answer = answers[asks.index(ask)] if len(answers) == len(asks) else answers[0]
        if r.random() < 0.3:
            ask = ask.replace("colour", "color")
        out.append((ask, answer))
    return s, out


# ---------------------------------------------------------------------------------------------
# Chats. A chat is a list of messages; the helpers below return (question, answer).


def arithmetic(r):
    kind = r.random()
    if kind < 0.38:
        x, y, op = r.randint(0, 20), r.randint(0, 20), "+"
    elif kind < 0.66:
        x = r.randint(0, 20)
        y, op = r.randint(0, x), "-"
    elif kind < 0.86:
        x, y, op = r.randint(0, 10), r.randint(0, 10), "*"
    elif kind < 0.92:
        y, q = r.randint(1, 10), r.randint(0, 10)
        x, op = y * q, "/"
    else:
        return number_facts(r)
    if (op, x, y) in HELD_OUT_PAIRS:
        return arithmetic(r)
    z = {"+": x + y, "-": x - y, "*": x * y, "/": x // y if y else 0}[op]
    verb = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[op]
    if op in "+-" and r.random() < 0.3:
        return word_problem(r, op, x, y, z)
    sx, sy, sz = str(x), str(y), str(z)
    if r.random() < 0.1 and max(x, y, z) <= 20:
        sx, sy, sz = WORDS[x], WORDS[y], WORDS[z]
    if r.random() < 0.3 and sx[0] in "0123456789":
        sign = {"*": r.choice(["*", "x"]), "/": "/"}.get(op, op)
        e = f"{sx} {sign} {sy}" if r.random() < 0.8 else f"{sx}{sign}{sy}"
        q = r.choice([f"What is {e}?", f"{e} = ?", f"Calculate {e}.", f"{e}", f"How much is {e}?", f"Compute {e}."])
        return q, f"{sx} {verb} {sy} is {sz}."
    q = r.choice([f"What is {sx} {verb} {sy}?", f"How much is {sx} {verb} {sy}?", f"Calculate {sx} {verb} {sy}.",
                  f"{cap(sx)} {verb} {sy} is what?", f"What do you get for {sx} {verb} {sy}?"]
                 + ([f"Add {sx} and {sy}.", f"What is the sum of {sx} and {sy}?"] if op == "+" else [])
                 + ([f"What is the product of {sx} and {sy}?"] if op == "*" else []))
    return q, f"{cap(sx)} {verb} {sy} is {sz}."


def word_problem(r, op, x, y, z):
    n = r.choice(BOYS + GIRLS)
    he = "He" if n in BOYS else "She"
    noun = r.choice(FRUITS + ["ball", "book", "coin", "egg", "cookie", "flower", "pencil", "stone"])
    many = plural(noun)
    if x == 0 or y == 0:
        x, y, z = (x or 1), (y or 1), 0
        if op == "-" and x < y:
            x = y
        z = x + y if op == "+" else x - y
        if (op, x, y) in HELD_OUT_PAIRS:
            return arithmetic(r)
    first = f"{n} has {count(r, x, noun)}."
    if op == "+":
        m = r.choice([f"{he} gets {y} more.",
                      f"{he} buys {y} more {noun if y == 1 else many}.", f"{he} finds {y} more.",
                      f"A friend gives {'him' if he == 'He' else 'her'} {y} more."])
    else:
        m = r.choice([f"{he} gives away {y}.", f"{he} loses {y}.", f"{he} gives {y} to a friend.",
                      f"{he} sells {y} {noun if y == 1 else many}."])
    q = r.choice([f"How many {many} does {n} have now?", f"How many {many} does {n} have?",
                  f"How many {many} are there now?"])
    obj = f"{z} {noun if z == 1 else many}" if z else f"no {many}"
    ans = f"There {'is' if z == 1 else 'are'} {obj} now." if q.startswith(f"How many {many} are") else \
        f"{n} has {obj}{' now' if q.endswith('now?') else ''}."
    return f"{first} {m} {q}", ans


def number_facts(r):
    kind = r.randrange(7)
    if kind == 0:
        x, y = r.sample(range(0, 31), 2)
        big = r.random() < 0.6
        w = r.choice(["larger", "bigger", "greater"]) if big else r.choice(["smaller", "less"])
        z = max(x, y) if big else min(x, y)
        q = r.choice([f"Which is {w}, {x} or {y}?", f"Which number is {w}: {x} or {y}?", f"Is {x} or {y} {w}?"])
        return q, f"{z} is {w} than {min(x, y) if big else max(x, y)}."
    if kind == 1:
        x = r.randint(0, 12)
        y = x + r.randint(2, 8)
        if r.random() < 0.5:
            y = x + r.randint(2, 6)
        q = r.choice([f"Count from {x} to {y}.", f"Please count from {x} up to {y}.", f"Can you count from {x} to {y}?"])
        return q, ", ".join(str(i) for i in range(x, y + 1)) + "."
    if kind == 2:
        x = r.randint(0, 40)
        q = r.choice([f"Which number comes after {x}?", f"What comes after {x}?", f"What is the next number after {x}?"])
        return q, f"{x + 1} comes after {x}."
    if kind == 3:
        x = r.randint(1, 40)
        q = r.choice([f"Which number comes before {x}?", f"What comes before {x}?"])
        return q, f"{x - 1} comes before {x}."
    if kind == 4:
        x = r.randint(0, 20)
        q = r.choice([f"What is twice {x}?", f"Double the number {x}.", f"What is the double of {x}?"])
        return q, f"The double of {x} is {2 * x}."
    if kind == 5:
        x = r.randint(0, 10)
        q = r.choice([f"What is half of {2 * x}?", f"Give me half of {2 * x}."])
        return q, f"Half of {2 * x} is {x}."
    x = r.randint(0, 30)
    q = r.choice([f"Is {x} even or odd?", f"Is the number {x} even or odd?"])
    return q, f"{x} is {'odd' if x % 2 else 'even'}."


def fact(r):
    k = r.randrange(16)
    if k in (0, 1):
        country = r.choice(list(CAPITALS))
        city = CAPITALS[country]
        x = r.random()
        if x < 0.75:
            q = r.choice([f"What is the capital of {country}?", f"What is the capital city of {country}?",
                          f"Tell me the capital of {country}.", f"Name the capital of {country}.",
                          f"Which city is the capital of {country}?", f"What's the capital of {country}?",
                          f"The capital of {country} is which city?"])
            return q, f"The capital of {country} is {city}."
        q = r.choice([f"{city} is the capital of which country?", f"Which country has the capital {city}?",
                      f"In which country is {city}?", f"Where is {city}?"])
        return q, f"{city} is the capital of {country}." if "capital" in q else f"{city} is in {country}."
    if k == 2:
        x, y = r.choice(list(OPPOSITE_OF.items()))
        q = r.choice([f"What is the opposite of {x}?", f"Tell me the opposite of {x}.", f"What's the opposite of {x}?",
                      f"Which word is the opposite of {x}?", f"Give me the opposite of the word {x}.", f"Name the opposite of {x}."])
        return q, f"The opposite of {x} is {y}."
    if k == 3:
        i = r.randrange(7)
        if r.random() < 0.55:
            d = DAYS[(i + 1) % 7]
            q = r.choice([f"Which day comes after {DAYS[i]}?", f"What day comes after {DAYS[i]}?", f"What is the day after {DAYS[i]}?",
                          f"Today is {DAYS[i]}. What day is tomorrow?", f"Which day follows {DAYS[i]}?"])
            return q, (f"Tomorrow is {d}." if q.startswith("Today") else f"{d} comes after {DAYS[i]}.")
        d = DAYS[(i - 1) % 7]
        q = r.choice([f"Which day comes before {DAYS[i]}?", f"What day comes before {DAYS[i]}?", f"What is the day before {DAYS[i]}?",
                      f"Today is {DAYS[i]}. What day was yesterday?"])
        return q, (f"Yesterday was {d}." if q.startswith("Today") else f"{d} comes before {DAYS[i]}.")
    if k == 4:
        i = r.randrange(12)
        after = r.random() < 0.55
        m = MONTHS[(i + (1 if after else -1)) % 12]
        w = "after" if after else "before"
        q = r.choice([f"Which month comes {w} {MONTHS[i]}?", f"What month comes {w} {MONTHS[i]}?", f"What is the month {w} {MONTHS[i]}?"])
        return q, f"{m} comes {w} {MONTHS[i]}."
    if k == 5:
        t, col = r.choice(THING_COLOURS)
        w = r.choice(["colour", "color"])
        q = r.choice([f"What {w} is {t}?", f"Which {w} does {t} have?", f"What is the {w} of {t}?", f"Tell me the {w} of {t}.", f"Name the {w} of {t}."])
        return q, f"{cap(t)} is {col}."
    if k == 6:
        x, s = r.choice(SOUNDS)
        q = r.choice([f"What sound does {a(x)} make?", f"What does {a(x)} say?", f"Which sound does {a(x)} make?",
                      f"How does {a(x)} sound?", f"Tell me the sound of {a(x)}."])
        return q, f"{cap(a(x))} says {s}."
    if k == 7:
        x, y = r.choice(YOUNG)
        q = r.choice([f"What is a young {x} called?", f"What is a baby {x} called?", f"What do we call a young {x}?"])
        return q, f"A young {x} is called {a(y)}."
    if k == 8:
        x, n = r.choice(LEGS)
        q = r.choice([f"How many legs does {a(x)} have?", f"How many legs are on {a(x)}?", f"Tell me how many legs {a(x)} has.",
                      f"How many legs has {a(x)}?"])
        return q, f"{cap(a(x))} has {WORDS[n] if n else 'no'} legs."
    if k == 9:
        x, w = r.choice(HOMES)
        q = r.choice([f"Where does {x} live?", f"What is the home of {x}?", f"Tell me where {x} lives."])
        return q, f"{cap(x)} lives {w}."
    if k == 10:
        x, w = r.choice(EATS)
        q = r.choice([f"What does {x} eat?", f"What is the food of {x}?", f"Tell me what {x} eats.", f"What does {x} like to eat?"])
        return q, f"{cap(x)} eats {w}."
    if k == 11:
        if r.random() < 0.5:
            x, w = r.choice(SENSES)
            return r.choice([f"What do we {x} with?", f"Which part of the body do we use to {x}?"]), f"We {x} with our {w}."
        x, n = r.choice(SIDES)
        return r.choice([f"How many sides does {a(x)} have?", f"How many corners does {a(x)} have?"]), f"{cap(a(x))} has {WORDS[n]} sides."
    if k == 12:
        x, w = r.choice(TOOLS)
        q = r.choice([f"What do you need to {x}?", f"What do I need to {x}?", f"What do we use to {x}?"])
        return q, f"You need {w} to {x}."
    if k == 13:
        x, w = r.choice(JOBS)
        if r.random() < 0.5:
            return r.choice([f"Who {w}?", f"What do you call a person who {w}?"]), f"{cap(a(x))} {w}."
        return r.choice([f"What does {a(x)} do?", f"What is the job of {a(x)}?"]), f"{cap(a(x))} {w}."
    if k == 14:
        cat = r.choice(["animal", "fruit", "vegetable", "colour", "flower", "musical instrument", "country", "city", "vehicle", "drink"])
        if r.random() < 0.5:
            other = r.choice([x for x in CATEGORIES if x != cat and x in ("animal", "fruit", "vegetable", "colour", "vehicle", "country", "city", "drink")])
        else:
            other = cat
        x = r.choice([w for w in CATEGORIES[cat] if w not in ("orange",)])
        noun = x if x[0].isupper() or cat in ("colour", "drink") else a(x)
        if other == cat:
            return f"Is {noun} {a(cat)}?", f"Yes, {noun} is {a(cat)}."
        return f"Is {noun} {a(other)}?", f"No, {noun} is {a(cat)}."
    q, w = r.choice(MISC)
    return q, w


def sequence(r):
    which = r.choice(["days of the week", "months of the year", "seasons", "planets"])
    if which == "days of the week":
        return r.choice(["Name the days of the week.", "List all days of the week.", "What are the days of the week?"]), \
            "The days of the week are " + join(DAYS) + "."
    if which == "months of the year":
        return r.choice(["Name the months of the year.", "List all months.", "What are the months of the year?"]), \
            "The months of the year are " + join(MONTHS) + "."
    if which == "seasons":
        return r.choice(["Name the four seasons.", "What are the seasons?", "List the seasons of the year."]), \
            "The four seasons are spring, summer, autumn and winter."
    return r.choice(["Name the planets.", "What are the planets?"]), \
        "The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."


def listing(r):
    if r.random() < 0.08:
        return sequence(r)
    cat = r.choice(list(CATEGORIES))
    n = r.randint(2, min(6, len(CATEGORIES[cat])))
    if r.random() < 0.4:
        n = 3
    items = r.sample(CATEGORIES[cat], n)
    k = r.choice([WORDS[n], str(n)])
    what = plural(cat)
    if r.random() < 0.3:
        what = what.replace("colour", "color")
    style = r.random()
    if style < 0.45:
        q = r.choice([f"Name {k} {what}.", f"Tell me {k} {what}.", f"Can you name {k} {what}?", f"Give me {k} {what}.",
                      f"What are {k} {what}?"])
        return q, f"{cap(WORDS[n])} {what} are {join(items)}."
    if style < 0.7:
        q = r.choice([f"List {k} {what}.", f"Give me a list of {k} {what}.", f"Write a list of {k} {what}.", f"Make a list with {k} {what}."])
        return q, "\n".join("- " + i for i in items)
    q = r.choice([f"Write a numbered list of {k} {what}.", f"List {k} {what} as a numbered list.", f"Give me a numbered list of {k} {what}."])
    return q, "\n".join(f"{i + 1}. {w}" for i, w in enumerate(items))


def json_chat(r):
    """Returns (question, answer, the question needs a JSON system message)."""
    name, age = r.choice(BOYS + GIRLS), r.randint(3, 15)
    city = r.choice(list(CAPITALS.values()))
    k = r.randrange(8)
    if k == 0:
        q = r.choice([f"Write a JSON object with the name {name} and the age {age}.", f"Make a JSON object for {name}, age {age}.",
                      f"Give me JSON with name {name} and age {age}."])
        return q, json.dumps({"name": name, "age": age}), False
    if k == 1:
        text = r.choice([f"{name} is {age} years old and lives in {city}.", f"{name} lives in {city} and is {age} years old.",
                         f"My friend {name} is {age}. The home of {name} is in {city}."])
        q = r.choice([f"{text} Write this as JSON with name, age and city.", f"Give the name, age and city as JSON: {text}",
                      f"Make JSON with name, age and city from this text: {text}"])
        return q, json.dumps({"name": name, "age": age, "city": city}), False
    if k == 2:
        cat = r.choice(["colour", "animal", "fruit", "vegetable", "flower", "tree", "city", "country", "toy", "drink"])
        n = r.randint(2, 5)
        what = plural(cat)
        items = r.sample(CATEGORIES[cat], n)
        if r.random() < 0.5:
            q = r.choice([f"Make a JSON list of {WORDS[n]} {what}.", f"Write a JSON array with {n} {what}.", f"Give me a JSON array of {WORDS[n]} {what}."])
            return q, json.dumps(items), False
        q = r.choice([f"Name {WORDS[n]} {what}.", f"List {WORDS[n]} {what}.", f"Give me {WORDS[n]} {what}."])
        return q, json.dumps({what: items}), True
    if k == 3:
        country = r.choice(list(CAPITALS))
        q = r.choice([f"What is the capital of {country}?", f"Tell me the capital of {country}.", f"Name the capital of {country}."])
        return q, json.dumps({"country": country, "capital": CAPITALS[country]}), True
    if k == 4:
        x, y = r.randint(0, 20), r.randint(0, 20)
        if ("+", x, y) in HELD_OUT_PAIRS:
            return json_chat(r)
        q = r.choice([f"What is {x} plus {y}?", f"What is {x} + {y}?", f"How much is {x} plus {y}?"])
        return q, json.dumps({"result": x + y}), True
    if k == 5:
        pet, col = r.choice(PETS), r.choice(COLOURS)
        pn = r.choice(["Spot", "Coco", "Luna", "Rex", "Pip", "Momo", "Ruby", "Felix"])
        q = r.choice([f"My {pet} is {col} and its name is {pn}. Describe it as JSON.",
                      f"I have {a(col)} {pet} named {pn}. Write JSON with animal, colour and name."])
        return q, json.dumps({"animal": pet, "colour": col, "name": pn}), False
    if k == 6:
        x, y = r.choice(list(OPPOSITE_OF.items()))
        q = r.choice([f"What is the opposite of {x}?", f"Tell me the opposite of {x}."])
        return q, json.dumps({"word": x, "opposite": y}), True
    yes = r.random() < 0.5
    x, y = r.sample(range(0, 21), 2)
    q = f"Is {x} larger than {y}?"
    return q, json.dumps({"answer": x > y}), True


GREETINGS = [
    (["Hello", "Hi", "Hello!", "Hi!", "Hey", "Hi there", "Hello there!", "Good day"], ["Hello! How can I help you?"]),
    (["Good morning", "Good morning!"], ["Good morning! How can I help you?"]),
    (["Good evening", "Good evening!"], ["Good evening! How can I help you?"]),
    (["Good night", "Good night!"], ["Good night! Sleep well."]),
    (["How are you?", "How are you today?", "How do you do?", "Are you well?"], ["I am well, thank you. How can I help you?"]),
    (["Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Are you a robot?", "Tell me about yourself.",
      "Introduce yourself.", "Are you a person?"],
     ["I am tensord-tiny, a very small language model."]),
    (["What can you do?", "How can you help me?", "What do you know?", "Can you help me?", "Help", "Help me, please."],
     ["I can tell short stories, answer simple questions, add small numbers and write lists and JSON."]),
    (["Thank you", "Thanks", "Thank you!", "Thanks a lot!", "Thank you very much."], ["You are welcome!"]),
    (["Goodbye", "Bye", "Bye!", "See you", "Goodbye!", "See you tomorrow."], ["Goodbye! Have a nice day."]),
    (["Who made you?", "Where do you come from?", "How were you made?", "How were you trained?"],
     ["I was trained on small stories and questions for the tensord server."]),
    (["How big are you?", "How many parameters do you have?"], ["I am very small. I have fewer than four million parameters."]),
    (["Can you speak German?", "Do you speak French?", "Can you speak Spanish?"], ["I am sorry, I only know a little English."]),
    (["Say hello.", "Say hi.", "Say hello to me."], ["Hello!"]),
    (["Test", "test", "This is a test.", "Are you there?", "ping"], ["Yes, I am here. How can I help you?"]),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh."],
     ["Why did the hen cross the road? It wanted to get to the other side."]),
    (["What is your favourite colour?", "What is your favorite color?"], ["I like blue very much."]),
    (["I am sad.", "I feel sad."], ["I am sorry to hear that. I hope you feel better soon."]),
    (["I am happy.", "I feel good."], ["That is nice to hear!"]),
]


def small_talk(r):
    x = r.random()
    if x < 0.08:
        q = r.choice(["What is {} {} {}?", "How much is {} {} {}?", "Calculate {} {} {}."]).format(
            r.randint(100, 9999), r.choice(["plus", "minus", "times", "+", "-", "*", "divided by"]), r.randint(100, 9999))
        return q, "That is too hard for me. I only know small numbers."
    if x < 0.25:
        return r.choice(UNKNOWN_QUESTIONS), UNKNOWN_ANSWER
    if x < 0.5:
        q = r.choice(UNKNOWN_FORMS).format(r.choice(UNKNOWN_TOPICS))
        return q, UNKNOWN_ANSWER
    qs, ws = r.choice(GREETINGS)
    return r.choice(qs), r.choice(ws)


def tell_story(r):
    """A request for a story, and the story that fits it."""
    k = r.randrange(5)
    if k == 0:
        q = r.choice(["Tell me a story.", "Tell me a short story.", "Write a short story.", "Can you tell me a story?",
                      "I want to hear a story.", "Write a story.", "Please tell me a short story."])
        return q, story(r)
    if k == 1:
        w = r.choice(ANIMALS)
        q = r.choice(["Tell me a story about {}.", "Write a story about {}.", "Tell me a short story about {}.", "Write a short story about {}.",
                      "Can you tell me a story about {}?", "I want a story about {}."]).format(a(w))
        return q, story(r, r.choice([plot_animal, plot_two_friends]), wish=w)
    if k == 2:
        w = r.choice(BOYS + GIRLS)
        plot = r.choice([p for p in PLOTS if p is not plot_two_friends])
        q = r.choice(["Tell me a story about {}.", "Write a short story about {}.", "Tell me a short story about {}.",
                      "Write a story about a child named {}."]).format(w)
        return q, story(r, plot, main=w)
    if k == 3:
        w, toy = r.choice(BOYS + GIRLS), r.choice(TOYS)
        q = r.choice(["Tell me a story about {} and {}.", "Write a short story about {} and {}."]).format(w, a(toy))
        return q, story(r, r.choice([plot_lost, plot_gift]), main=w, wish=toy)
    w, an = r.choice(BOYS + GIRLS), r.choice(ANIMALS)
    q = r.choice(["Tell me a story about {} and {}.", "Write a short story about {} and {}."]).format(w, a(an))
    return q, story(r, plot_animal, main=w, wish=an)


def dress(r, q):
    """Small changes of how something is asked, which do not change the answer."""
    x = r.random()
    asks = q.endswith("?")
    if x < 0.70:
        return q
    if x < 0.76 and q.endswith(("?", ".")):
        return q[:-1]
    if x < 0.82:
        return q[0].lower() + q[1:]
    if x < 0.91 and not asks:
        first = q.split()[0]
        if first in ("Tell", "Name", "List", "Write", "Give", "Make", "Calculate", "Count", "Add"):
            return "Please " + q[0].lower() + q[1:]
        return q
    if x < 0.85:
        return "Hello! " + q
    if x < 0.88:
        return "Question: " + q
    if x < 0.90:
        return "Can you tell me: " + q
    if x < 0.93:
        return q + " Please answer in one sentence." if asks else q
    if x < 0.95:
        return "Please answer this question: " + q if asks else q
    if x < 0.97:
        return "I have a question. " + q if asks else q
    return q.lower()


def remember(r):
    """A chat in which a fact from the first turn is asked for later."""
    n = r.choice(BOYS + GIRLS)
    col, pet, age, city = r.choice(COLOURS), r.choice(PETS), r.randint(5, 15), r.choice(list(CAPITALS.values()))
    facts = [(f"My name is {n}.", f"Hello {n}! How can I help you?", "What is my name?", f"Your name is {n}."),
             (r.choice([f"I am {age} years old."]), "Thank you for telling me.", "How old am I?", f"You are {age} years old."),
             (r.choice([f"I live in {city}.", f"My home is in {city}."]), f"{city} is a nice city.", "Where do I live?", f"You live in {city}."),
             (f"I have {a(col)} {pet}.", f"That is nice! I like {plural(pet)}.", r.choice(["Which animal do I have?", "What pet do I have?"]), f"You have {a(col)} {pet}."),
             (f"My favourite colour is {col}.", f"{cap(col)} is a nice colour.", "What is my favourite colour?", f"Your favourite colour is {col}.")]
    f, reply, q, w = r.choice(facts)
    msgs = [("user", f), ("assistant", reply)]
    if r.random() < 0.3:
        mq, mw = r.choice([fact, arithmetic])(r)
        msgs += [("user", mq), ("assistant", mw)]
    return msgs + [("user", q), ("assistant", w)]


def chat(r):
    msgs = []
    if r.random() < 0.25:
        msgs.append(("system", r.choice(SYSTEMS)))
    k = r.random()
    if k < 0.36:
        s, qa = story(r)
        text = " ".join(s)
        q, w = r.choice(qa)
        form = r.randrange(6)
        if form == 5:
            msgs += [("user", text), ("assistant", r.choice(["That is a nice story.", "Thank you for the story."])), ("user", q)]
        else:
            msgs.append(("user", [f"{text}\n\n{q}", f"{text}\n{q}", f"{text} {q}", f"Read this story: {text}\n\nQuestion: {q}",
                                  f"{text}\n\nQuestion: {q}"][form]))
        msgs.append(("assistant", w))
        rest = [x for x in qa if x[0] != q]
        while rest and r.random() < 0.4:
            q, w = rest.pop(r.randrange(len(rest)))
            msgs += [("user", q), ("assistant", w)]
        return msgs
    if k < 0.47:
        q, (s, qa) = tell_story(r)
        msgs += [("user", dress(r, q) if r.random() < 0.5 else q), ("assistant", " ".join(s))]
        while qa and r.random() < 0.35:
            q, w = qa.pop(r.randrange(len(qa)))
            msgs += [("user", q), ("assistant", w)]
        return msgs
    if k < 0.55:
        q, w, needs_system = json_chat(r)
        if needs_system:
            if r.random() < 0.6:
                msgs = [("system", r.choice(JSON_SYSTEMS))]
            else:
                q = r.choice([f"Answer in JSON: {q}", f"{q} Answer in JSON.", f"{q} Give the answer as JSON."])
        elif r.random() < 0.2:
            msgs = [("system", r.choice(JSON_SYSTEMS))]
        return msgs + [("user", q), ("assistant", w)]
    if k < 0.58:
        return msgs + remember(r)
    make = {0: arithmetic, 1: arithmetic, 2: fact, 3: fact, 4: listing, 5: small_talk}
    turns = 1
    while turns < 4 and r.random() < 0.3:
        turns += 1
    for _ in range(turns):
        q, w = make[r.choice([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5])](r)
        msgs += [("user", dress(r, q)), ("assistant", w)]
    return msgs


def render(msgs):
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in msgs)


def normal(text):
    return re.sub(r"\s+", " ", text).strip().lower()


def held_out_prompts():
    """The held-out prompts: for each conversation its last message, with what it refers to."""
    with open(HELD_OUT_FILE, encoding="utf-8") as f:
        cases = json.load(f)
    out = []
    for case in cases:
        users = [m["content"] for m in case["messages"] if m["role"] == "user"]
        out.append([normal(u) for u in users])
    return out


def holds_out(text, prompts):
    """True when all user messages of a held-out case occur, in order, in the text."""
    low = normal(text)
    for users in prompts:
        at = 0
        for u in users:
            at = low.find(u, at)
            if at < 0:
                break
            at += len(u)
        else:
            return True
    return False


def documents(seed):
    r = random.Random(seed)
    prompts = held_out_prompts()
    while True:
        if r.random() < 0.12:
            doc = " ".join(story(r)[0])
            if r.random() < 0.2:
                doc += "\n\n" + " ".join(story(r)[0])
        else:
            doc = render(chat(r))
        if not holds_out(doc, prompts):
            yield doc + END


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--bytes", type=int, default=50_000_000, help="stop after this many bytes")
    p.add_argument("--check", metavar="FILE", help="only check that FILE holds no held-out prompt")
    p.add_argument("out", nargs="?", help="file to write (default: stdout)")
    args = p.parse_args()
    if args.check:
        with open(args.check, encoding="utf-8") as f:
            docs = f.read().split(END)
        prompts = held_out_prompts()
        bad = [d for d in docs if holds_out(d, prompts)]
        print(f"{len(docs)} documents, {len(bad)} with a held-out prompt")
        for d in bad[:3]:
            print(d)
        return 1 if bad else 0
    out = open(args.out, "w", encoding="utf-8") if args.out else sys.stdout
    n = 0
    for doc in documents(args.seed):
        out.write(doc)
        n += len(doc.encode("utf-8"))
        if n >= args.bytes:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
