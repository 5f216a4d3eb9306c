"""Ordinary words and prompts: what a change does to these is what it does to anything."""

from collections.abc import Iterator
from itertools import chain
from typing import Final

TEMPLATES: Final = ("{}", "a photo of {}", "an image of {}")
"""A phrase is looked at in each of these; the mean of its inputs counts."""

_THINGS: Final = """
acorn accordion ambulance anchor ant apple apron arch armchair armour arrow astronaut atlas avocado axe baby
bagel bakery ball balloon bamboo banana bandage banjo barn barrel basin basket bat bath beach bead bean bear
beaver bed bee beehive beetle bell belt bench berry bicycle bird biscuit blanket blossom boat bolt bone book
boot bottle bow bowl box bracelet branch bread brick bride bridge broccoli broom brush bubble bucket bus
bush butter butterfly button cabbage cabin cable cactus cage cake calendar camel camera camp canal candle
candy canoe canyon cap cape car card cargo carpet carrot cart castle cat cathedral cave ceiling cello chain
chair chalk cheese chef cherry chess chest chicken child chimney chocolate church cinema circle circus city
clay cliff clock cloud clover clown coat coconut coffee coin comb compass computer cookie coral corn
corridor cottage cotton couch cow crab crane crayon crib cricket crocodile crow crown crystal cup cupboard
curtain cushion cyclist dagger daisy dancer deer desert desk diamond diver doctor dog doll dolphin donkey
door dove dragon drawer dress drum duck dune dust eagle ear earring easel egg elephant elevator emerald
engine envelope eye fabric factory falcon fan farm farmer feather fence fern ferry field fig finger fire
fireplace fish flag flame flamingo flask flower flute fog forest fork fort fountain fox frame frog fruit
garage garden garlic gate ghost giraffe glacier glass glove goat gold goose gorilla grape grass guitar hail
hairbrush hall hammer hammock hamster hand harbour harp hat hawk heart hedge helicopter helmet hen hill
hippo honey horse hospital hotel hourglass house hut ice iguana iron island ivory jacket jar jeep jelly
jewel jug jungle kangaroo kayak kettle key king kitchen kite kitten knife knight ladder lake lamb lamp
lantern laptop lawn leaf leather lemon leopard letter library lighthouse lily lime lion lizard lobster lock
locomotive log lynx machine magnet mailbox mango map maple marble market mask mat meadow medal melon
microphone mill mirror moon moose mosque moss moth mountain mouse mug museum mushroom nail necklace needle
nest net newspaper night nurse nut oak oar oasis ocean octopus office olive onion orange orchard orchid
ostrich otter oven owl ox oyster paddle page pail paintbrush palace palm pan panda paper parachute park
parrot path peach peacock peanut pear pearl pebble pelican pen pencil penguin pepper piano pie pig pigeon
pillow pilot pine pineapple pipe pirate plane planet plate plum pocket poem pond pony poppy port postcard
pot potato prince pumpkin puppet purse puzzle pyramid queen quilt rabbit raccoon radio raft rail rain
rainbow raven reef ribbon rice ring river road robe robin robot rock rocket roof room rope rose ruby rug
ruin sail sailor salad salt sand sandal sandwich satellite saw scarf school scissors seal seashell shadow
shark sheep shelf shell ship shirt shoe shop shore shovel silk silver singer skirt skull sky sled snail
snake snow soap soldier soup spider spoon spring square squirrel stable stage stair star statue stone storm
stove straw stream street suitcase sun swan sword table tank teacher tea temple tent thread throne tiger
tile toast tomato tower toy tractor train tree triangle truck trumpet tulip tunnel turkey turtle umbrella
valley van vase village vine violin volcano wagon wall walnut watch water waterfall wave well whale wheat
wheel whistle window wine wing winter wolf wood wool worm yacht zebra
"""

# Pairs of things in prompts like people's own: for the usual spread of inputs, not for comparison.
_SCENES: Final = (
    "a {} next to a {}",
    "a {} in front of a {}, in the morning light",
    "a large painting of a {} and a {}",
    "an old {} with a {} on it",
    "a close up of a {} made of {}",
)


def background_phrases() -> tuple[str, ...]:
    """Common English nouns; the usual strength of a change is its median over them."""
    return tuple(_THINGS.split())


def scene_prompts() -> Iterator[str]:
    """Prompts of two nouns each, always the same ones."""
    things = background_phrases()
    pairs = chain(
        zip(things, things[len(things) // 2 :] + things[: len(things) // 2], strict=True),
        zip(things, reversed(things), strict=True),
    )
    for number, (first, second) in enumerate(pairs):
        yield _SCENES[number % len(_SCENES)].format(first, second)
