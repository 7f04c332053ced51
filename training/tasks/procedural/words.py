"""Word lists of the procedural tasks. Each word is in only one list, so its category is unambiguous."""

from __future__ import annotations

from functools import cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LISTS = {
    "mammal": """dog cat horse cow pig sheep goat lion tiger bear wolf fox rabbit mouse deer elephant giraffe zebra
        monkey camel donkey squirrel hedgehog kangaroo panda leopard otter beaver badger hamster buffalo moose""",
    "bird": """eagle sparrow pigeon parrot owl penguin swan goose duck crow robin hawk ostrich peacock seagull stork
        heron flamingo pelican falcon raven magpie woodpecker canary""",
    "fish": """salmon trout tuna shark cod herring carp pike eel sardine anchovy haddock halibut mackerel piranha
        stingray swordfish catfish goldfish sturgeon""",
    "insect": """ant bee wasp beetle butterfly moth mosquito grasshopper ladybird dragonfly termite cockroach flea
        hornet locust aphid""",
    "reptile": """snake lizard crocodile turtle tortoise alligator gecko iguana chameleon cobra viper rattlesnake""",
    "fruit": """apple banana pear grape cherry peach plum mango lemon melon pineapple strawberry raspberry blueberry
        kiwi fig apricot papaya coconut grapefruit watermelon blackberry pomegranate cranberry""",
    "vegetable": """carrot potato onion cabbage spinach lettuce broccoli cauliflower celery turnip radish beetroot
        garlic leek pumpkin zucchini eggplant asparagus artichoke parsnip""",
    "drink": """water milk coffee tea juice beer wine lemonade cocoa cider whisky vodka rum gin brandy champagne
        soda smoothie""",
    "dish": """soup pizza pasta sandwich salad burger omelette pancake stew curry lasagne risotto casserole goulash
        paella meatloaf""",
    "tool": """hammer saw drill wrench screwdriver pliers chisel shovel rake axe spade ladder pickaxe trowel crowbar
        mallet hoe clamp""",
    "vehicle": """car bus train truck bicycle motorcycle tram ferry boat ship helicopter taxi van scooter tractor
        submarine canoe yacht ambulance minibus kayak""",
    "piece of clothing": """shirt trousers jacket coat dress skirt sock shoe boot hat scarf glove sweater blouse vest
        jeans pyjamas sandal cardigan raincoat""",
    "piece of furniture": """table chair sofa bed wardrobe desk shelf bookcase cupboard stool bench armchair dresser
        cabinet couch nightstand""",
    "musical instrument": """piano guitar violin drum flute trumpet cello harp clarinet saxophone trombone oboe banjo
        accordion tuba ukulele harmonica xylophone""",
    "job": """teacher doctor nurse farmer baker butcher carpenter plumber electrician lawyer judge pilot sailor soldier
        waiter tailor barber dentist librarian journalist gardener mechanic painter cashier""",
    "colour": """red blue green yellow purple brown black white grey pink turquoise beige crimson maroon magenta
        scarlet indigo""",
    "body part": """head hand foot arm leg nose ear eye mouth knee elbow shoulder finger toe neck chin thumb ankle wrist
        stomach tongue forehead""",
    "kitchen item": """pan kettle spoon fork knife plate bowl cup mug saucepan toaster whisk ladle teapot grater
        colander spatula jug""",
    "sport": """football tennis basketball hockey golf rugby volleyball badminton baseball swimming boxing rowing
        skiing fencing archery judo karate cycling gymnastics wrestling""",
    "tree": """oak pine maple birch willow elm cedar spruce beech poplar sycamore fir larch yew""",
    "flower": """rose tulip daisy lily daffodil orchid sunflower lavender poppy carnation marigold petunia snowdrop
        buttercup""",
    "metal": """iron copper silver gold tin zinc steel bronze brass aluminium nickel titanium platinum""",
    "weather word": """rain snow wind fog storm hail thunder sleet drizzle frost breeze hurricane sunshine""",
    "shape": """circle square triangle rectangle oval hexagon pentagon cube sphere cone cylinder octagon rhombus""",
    "feeling": """joy anger fear sadness surprise disgust pride shame envy guilt grief boredom relief jealousy""",
    "building": """house school hospital church museum library castle factory hotel theatre barn palace airport prison
        bakery stadium warehouse temple cottage cinema""",
    "room": """kitchen bathroom bedroom garage attic cellar hallway pantry basement lounge nursery
        closet ballroom classroom playroom""",
}

CATEGORIES: dict[str, tuple[str, ...]] = {name: _words(words) for name, words in _LISTS.items()}
"""Words by the singular name of their category."""

PLURALS = {
    "fish": "fish",
    "dish": "dishes",
    "body part": "body parts",
    "piece of clothing": "pieces of clothing",
    "piece of furniture": "pieces of furniture",
    "vegetable": "vegetables",
}

ANIMAL_KINDS = ("mammal", "bird", "fish", "insect", "reptile")

COUNTABLE = tuple(
    name
    for name in CATEGORIES
    if name not in ("drink", "colour", "sport", "metal", "weather word", "feeling", "piece of clothing", "dish")
)
"""Categories whose words can follow "a" and an adjective."""

PLAIN_WORDS = _words(
    """idea area opera ocean island engine evening event exam edge effort element empire energy entry error essay estate
    ice image inch income index inside issue item object office oil option order origin outside oven owner uncle union
    unit user umbrella uniform universe avenue address advice affair agenda alarm album alley amount angle answer arch
    army arrow article aunt autumn award menu zero hero photo radio video studio echo tempo volcano drama extra formula
    future culture minute nature picture rescue statue value venue virtue tissue league queue tune tube rule duty fury
    jury luck lunch bubble bucket budget button number summer supper tunnel turbine world street letter window mountain
    river market winter spring corner system thing person story morning night paper money moment reason dream"""
)
"""Words without a category; many have vowels that are rare in the categories."""

WORDS = tuple(word for words in CATEGORIES.values() for word in words)

ADJECTIVES = _words(
    """small big old new young tall lovely strange famous plain rare common little huge quiet noisy happy tired clever
    lazy friendly hungry brave gentle"""
)

FIRST_NAMES = _words(
    """Anna Ben Clara David Emma Felix Grace Henry Irene Jack Karen Leo Maria Noah Olivia Peter Quinn Rosa Samuel Tina
    Ursula Victor Wendy Xavier Yusuf Zoe Amir Bruno Chloe Diego Elena Farah Gustav Hana Ivan Julia Kofi Lena Marco Nadia
    Oscar Priya Ravi Sofia Tomas Uma Vera Walter"""
)
LAST_NAMES = _words(
    """Adams Brown Carter Diaz Evans Fischer Garcia Hansen Ito Jones Kim Lopez Miller Novak Okafor Patel Quigley Rossi
    Smith Taylor Ueda Vargas Wilson Xu Young Zhang Ahmed Bauer Costa Dubois Eriksen Ferrari Gupta Hughes Ivanov Jensen
    Keller Larsen Moreau Nguyen Ortiz Popov Reyes Silva Turner Walker"""
)
CITIES = _words(
    """Oslo Paris Rome Madrid Berlin Vienna Lisbon Dublin Athens Prague Warsaw Tokyo Seoul Delhi Cairo Lima Quito Boston
    Chicago Toronto Sydney Nairobi Lagos Havana"""
)


def plural(category: str) -> str:
    """The plural of a category's name."""
    return PLURALS.get(category, f"{category}s")


def with_article(noun: str) -> str:
    """The noun with `a` or `an`, according to its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@cache
def split_words(words: tuple[str, ...], *, test: bool) -> tuple[str, ...]:
    """The words for test rows (every third word), or those for training rows (all others)."""
    return tuple(word for i, word in enumerate(words) if (i % 3 == 2) == test)
