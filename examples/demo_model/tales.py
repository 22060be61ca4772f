"""Told stories with a beginning, a trouble and an end, and small talk: what the demo model says on its own.

`tale(rng, ...)` plans a story (who, what, where, which trouble) and then writes it, so questions about it have
known answers. `tale_turns` wraps one in a chat; `small_talk` covers greetings and what the model cannot do.
"""

import random

from words import COLOURS, NAMES, NUMBERS, PETS, PLACES, THINGS, a

HEROES = ("dragon fox owl robot bear mouse rabbit cat dog wolf lion turtle hedgehog frog penguin whale elephant unicorn "
          "giant wizard witch knight princess prince king queen pirate sailor baker farmer fisherman gardener "
          "painter girl boy squirrel duck crow monkey tiger snail bee star snowman ghost fairy").split()
HERO_NAMES = ("Ember Pip Juno Bramble Hazel Rusty Nimbus Tilly Otto Willow Sunny Clover Finch Marlow Pearl Biscuit "
              "Dusty Maple Fern Comet Teddy Olive Basil Misty Jasper Robin").split()
TRAITS = "small brave kind shy clever young quiet curious gentle old".split()
LISTENING = ["I am listening. What would you like to know?", "Thank you for the story. Ask me anything about it.",
             "What a nice story. What would you like to know?"]
FEMALE = {"witch", "princess", "queen", "girl", "fairy"}
OBJECTS = [t for t in THINGS if t not in ("apple", "candle", "letter")] + ["crown", "sword", "map", "telescope"]


class Tale:
    """The plan of one story; `text` is its words and `facts` its question and answer pairs."""

    def __init__(self, rng, hero=None, thing=None, name=None, place=None):
        pick = rng.choice
        self.hero, self.thing = hero or pick(HEROES), thing or pick(OBJECTS)
        self.name = name or pick(HERO_NAMES)
        self.helper = pick([h for h in HEROES if h != self.hero])
        self.helper_name = pick([n for n in HERO_NAMES if n != self.name])
        self.trait, self.colour = pick(TRAITS), pick(COLOURS)
        self.home, self.place = place or pick(list(PLACES)), None
        self.place = pick([p for p in PLACES if p != self.home])
        self.he = "she" if self.hero in FEMALE or (self.name, "She") in NAMES else "he"
        self.his, self.him = ("her", "her") if self.he == "she" else ("his", "him")
        self.He = self.he.capitalize()
        plot = pick((lost, gift, storm, learn, lonely))
        body, self.facts = plot(rng, self)
        self.text = " ".join([opening(rng, self), *body])
        self.facts += [
            (f"What was the {self.hero}'s name?", f"The {self.hero}'s name was {self.name}."),
            (f"Where did {self.name} live?", f"{self.name} lived {at(self.home)}."),
            (f"What colour was the {self.thing}?", f"The {self.thing} was {self.colour}."),
            ("Who was the story about?", f"The story was about {a(self.hero)} named {self.name}."),
        ]


def tale(rng, **chosen):
    return Tale(rng, **chosen)


def at(place):
    return f"{PLACES[place]} the {place}"


def At(place):
    return at(place).capitalize()


def opening(rng, t):
    start = rng.choice(("Once upon a time", "Long ago", "Once", "One spring"))
    had = f"{a(t.colour + ' ' + t.thing)}"
    return rng.choice((
        f"{start}, there was {a(t.trait + ' ' + t.hero)} named {t.name} who lived {at(t.home)}.",
        f"{start}, {a(t.trait + ' ' + t.hero)} named {t.name} lived {at(t.home)}.",
    )) + " " + rng.choice((
        f"{t.name} had {had}, and {t.he} loved it very much.",
        f"{t.name} owned {had}, and {t.he} took it everywhere.",
        f"The best thing {t.name} had was {had}.",
    ))


def lost(rng, t):
    p = rng.choice
    return [
        p((f"One morning, the {t.thing} was gone.", f"One day, {t.name} woke up and the {t.thing} was gone.")),
        p((f"{t.name} looked under the bed and behind the door, but {t.he} could not find it.",
           f"{t.He} looked everywhere at home, but the {t.thing} was not there.")),
        p((f"\"Where can it be?\" said {t.name}, and {t.he} felt very sad.", f"{t.name} sat down and began to cry.")),
        f"Then {a(t.helper)} named {t.helper_name} came along.",
        p((f"\"Do not worry,\" said {t.helper_name}. \"I will help you look.\"",
           f"\"Two can look better than one,\" said {t.helper_name}.")),
        f"Together they walked to the {t.place}.",
        p((f"There, in a quiet corner, they saw something {t.colour}.", f"Something {t.colour} was shining there.")),
        p((f"It was the {t.thing}!", f"\"My {t.thing}!\" cried {t.name}.")),
        p((f"{t.name} was so happy that {t.he} danced all the way home.",
           f"{t.name} hugged {t.helper_name} and said thank you.")),
        p((f"From that day on, {t.name} and {t.helper_name} were the best of friends.",
           f"That night they shared a warm cake, and they were friends forever.")),
    ], [(f"Where did they find the {t.thing}?", f"They found the {t.thing} {at(t.place)}."),
        (f"Who helped {t.name}?", f"{t.helper_name} the {t.helper} helped {t.name}."),
        (f"What did {t.name} lose?", f"{t.name} lost the {t.colour} {t.thing}.")]


def gift(rng, t):
    p = rng.choice
    return [
        p((f"One day, {t.name} went for a walk to the {t.place}.", f"One evening, {t.name} went to the {t.place}.")),
        f"There {t.he} met {a(t.helper)} named {t.helper_name}.",
        p((f"{t.helper_name} looked sad and alone.", f"{t.helper_name} was sitting on a stone and crying.")),
        f"\"What is wrong?\" asked {t.name}.",
        p((f"\"It is my birthday, and I have no one to play with,\" said {t.helper_name}.",
           f"\"Everyone has a {t.thing} but me,\" said {t.helper_name}." if t.thing[0] not in "aeiou" else
           f"\"I have never had anything so fine as your {t.thing},\" said {t.helper_name}.")),
        p((f"{t.name} thought for a long time.", f"{t.name} looked at the {t.thing} and thought about it.")),
        f"Then {t.he} gave the {t.colour} {t.thing} to {t.helper_name}.",
        p((f"{t.helper_name} smiled like the sun.", f"{t.helper_name} could not stop smiling.")),
        p((f"\"You are very kind,\" said {t.helper_name}. \"Let us share it.\"",
           f"\"Thank you,\" said {t.helper_name}. \"We can use it together.\"")),
        p((f"They played until the stars came out, and {t.name} felt happier than ever before.",
           f"They played all day, and {t.name} learned that giving makes the heart warm.")),
    ], [(f"Who has the {t.thing} now?", f"{t.helper_name} has the {t.thing}."),
        (f"Who did {t.name} meet?", f"{t.name} met {a(t.helper)} named {t.helper_name}."),
        (f"Where did {t.name} go?", f"{t.name} went to the {t.place}."),
        (f"What did {t.name} give to {t.helper_name}?", f"{t.name} gave the {t.colour} {t.thing} to {t.helper_name}.")]


def storm(rng, t):
    p = rng.choice
    trouble, cry = p((("storm", "The wind was loud and the rain fell hard."), ("fog", "No one could see the path."),
                      ("snow storm", "The snow was deep and the night was cold."), ("flood", "The water was high and fast.")))
    return [
        f"One night, a great {trouble} came.", cry,
        p((f"{t.name} heard a small voice calling from the {t.place}.", f"Someone at home told {t.name} about a voice calling from the {t.place}.")),
        p((f"\"Help! I am lost!\" said the voice.", "\"Is anyone there?\" said the voice.")),
        p((f"{t.name} was afraid, but {t.he} took the {t.thing} and went out.",
           f"{t.name} took a deep breath, held the {t.thing} tight and ran outside.")),
        f"{At(t.place)}, {t.he} found {a(t.helper)} named {t.helper_name}.",
        p((f"\"Follow me,\" said {t.name}, \"and hold on to the {t.thing}.\"", f"\"Take the {t.thing} and hold my hand,\" said {t.name}.")),
        p(("Step by step, they walked through the dark.", "Slowly and carefully, they found the way back.")),
        p((f"At last they were safe at home, and they drank warm milk by the fire.",
           f"At last they saw the light of home, and they were safe.")),
        p((f"\"You are the bravest {t.hero} I know,\" said {t.helper_name}, and {t.name} felt proud.",
           f"Everyone was proud of {t.name}, and {t.helper_name} never forgot that night.")),
    ], [("What came one night?", f"A great {trouble} came."),
        (f"Who did {t.name} find?", f"{t.name} found {a(t.helper)} named {t.helper_name}."),
        (f"Where was {t.helper_name}?", f"{t.helper_name} was {at(t.place)}."),
        (f"What did {t.name} take?", f"{t.name} took the {t.thing}.")]


def learn(rng, t):
    p = rng.choice
    skill = p(("sing", "dance", "swim", "paint", "bake bread", "read", "climb", "tell jokes"))
    return [
        p((f"But {t.name} wanted to learn how to {skill}.", f"More than anything, {t.name} wished to {skill}.")),
        p((f"{t.He} tried every day, but it never went well.", f"The others laughed, because {t.he} could not do it.")),
        f"So {t.name} packed the {t.thing} and went to the {t.place}.",
        f"There lived a wise {t.helper} named {t.helper_name}.",
        f"\"Please teach me how to {skill},\" said {t.name}.",
        p((f"\"I will,\" said {t.helper_name}, \"but you must try a hundred times.\"",
           f"\"It takes time,\" said {t.helper_name}, \"so we will start today.\"")),
        p((f"{t.name} tried in the rain and in the sun.", f"Every day {t.he} tried a little more.")),
        p(("Some days were hard, and some days were fun.", f"When {t.he} was tired, {t.he} looked at the {t.thing} and tried again.")),
        f"And one fine day, {t.name} could {skill}.",
        p((f"When {t.he} came home, everyone clapped, and {t.name} was proud.",
           f"{t.name} thanked {t.helper_name} and went home with a happy heart.")),
    ], [(f"What did {t.name} want to learn?", f"{t.name} wanted to learn how to {skill}."),
        (f"Who was the teacher?", f"The teacher was {a(t.helper)} named {t.helper_name}."),
        (f"Where did {t.name} go?", f"{t.name} went to the {t.place}.")]


def lonely(rng, t):
    p = rng.choice
    return [
        p((f"But {t.name} had no friends, and the days were long.", f"But {t.name} was lonely, because no one came to play.")),
        p((f"\"I will find a friend today,\" said {t.name} one morning.", f"One morning, {t.he} said, \"Today I will find a friend.\"")),
        f"{t.He} took the {t.thing} and walked to the {t.place}.",
        p((f"On the way {t.he} sang a little song.", "The road was long, but the sun was warm.")),
        f"{At(t.place)}, {a(t.helper)} named {t.helper_name} was sitting alone.",
        p((f"\"May I sit with you?\" asked {t.name}.", f"\"Would you like to see my {t.thing}?\" asked {t.name}.")),
        p((f"{t.helper_name} looked up and smiled. \"I would love that.\"", f"\"Yes, please,\" said {t.helper_name}, \"I was lonely too.\"")),
        p((f"They talked and laughed until it was dark.", f"They played with the {t.thing} until the moon came up.")),
        p((f"\"Will you come back tomorrow?\" asked {t.helper_name}.", f"\"Come again tomorrow,\" said {t.helper_name}.")),
        p((f"\"Of course,\" said {t.name}, and {t.he} was never lonely again.",
           f"\"I will come every day,\" said {t.name}, and {t.he} kept {t.his} word.")),
    ], [(f"Who was sitting alone?", f"{t.helper_name} the {t.helper} was sitting alone."),
        (f"Why was {t.name} sad?", f"{t.name} was sad because {t.he} had no friends."),
        (f"Where did {t.name} go?", f"{t.name} went to the {t.place}."),
        (f"Who became {t.name}'s friend?", f"{t.helper_name} became {t.name}'s friend.")]


def request(rng):
    """How a user asks for a story, and the tale that answers it."""
    p = rng.choice
    wish = {}
    shape = rng.random()
    if shape < 0.08:
        about = ""
    else:
        wish["hero"] = p(HEROES)
        adjective = p(TRAITS) + " " if rng.random() < 0.2 else ""
        about = " about " + a(adjective + wish["hero"])
        if shape > 0.45:
            wish["thing"] = p(OBJECTS)
            about += f" and {a(wish['thing'])}"
        elif shape > 0.30:
            wish["name"] = p(HERO_NAMES + [n for n, _ in NAMES])
            about += f" named {wish['name']}"
        elif shape > 0.24:
            wish["place"] = p(list(PLACES))
            about += f" who lives {at(wish['place'])}"
    ask = p(("Tell me a story{}.", "Tell me a story{}.", "Tell me a story{}", "Can you tell me a story{}?", "Please tell me a story{}.",
             "Write a short story{}.", "I want to hear a story{}.", "Tell a story{}, please.", "tell me a story{}",
             "Write me a story{}.", "Could you tell a short story{}?")).format(about)
    return ask, tale(rng, **wish)


def tale_turns(rng):
    """A story on request and up to three questions about it."""
    ask, told = request(rng)
    turns = [("user", ask), ("assistant", told.text)]
    for question, answer in rng.sample(told.facts, rng.choice((0, 1, 2, 3))):
        turns += [("user", question), ("assistant", answer)]
    if rng.random() < 0.15:
        turns += [("user", rng.choice(("Thank you!", "I like that story.", "That was nice.", "Good story!"))),
                  ("assistant", rng.choice(("I am glad you liked it.", "Thank you. Shall I tell you another one?")))]
    return turns


SYSTEMS = ["You are a helpful storyteller.", "You are a helpful assistant.", "You are a kind teacher.",
           "Answer in one short sentence.", "You tell stories to children.", "You are the Yinian demo model."]
WHO = "I am the Yinian demo model, a very small language model. I can tell short stories and answer questions about them."


def system_turn(rng):
    if rng.random() < 0.3:
        return [("system", f"Your name is {rng.choice(HERO_NAMES)}.")]
    return [("system", rng.choice(SYSTEMS))]


def given_name(turns):
    """The name a system prompt gives the model, or None."""
    if turns and turns[0][1].startswith("Your name is "):
        return turns[0][1][len("Your name is "):-1]
    return None


TALK = [
    ("Hello!|Hello|Hi|Hi!|Hi there!|Hey|Good morning!|Good evening!|hello|hi",
     "Hello! Would you like to hear a story?|Hello! Tell me a story and ask me about it, or ask me for one."),
    ("How are you?|How are you today?|How do you do?", "I am fine, thank you. Would you like to hear a story?"),
    ("What can you do?|Help|How can you help me?|What do you know?",
     "I can tell short stories and answer questions about them. Try: Tell me a story about a fox and a lantern."),
    ("Thank you.|Thanks!|Thank you very much!|thanks", "You are welcome!"),
    ("Goodbye!|Bye!|Good night!|See you later.|bye", "Goodbye! Come back for another story."),
    ("What is Yinian?|What does Yinian mean?",
     "Yinian is an engine that runs language models inside other programs. The name means one thought."),
    ("Are you a person?|Are you a human?|Are you a robot?", "No, I am a very small language model made to test the Yinian engine."),
    ("How old are you?|How big are you?", "I am a very small model. I have less than four million numbers."),
]
BEYOND = [
    "What is the capital of {x}?", "Who was the first king of {x}?", "How do I get to {x}?", "What is the weather in {x}?",
    "How far is {x}?", "Write a program in {y}.", "Explain {y} to me.", "What is {y}?", "Can you help me with {y}?",
    "Translate this into {y}.", "Who invented {y}?", "What do you think about {y}?", "How does {y} work?",
]
_X = "France China Japan Italy Brazil Egypt India Canada Spain Peru London Paris Beijing Rome Kenya Norway the moon".split(" ")
_Y = ("Python|English|Chinese|football|gravity|the internet|music|history|physics|a computer|money|Java|chemistry|the law|"
      "a black hole|medicine|politics|Rust|quantum physics|French|the stock market|maths").split("|")
CANNOT = "I am a very small model, so I do not know that. I can tell short stories and answer questions about them."


def small_talk(rng, name):
    """One short exchange that is not about a story."""
    p = rng.choice
    pick = rng.random()
    if pick < 0.25 or (name and pick < 0.5):
        question = p(("Who are you?", "What are you?", "What is your name?", "who are you", "Tell me about yourself.",
                      "Introduce yourself."))
        return [("user", question), ("assistant", f"My name is {name}. {WHO}" if name else WHO)]
    if pick < 0.65:
        asks, answers = p(TALK)
        return [("user", p(asks.split("|"))), ("assistant", p(answers.split("|")))]
    if pick < 0.82:
        return [("user", p(BEYOND).format(x=p(_X), y=p(_Y))), ("assistant", CANNOT)]
    if pick < 0.92:
        n = rng.randint(2, 20)
        words = ", ".join(NUMBERS[1:n + 1])
        return [("user", p((f"Count to {NUMBERS[n]}.", f"Count from one to {NUMBERS[n]}.", f"Please count to {n}."))),
                ("assistant", words[0].upper() + words[1:] + ".")]
    if pick < 0.97:
        x, y = rng.randint(1, 10), rng.randint(1, 10)
        return [("user", p((f"What is {NUMBERS[x]} plus {NUMBERS[y]}?", f"What is {x} plus {y}?", f"What is {x} + {y}?"))),
                ("assistant", f"{NUMBERS[x].capitalize()} plus {NUMBERS[y]} is {NUMBERS[x + y]}.")]
    kind, words = p((("colours", COLOURS), ("animals", PETS), ("places", list(PLACES)), ("things", THINGS)))
    three = rng.sample(words, 3)
    return [("user", f"Name three {kind}."), ("assistant", f"{three[0].capitalize()}, {three[1]} and {three[2]}.")]


if __name__ == "__main__":
    for seed in range(3):
        print(tale(random.Random(seed)).text, "\n")
