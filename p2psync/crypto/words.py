"""The words of pairing codes: 1024 short, common ones, so that each carries ten bits and can be read over a telephone.

Any two differ by at least two letters added, left out or changed, so a single slip of the finger never makes another
word. The list is part of the protocol: its order gives each word its number.
"""

WORDS = tuple(
    """
able absorb accent acid acorn acre actor adapt adobe adult afar agenda agile agree ahead alarm album alert algae alibi
alien alive almond alone alpine amber amigo ample anchor angel animal ankle annex answer antler anvil apart apron
arbor arch arena argue aroma arrow artist ascend ashen asset atlas atom attic audio august aunt autumn avenue avoid
awake award axis bacon badge bagel baker balance balcony ballet bamboo banana bandit banjo banner barber barley barn
barrel basin basket battle bazaar beagle beam beard beaver bedrock beehive beetle begin behind belly bench berry
beside better beyond bicycle bingo birch bishop bison blanket blazer blend bliss bloom blossom blouse bobcat body bold
bonfire bonus border boulder bounce bowl boxer brace braid branch brass bread breeze brick bridge brief bright bring
bronze brook brown brush bubble bucket buckle budget buffalo bugle build bulb bunker burger burrow bushel butler
button buyer buzzer cabin cactus cadet cage calm camel camera canal candle candy canoe canvas canyon captain caramel
carbon cargo carol carpet carrot carve cashew castle casual catalog cause cavern cedar celery cellar cello cement
census center cereal chain chalk chamber chapel charm cheek cheese chef cherry chess chicken child chimney choice
chorus cider cinema circle circus citrus city civic clam clean clerk clever cliff climb clinic cloak cloud club
cluster coach coast cobalt cobra cocoa coconut coffee coin colony color comet comic compass concert condor copper
coral corner cosmos cottage cotton cougar council count coupon cover cowboy coyote cozy cradle craft crane crater
crayon cream credit crew cricket crimson crisp crop cross crowd crystal cube cuddle culture curb curious curtain
cushion custom cycle cymbal daily damp dance dapper daring data dawn debut decade decent deck decor define delta denim
dentist depot depth derby desert detail device dial diamond diary diesel diet digit dinner diploma direct disco ditch
diver doctor dodge dolphin domain domino donkey door double dough dove dozen dragon drama drawer dress drift drill
drive drum duchess dune dusk dynamo eager early earth easel east echo eclipse edge edit effect eight elbow elder
elegant element elf elite emblem emerald empire enamel energy engine enjoy enough entry epic equal errand escort essay
estate evening event exact exam exhibit exotic expert extra eyebrow fabric face fairy falcon family famous fancy farm
fashion fathom fauna feather fence fern fiber fiction fiddle field fifty figure film filter final finch finger finish
fire fiscal fish flag flame flannel flash flavor fleet flint flock floor fluid flute foam focus fog foil folk fondue
forest forge formal fortune fossil fragile fresh friend frost frozen fruit fudge funnel future gadget galaxy gallop
game garage garden garlic garnet gather gecko gem genius gentle geyser giant gift giggle glad glass glaze glide globe
glory glow glue goat goblet golden golf goose gopher gospel gossip gown grain grand grape gravel green grid grocer
groove ground group growth guard guava guest guitar gypsum habit hall hamlet hammer happy harp hatch haven hawk hazel
heart heavy helium helmet herald herb hermit heron hike hippo hobby hockey hollow honest honey hood hope hornet horse
hotel hour human humble humor hunter hurdle hurry husky hut hybrid hymn icicle icon idea idol igloo image impact
income index indigo indoor infant inform ink inlet input insect inside invent iris island item ivory ivy jacket jade
jaguar jam jazz jeans jersey jewel jigsaw joke jolly joy juice jumbo jump jungle junior jury just kale kayak keen
keeper kennel kettle kick kind kiosk kite kitten kiwi knee knight knot koala label ladder lady lagoon lake lamb laptop
large laser laugh launch laurel lava lavish leader leaf league legacy legend lemon lens lentil lesson level lilac lily
lime linen lion liquid list lizard llama local locket logic lotus lounge lucky lumber lunar luxury lynx lyric magic
magnet magpie maize major mango mantle maple marble margin marina market maroon marsh mascot mason master matrix
meadow meal melody melon member memory mentor menu mesa meteor method metro mighty milk mimic mint minute mirror mixer
mobile model modern module mohair moment moon mosaic moss motor mouse movie muffin mural muscle museum music myth
napkin nation native nature navy nebula nectar needle neon nephew nest never nickel nimble noble noise nomad noodle
north novel nurse nutmeg nylon oak oasis object oboe ocean octave office omega omelet onion onyx opal opera optic
orange orbit orchid organ origin osprey otter oven owner oxygen oyster ozone paddle paint palace panda panel paper
parade parcel park party pasta pastel path patio patrol peach peanut pearl pebble pecan pencil pepper person petal
phone photo piano picnic pigeon pilot pine pirate pizza planet plate player plaza plenty plum poem polar polka pollen
polo pond porch portal potato powder pretty prince prism prize profit proof proud public pulley puma pupil puppet
purple puzzle python quail quartz queen quick quiet quill quiver quota rabbit radar radio radish raisin rally random
rapid razor record reef reform regal region relay relic remedy rent rescue resort result reward rhythm ribbon rice
ripple road robin robot rodeo rose royal rubber ruby rudder rug ruler rumba runway rustic safari saga salad salmon
salute sand satin sauce scale scarf scene school scout script scroll search season secret seed senate senior sequel
series seven shadow shark shelf shield ship shoe shovel shower shrimp sierra signal silent silver simple siren sketch
skill skirt sky sleeve slogan smile smoke snack snail snow soccer social soda solid sonata song sonic soup south space
spider spiral spirit sponge spoon spring spruce squad square stable stage stamp star statue steam steel step stone
storm straw street studio sugar suit summer summit sunset supper surf swan swift symbol syrup system taco talent tank
tape target temple tennis theory thread throne thumb ticket tiger timber tissue title today tomato topaz topic tower
trail treaty tree tribe trophy truck tulip tundra turban turkey turtle tutor twelve twin uncle under unique unit
urchin useful usher vacuum valley valve vapor vault velvet vendor verse vessel victor video violet violin virtue
vision vivid volume voyage waffle wagon walnut walrus waltz water wave wealth whale wheat wheel willow window winter
wisdom wonder wool world writer yacht yard yellow yeti yogurt young zebra zenith zephyr zigzag zinc zipper zodiac
""".split()  # noqa: SIM905 - a thousand quoted lines would not read better
)
