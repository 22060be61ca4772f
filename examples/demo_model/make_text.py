#!/usr/bin/env python3
"""Writes the demo model's text: chats about tiny worlds, with answers that can be checked.

    python3 make_text.py [--seed 1] [--count 5]      prints sample chats

`chat(rng)` returns one training chat: a list of (role, text). `exam(rng)` returns one held-out
question: (messages, answer, kind). The answer to a question about a world is computed from the
world's state, never from its text.
"""

import argparse
import random

import tales
from words import (COLOURS, COUNTABLE, FEELINGS, FILLERS, NAMES, NUMBERS, PETS, PET_NAMES, PLACES, SPOTS, THINGS,
                   a, singular)

UNKNOWN = "The story does not say."


class Person:
    def __init__(self, name, pronoun):
        self.name, self.pronoun = name, pronoun
        self.place = self.feeling = self.reason = self.pet = None
        self.trail, self.counts = [], {}


class Thing:
    def __init__(self, noun, colour):
        self.noun, self.colour = noun, colour
        self.holder = self.spot = None


class World:
    """People, things, places and what happened so far. Each event appends one sentence and updates the state."""

    def __init__(self, rng, people, things):
        self.rng, self.lines, self.subject = rng, [], None
        self.people = [Person(*n) for n in rng.sample(NAMES, people)]
        self.things = [Thing(n, rng.choice(COLOURS)) for n in rng.sample(THINGS, things)]
        self.places = rng.sample(list(PLACES), 5)
        for thing in self.things:
            self.gain(thing)

    def say(self, person, text):
        """A sentence whose subject is a person; a pronoun or a connecting word now and then."""
        rng = self.rng
        subject = person.name
        if self.subject is person and rng.random() < 0.4:
            subject = person.pronoun
        lead = rng.choice(("Then ", "After that, ", "Later, ", "Soon ")) if self.lines and rng.random() < 0.25 else ""
        if lead and subject == person.pronoun:
            subject = subject.lower()
        self.lines.append(f"{lead}{subject} {text}.")
        self.subject = person

    def gain(self, thing):
        person = thing.holder = self.rng.choice(self.people)
        self.say(person, f"{self.rng.choice(('has', 'had', 'found', 'got'))} {a(thing.colour + ' ' + thing.noun)}")

    def call(self, thing):
        return f"the {thing.colour} {thing.noun}" if self.rng.random() < 0.3 else f"the {thing.noun}"

    def go(self):
        person = self.rng.choice(self.people)
        place = self.rng.choice([p for p in self.places if p != person.place])
        self.move(person, place)
        if self.rng.random() < 0.15:
            self.say(person, f"is {PLACES[place]} the {place} now")
        else:
            self.say(person, f"{self.rng.choice(('went', 'walked', 'ran', 'went', 'came'))} to the {place}")

    def move(self, person, place):
        person.place = place
        person.trail.append(place)

    def give(self):
        held = [t for t in self.things if t.holder]
        if not held or len(self.people) < 2:
            return self.go()
        thing = self.rng.choice(held)
        giver, taker = thing.holder, self.rng.choice([p for p in self.people if p is not thing.holder])
        if giver.place and taker.place and giver.place != taker.place:
            self.move(giver, taker.place)
            self.say(giver, f"met {taker.name} {PLACES[taker.place]} the {taker.place}")
        verb = self.rng.choice(("gave", "gave", "handed", "passed"))
        if self.rng.random() < 0.25:
            self.say(giver, f"gave {taker.name} {self.call(thing)}")
        else:
            self.say(giver, f"{verb} {self.call(thing)} to {taker.name}")
        thing.holder = taker

    def put(self):
        thing = self.rng.choice(self.things)
        if thing.holder:
            person, thing.spot = thing.holder, self.rng.choice(SPOTS)
            thing.holder = None
            self.say(person, f"{self.rng.choice(('put', 'left', 'hid'))} {self.call(thing)} {thing.spot}")
        else:
            thing.holder, thing.spot = self.rng.choice(self.people), None
            self.say(thing.holder, f"{self.rng.choice(('took', 'picked up'))} {self.call(thing)}")

    def count(self):
        person, rng = self.rng.choice(self.people), self.rng
        known = [k for k, n in person.counts.items() if 0 < n < 9]
        if known and rng.random() < 0.6:
            noun = rng.choice(known)
            if rng.random() < 0.5:
                more = rng.randint(1, 3)
                person.counts[noun] += more
                return self.say(person, f"found {NUMBERS[more]} more {noun if more > 1 else singular(noun)}")
            less = rng.randint(1, min(3, person.counts[noun]))
            person.counts[noun] -= less
            verb = rng.choice(("lost", "gave away", "dropped"))
            return self.say(person, f"{verb} {NUMBERS[less]} {noun if less > 1 else singular(noun)}")
        noun, number = rng.choice([c for c in COUNTABLE if c not in person.counts]), rng.randint(2, 9)
        person.counts[noun] = number
        self.say(person, f"{rng.choice(('has', 'found', 'picked', 'had'))} {NUMBERS[number]} {noun}")

    def feel(self):
        person = self.rng.choice(self.people)
        person.feeling, person.reason = self.rng.choice(FEELINGS)
        if self.rng.random() < 0.3:
            person.reason = None
            return self.say(person, f"{self.rng.choice(('was', 'felt'))} {person.feeling}")
        self.say(person, f"{self.rng.choice(('was', 'felt'))} {person.feeling} because {person.reason}")

    def adopt(self):
        free = [p for p in self.people if not p.pet]
        if not free:
            return self.go()
        person = self.rng.choice(free)
        person.pet = (self.rng.choice(PETS), self.rng.choice(PET_NAMES))
        self.say(person, f"has {a(person.pet[0])} {self.rng.choice(('named', 'called'))} {person.pet[1]}")

    def filler(self):
        self.lines.append(self.rng.choice(FILLERS))
        self.subject = None

    def happen(self, events):
        for _ in range(events):
            event = self.rng.choices((self.go, self.give, self.put, self.count, self.feel, self.adopt, self.filler),
                                     (8, 5, 4, 3, 3, 1, 1))[0]
            event()
        return self


def new_world(rng):
    return World(rng, rng.choice((1, 2, 2, 2, 3, 3)), rng.choice((1, 1, 2, 2, 3))).happen(rng.randint(1, 8))


# Each asker takes (rng, world) and returns (question, answer) or None when the world has nothing to ask about.

def ask_place(rng, w):
    p = rng.choice(w.people)
    if not p.place:
        return (f"Where is {p.name}?", UNKNOWN) if rng.random() < 0.3 else None
    return rng.choice((
        (f"Where is {p.name}?", f"{p.name} is {PLACES[p.place]} the {p.place}."),
        (f"Where is {p.name} now?", f"{p.name} is {PLACES[p.place]} the {p.place}."),
        (f"Where did {p.name} go?", f"{p.name} went to the {p.place}.")))


def ask_first(rng, w):
    p = rng.choice(w.people)
    if len(p.trail) < 2:
        return None
    return f"Where did {p.name} go first?", f"{p.name} went to the {p.trail[0]} first."


def ask_thing(rng, w):
    t = rng.choice(w.things)
    question = rng.choice((f"Where is the {t.noun}?", f"Where is the {t.noun} now?", f"Where is the {t.colour} {t.noun}?"))
    if t.spot and not t.holder:
        return question, f"The {t.noun} is {t.spot}."
    where = f" {PLACES[t.holder.place]} the {t.holder.place}" if t.holder.place else ""
    return question, f"The {t.noun} is with {t.holder.name}{where}."


def ask_holder(rng, w):
    t = rng.choice(w.things)
    question = rng.choice((f"Who has the {t.noun}?", f"Who has the {t.noun} now?", f"Who has the {t.colour} {t.noun}?"))
    if t.holder:
        return question, f"{t.holder.name} has the {t.noun}."
    return question, f"No one has the {t.noun}. It is {t.spot}."


def ask_colour(rng, w):
    t = rng.choice(w.things)
    return rng.choice((f"What colour is the {t.noun}?", f"What color is the {t.noun}?")), f"The {t.noun} is {t.colour}."


def ask_carry(rng, w):
    p = rng.choice(w.people)
    held = [a(f"{t.colour} {t.noun}") for t in w.things if t.holder is p]
    if any(p.counts.values()) or p.pet or (not held and rng.random() < 0.6):
        return None
    question = rng.choice((f"What does {p.name} have?", f"What is {p.name} holding?"))
    if not held:
        return question, f"{p.name} has nothing."
    listed = held[0] if len(held) == 1 else ", ".join(held[:-1]) + " and " + held[-1]
    return question, f"{p.name} has {listed}."


def ask_count(rng, w):
    p = rng.choice(w.people)
    if not p.counts:
        return None
    noun = rng.choice(list(p.counts))
    n = p.counts[noun]
    question = rng.choice((f"How many {noun} does {p.name} have?", f"How many {noun} does {p.name} have now?"))
    return question, f"{p.name} has {NUMBERS[n]} {singular(noun) if n == 1 else noun}."


def ask_feeling(rng, w):
    p = rng.choice(w.people)
    if not p.feeling:
        return (f"How did {p.name} feel?", UNKNOWN) if rng.random() < 0.3 else None
    if p.reason and rng.random() < 0.4:
        return f"Why was {p.name} {p.feeling}?", f"{p.name} was {p.feeling} because {p.reason}."
    return rng.choice((f"How did {p.name} feel?", f"How does {p.name} feel?", f"How was {p.name} feeling?")), \
        f"{p.name} felt {p.feeling}."


def ask_yes_no(rng, w):
    p = rng.choice(w.people)
    if rng.random() < 0.5 and p.place:
        place = p.place if rng.random() < 0.5 else rng.choice(w.places)
        answer = "Yes" if place == p.place else "No"
        return f"Is {p.name} {PLACES[place]} the {place}?", f"{answer}, {p.name} is {PLACES[p.place]} the {p.place}."
    t = rng.choice(w.things)
    if not t.holder:
        return f"Does {p.name} have the {t.noun}?", f"No, the {t.noun} is {t.spot}."
    answer = "Yes" if t.holder is p else "No"
    return f"Does {p.name} have the {t.noun}?", f"{answer}, {t.holder.name} has the {t.noun}."


def ask_pet(rng, w):
    p = rng.choice(w.people)
    if not p.pet:
        return None
    kind, name = p.pet
    return rng.choice((
        (f"What is the {kind}'s name?", f"The {kind} is named {name}."),
        (f"What pet does {p.name} have?", f"{p.name} has {a(kind)} named {name}."),
        (f"Who is {name}?", f"{name} is {p.name}'s {kind}.")))


def ask_who_is_at(rng, w):
    place = rng.choice([p.place for p in w.people if p.place] or [None])
    if not place:
        return None
    there = [p.name for p in w.people if p.place == place]
    listed = there[0] if len(there) == 1 else ", ".join(there[:-1]) + " and " + there[-1]
    return f"Who is {PLACES[place]} the {place}?", f"{listed} {'is' if len(there) == 1 else 'are'} {PLACES[place]} the {place}."


def ask_unknown(rng, w):
    name = rng.choice([n for n, _ in NAMES if n not in {p.name for p in w.people}])
    noun = rng.choice([t for t in THINGS if t not in {x.noun for x in w.things}])
    return rng.choice((f"Where is {name}?", f"Who has the {noun}?", f"Where is the {noun}?",
                       f"What colour is the {noun}?", f"How did {name} feel?")), UNKNOWN


ASKERS = {
    "place": (ask_place, 6), "first place": (ask_first, 1), "thing": (ask_thing, 6), "holder": (ask_holder, 5),
    "colour": (ask_colour, 2), "carry": (ask_carry, 2), "count": (ask_count, 4), "feeling": (ask_feeling, 3),
    "yes or no": (ask_yes_no, 3), "pet": (ask_pet, 2), "who is at": (ask_who_is_at, 2), "not said": (ask_unknown, 1),
}


def question_about(rng, world):
    """A random question this world can answer: (question, answer, kind)."""
    while True:
        kind = rng.choices(list(ASKERS), [w for _, w in ASKERS.values()])[0]
        found = ASKERS[kind][0](rng, world)
        if found:
            return (*found, kind)


def world_turns(rng, questions):
    """A story told by the user, then questions; some stories go on between questions."""
    world = new_world(rng)
    style = rng.random()
    turns, asked = [], set()
    if style < 0.15:
        lead = rng.choice(("Here is a story. ", "Listen to this. ", "Let me tell you something. "))
        turns += [("user", lead + " ".join(world.lines)), ("assistant", rng.choice(tales.LISTENING))]
    for i in range(questions):
        question, answer, _ = question_about(rng, world)
        if question in asked:
            continue
        asked.add(question)
        text = question
        if i == 0 and not turns:
            text = " ".join(world.lines) + rng.choice((" ", " ", "\n")) + question
        elif i and rng.random() < 0.3:
            before = len(world.lines)
            world.happen(rng.randint(1, 2))
            question, answer, _ = question_about(rng, world)
            asked = {question}
            text = " ".join(world.lines[before:]) + " " + question
        turns += [("user", text), ("assistant", answer)]
    return turns


def chat(rng):
    """One chat of one to about eight turns: (role, text) pairs, or [("text", story)] for plain continuation."""
    kind = rng.random()
    if kind < 0.03:
        return [("text", tales.tale(rng).text)]
    turns = tales.system_turn(rng) if rng.random() < 0.25 else []
    name = tales.given_name(turns)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        pick = rng.random()
        if pick < 0.70:
            turns += world_turns(rng, rng.choice((1, 2, 3, 4, 5)))
        elif pick < 0.88:
            turns += tales.tale_turns(rng)
        else:
            turns += tales.small_talk(rng, name)
    return turns


def exam(rng):
    """One held-out question in one user message: (messages, exact answer, kind)."""
    world = new_world(rng)
    question, answer, kind = question_about(rng, world)
    return [{"role": "user", "content": " ".join(world.lines) + " " + question}], answer, kind


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.count):
        for role, text in chat(rng):
            print(f"{role}: {text}")
        print()


if __name__ == "__main__":
    main()
