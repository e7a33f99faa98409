"""The vocabulary of the planted pools: things by their kind, and words that stand for nothing of these kinds."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``key:value key:value``."""
    return tuple((key, value) for key, value in (pair.split(":") for pair in text.split()))


KINDS: dict[str, tuple[str, ...]] = {
    "bird": _words(
        "sparrow eagle robin pigeon parrot penguin ostrich falcon raven magpie pelican flamingo heron stork "
        "peacock canary woodpecker vulture seagull nightingale"
    ),
    "fish": _words(
        "salmon trout herring mackerel sardine anchovy haddock halibut sturgeon catfish swordfish goldfish "
        "barracuda piranha cod tuna eel minnow flounder tilapia"
    ),
    "flower": _words(
        "tulip daisy lily orchid sunflower daffodil lavender marigold jasmine carnation peony hyacinth begonia "
        "petunia dahlia poppy primrose geranium magnolia chrysanthemum"
    ),
    "fruit": _words(
        "apple banana cherry grape mango papaya pineapple strawberry raspberry blueberry apricot lemon melon pear "
        "plum coconut kiwi fig pomegranate watermelon"
    ),
    "tool": _words(
        "hammer screwdriver wrench pliers chisel drill shovel rake axe crowbar saw spade hatchet pickaxe trowel "
        "mallet sledgehammer hoe sickle tongs"
    ),
    "instrument": _words(
        "violin guitar piano trumpet flute clarinet saxophone trombone cello harp banjo mandolin accordion "
        "xylophone tuba oboe bassoon ukulele harmonica tambourine"
    ),
    "vehicle": _words(
        "car truck bus bicycle motorcycle tram lorry scooter tractor ambulance limousine taxi submarine "
        "helicopter ferry canoe yacht airplane minivan locomotive"
    ),
    "garment": _words(
        "shirt trousers skirt jacket sweater coat dress blouse cardigan jeans shorts scarf pyjamas vest sock "
        "glove hat raincoat kilt tunic"
    ),
}
"""Label -> things of that kind. No word stands twice, and none occurs in another family."""

PLAIN = _words(
    "anchor autumn basket blanket bottle branch bridge button candle carpet castle circle corner cotton "
    "dragon engine feather forest garden harbour island kitchen ladder lantern marble meadow mirror mountain "
    "needle painter pencil planet pocket rabbit ribbon river saddle shadow silver spider summer ticket tunnel "
    "valley velvet village window winter yellow barrel chimney curtain desert diamond doctor farmer hospital "
    "lawyer magnet market museum orchard oxygen palace parcel pepper powder prison puzzle sailor school "
    "sister statue sugar teacher temple thunder travel"
)
"""Words for families about letters."""

OPPOSITES = _pairs(
    "hot:cold big:small fast:slow happy:sad light:dark early:late rich:poor strong:weak high:low old:young "
    "empty:full open:closed wet:dry hard:soft up:down good:bad near:far loud:quiet clean:dirty sweet:sour "
    "thick:thin long:short wide:narrow deep:shallow cheap:expensive brave:cowardly rough:smooth sharp:blunt "
    "top:bottom left:right true:false first:last day:night buy:sell push:pull win:lose start:finish love:hate "
    "friend:enemy arrive:depart"
)

CAPITALS = _pairs(
    "Albania:Tirana Angola:Luanda Australia:Canberra Austria:Vienna Belgium:Brussels Bulgaria:Sofia "
    "Canada:Ottawa Chile:Santiago China:Beijing Croatia:Zagreb Cuba:Havana Denmark:Copenhagen Ecuador:Quito "
    "Egypt:Cairo Estonia:Tallinn Finland:Helsinki France:Paris Germany:Berlin Ghana:Accra Greece:Athens "
    "Hungary:Budapest Iceland:Reykjavik Iran:Tehran Iraq:Baghdad Ireland:Dublin Italy:Rome Jamaica:Kingston "
    "Japan:Tokyo Jordan:Amman Kenya:Nairobi Latvia:Riga Lebanon:Beirut Lithuania:Vilnius Morocco:Rabat "
    "Nepal:Kathmandu Norway:Oslo Peru:Lima Poland:Warsaw Portugal:Lisbon Romania:Bucharest"
)

WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ORDINALS = _words("first second third fourth fifth")
CONSONANTS = "bcdfghjklmnpqrstvwxz"
UNITS = (("minutes", "hours", 60), ("metres", "kilometres", 1000), ("days", "weeks", 7), ("inches", "feet", 12))

NAMES = _words(
    "Aaron Abigail Adele Adrian Agnes Albert Alice Alma Amanda Amos Andrea Angela Anna Anton Arthur "
    "Astrid Audrey August Barbara Beatrice Benjamin Bernard Bertha Blanche Boris Brigitte Bruno Camilla "
    "Carl Caroline Cecilia Celia Charlotte Christian Clara Claudia Clement Conrad Cora Cornelius Daniel "
    "Daphne Deborah Diana Dora Dorothy Edgar Edith Edmund Edward Eleanor Elias Elisabeth Ella Elsa Emil "
    "Emma Eric Erika Ernest Esther Eugene Eva Felix Ferdinand Flora Florian Frances Frank Frederick Frida "
    "Gabriel Gerda Gertrude Gilbert Gloria Greta Gustav Hannah Harold Harriet Hector Helen Henry Herbert "
    "Hilda Hubert Hugo Ida Ingrid Irene Iris Isaac Isabel Ivan Jacob Jane Jasper Joanna Joel Johan Jonas "
    "Josephine Judith Julia Julius Karen Kasper Katharine Konstantin Laura Leah Leo Leonard Lewis Linda "
    "Louis Louise Lucas Lucy Lydia Mabel Magnus Marcel Margaret Maria Marianne Mark Martha Martin Matilda "
    "Maurice Max Melanie Michael Mildred Miriam Monica Nadia Naomi Natalie Nathan Nicholas Nina Nora "
    "Norman Olga Oliver Oscar Otto Pamela Patricia Paul Paula Peter Philip Rachel Ralph Rebecca Richard "
    "Rita Robert Rosa Ruth Samuel Sarah Sebastian Selma Simon Stella Susan Sylvia Teresa Thea "
    "Theodore Thomas Tobias Ursula Valentin Vera Victor Victoria Vincent Viola Walter Wanda Wilhelm "
    "William Xavier Yvonne Zoe"
)
"""Customers. No name stands twice, nor in another family."""
GOODS = _words(
    "lamp kettle toaster vase sofa desk pillow teapot clock radio camera backpack suitcase umbrella broom "
    "bucket ruler stapler notebook calendar dictionary telescope microscope keyboard printer projector "
    "headset speaker frame mug plate spoon bowl tray towel mattress wardrobe bookshelf stool rug"
)
CITIES = _words(
    "Bergen Porto Lyon Marseille Hamburg Munich Seville Valencia Naples Turin Geneva Basel Antwerp Ghent "
    "Rotterdam Utrecht Aarhus Malmo Uppsala Turku Gdansk Krakow Brno Graz Salzburg Manchester Liverpool "
    "Leeds Glasgow Cardiff Boston Chicago Denver Houston Seattle Toronto Montreal Melbourne Osaka Mumbai"
)
"""None of them a capital."""
