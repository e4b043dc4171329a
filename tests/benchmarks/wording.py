"""What customers say and what the help desk of `traffic` can do: words, sentences, tools.

Sentences are put together from lists, so that hundreds of millions differ and two of them share
few runs of characters. A name in braces is drawn from `VOCABULARY`; all text stands in JSON as it
is, so it has no quotes, backslashes or line breaks.
"""

from __future__ import annotations

from typing import Any


def _words(text: str, separator: str = " ") -> list[str]:
    return text.split(separator)


# fmt: off
CLIENTS = [
    "web-eu", "web-us", "app-ios", "app-android", "voice-line", "kiosk-north", "kiosk-south",
    "partner-api",
]
AREAS = [212, 303, 312, 404, 415, 503, 512, 617, 702, 713, 808, 907]
VOCABULARY = {
    "adjective": _words(
        "amber azure beige black blue bronze broad compact copper cream crimson curved dark deep "
        "double dusty faded flat folding green grey heavy high indigo ivory large light long low "
        "mauve narrow ochre olive orange oval pale pink plain purple red round rustic sage "
        "scarlet shiny short silver single slim small square tall teal tiny violet white wide "
        "yellow"
    ),
    "material": _words(
        "acacia acrylic alder ash bamboo beech birch brass cane canvas cedar ceramic cherry "
        "chrome cork cotton denim elm felt glass granite hemp iron jute leather linen maple "
        "marble mohair oak pine plastic quartz rattan satin sisal slate steel stone suede teak "
        "tin velvet walnut wicker wool zinc"
    ),
    "noun": _words(
        "armchair ashtray bathmat basket bedframe bench birdcage blanket blind bookcase bookend "
        "bowl bracket breadbin broom bucket bunk cabinet candle carpet chair chest clock coaster "
        "cot couch cradle crate cup cupboard curtain cushion daybed desk dish divan doorbell "
        "doormat drawer dresser duvet easel fan fender firepit flask footrest fork frame fridge "
        "futon garland goblet grill hammock hamper handle hanger heater hinge hook jar jug kettle "
        "knob ladder ladle lamp lantern locker loom mattress mirror mug napkin oven pan parasol "
        "pedestal pillow pitcher planter plate pouffe quilt rack radiator railing recliner rug "
        "saucer scale screen sconce settee shelf shutter sideboard sink sofa spade spoon stool "
        "stove table tap tent toaster towel tray trolley trunk tub tumbler valance vase wardrobe "
        "washer wreath"
    ),
    "city": _words(
        "Aachen Aberdeen Antwerp Arles Basel Bath Bergen Bilbao Bologna Bonn Bordeaux Bremen "
        "Brest Bristol Bruges Brno Cádiz Cardiff Cologne Cork Delft Derby Dijon Dover Dresden "
        "Dublin Exeter Faro Florence Galway Gdansk Geneva Ghent Girona Glasgow Graz Haarlem "
        "Hamburg Hull Kiel Krakow Leeds Leiden Leipzig Lille Linz Lisbon Lucca Lyon Malmö Mainz "
        "Milan Munich Namur Nantes Naples Nice Norwich Odense Oslo Oxford Parma Pisa Porto "
        "Potsdam Prague Reims Rennes Riga Rouen Salzburg Seville Siena Split Tallinn Toulouse "
        "Trier Turin Turku Ulm Utrecht Venice Verona Vienna Vilnius York Zagreb Zürich"
    ),
    "first": _words(
        "Ada Adrian Agnes Alina Amir Anton Beatriz Boris Bruno Carla Cedric Clara Dario Dina "
        "Edgar Elena Emil Esther Fatima Felix Flora Gustav Hana Hector Ida Igor Ines Ivan Jana "
        "Jasper Karim Klara Lars Leila Lorenz Lucia Magnus Mara Milo Nadia Nils Olga Oscar Paula "
        "Pavel Rosa Samir Selma Tariq Tessa Ursula Viktor Wanda Yusuf Zora"
    ),
    "last": _words(
        "Abbott Albers Baker Barros Becker Bianchi Blake Bosch Castro Conti Costa Dalton Dekker "
        "Duarte Eklund Engel Fabre Ferrari Fischer Foster Gallo Garnier Haas Hansen Hoffman "
        "Horvat Ivanov Jansen Keller Kovacs Lambert Larsen Lindqvist Lopez Marchetti Meyer Moreau "
        "Nagy Novak Olsen Palmer Petrov Quinn Ricci Romero Sato Schmidt Silva Tanaka Turner Ueda "
        "Vargas Vogel Weber Winter Yilmaz Zeman"
    ),
    "relative": _words(
        "aunt boss brother carer cousin daughter doctor father friend grandson husband landlord "
        "lodger mother neighbour nephew niece partner sister son teacher tenant trainer uncle "
        "wife"
    ),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "month": _words(
        "January February March April May June July August September October November December"
    ),
    "quantity": _words("2 3 4 5 6 7 8 9 10 11 12 14 15 16 18 20 24 25 30 36 40 48 50 60"),
    "reason": _words("damaged faulty incomplete late unwanted"),
    "status": _words("packed shipped delayed customs waiting"),
    "team": _words("billing complaints repairs sales"),
    "fault": _words(
        "buckles bulges burns chafes chips cracks creaks crumbles drips droops fades flakes "
        "flickers frays hums jams leaks leans peels rattles rusts sags scratches shrinks slips "
        "smells smokes splits squeaks stains sticks swells tilts twists warps wobbles"
    ),
    "part": _words(
        "back base bolt bottom cable catch corner cover edge fabric foot frame front glaze grip "
        "hem hinge inside joint label leg lid lining lock motor neck nozzle paint plug rim rivet "
        "seam side spring strap switch thread top valve varnish wheel zip"
    ),
    "occasion": _words(
        "a baptism, a barbecue, a birthday, a carnival, a christening, a concert, a dinner, a "
        "fair, a farewell, a funeral, a garden party, a housewarming, a jubilee, a market, a "
        "meeting, a move, a picnic, a play, a raffle, a reunion, a school fête, a seminar, a "
        "trip, a visit, a wake, a wedding, an anniversary, an audit, an exam, an exhibition, an "
        "opening, guests",
        ", ",
    ),
    "place": _words(
        "attic balcony barn basement bathroom bedroom boat cabin cafe camper cellar chapel clinic "
        "corridor cottage dormitory flat gallery garage garden gym hall hostel kitchen library "
        "lobby loft nursery office pantry parlour porch pub shed shop studio study tavern terrace "
        "theatre villa workshop yard"
    ),
    "feeling": _words(
        "amused angry annoyed anxious baffled bored calm confused curious cross desperate eager "
        "fond furious glad grateful hopeful hurt keen lost nervous patient proud puzzled sad "
        "sorry surprised tense tired torn upset weary worried"
    ),
    "hour": [str(n) for n in range(6, 23)],
    "price": [str(n) for n in range(12, 990, 7)],
}
OPENERS = ["", "", "", "", "Hello. ", "Hi there, ", "Good day! ", "Excuse me: "]
DETAILS = [
    "My {relative} {first} in {city} needs it for {occasion}.",
    "The {part} {fault} and the {part2} {fault2}.",
    "{first} {last} promised it for {day} at {hour}.",
    "It cost {price} euros, and my {relative} is {feeling}.",
    "I am {feeling} because the {part} {fault} in our {place}.",
    "We want it in the {place} of the {place2} by {month} {hour}.",
    "Your {city} shop said {day}, {first} {last} {month}.",
    "Last {month} my {relative} was {feeling} about the {part}.",
    "The {adjective} one from {city} {fault}, ask {first}.",
    "{occasion2} near {city} is on {day}; {first} is {feeling}.",
    "Some {relative} in {city} paid {price} for {material}.",
    "Since {day} the {part} {fault}, says {first} from the {place}.",
]
VOCABULARY |= {
    "part2": VOCABULARY["part"], "fault2": VOCABULARY["fault"], "place2": VOCABULARY["place"],
    "occasion2": [phrase.capitalize() for phrase in VOCABULARY["occasion"]],
}
EARLIER = [
    "Where is {order}?", "Any news about {order}, {first} {last}?", "When does {order} come?",
    "My {noun} is late, {order}.", "{order} was due on {day}, where is it?",
]
REPLIES = [
    "Could you tell me where you bought the {noun}?",
    "I am sorry about the {adjective} {noun}. Which of our shops was it, the one in {city}?",
    "Before I do anything about {order}: is the name on it {first} {last}?",
    "We have no {material} {noun} under that name. Can you send a photo?",
    "Happy to help. Does the {part} show a number of six letters?",
    "That is a question for our shop in {city}, which opens on {day} at {hour} o'clock.",
    "Thank you for telling us. Is {day} or {month} better for you?",
    "I can only help with one thing at a time. Shall we begin with the {noun}?",
]
_SAID = {
    "track_order": (
        ["Where is", "What happened to", "When do I get", "Still waiting for", "Any news about",
         "Please trace", "Nobody can find", "How far away is",
         "Who has", "Did you lose", "Is somebody bringing", "Let me know about", "Track"],
        [" of order {order}?", ", due in {city} on {day}, number {order}?", " ({order})?",
         ", {order}, due on {day}?", "? My number is {order}.",
         " for {first} {last}, {order}?"],
    ),
    "open_return": (
        ["I want to send back", "Please take back", "I am returning", "Come and collect",
         "Kindly refund", "I regret buying", "Give me my money for", "I do not accept",
         "No longer keeping", "How do I return", "Exchange or refund", "I must give back"],
        [" of order {order}, it is {reason}.", ", {reason} on arrival, order {order}.",
         ", {order}, since it is {reason}.", ". It was {reason}; the order is {order}.",
         " from {city} ({order}): {reason}.", ", which {first} found {reason}, see {order}."],
    ),
    "book_repair": (
        ["Somebody must repair", "Please fix", "I need a technician for", "Send a mechanic for",
         "Can you mend", "Have a look at", "Book an engineer for", "Restore", "Who repairs",
         "Arrange a visit for", "I broke", "Service"],
        [" in {city} on {day}, bought as {order}.", ", {order}, {day} suits me, in {city}.",
         " at my place in {city}, {day} please ({order}).", ". I live in {city}; {day}? {order}.",
         " from {order}: {city}, any time on {day}.", " of {first} in {city}, {day}, {order}."],
    ),
    "check_stock": (
        ["Do you still sell", "Is there a chance to get", "I am looking for", "Have you got",
         "Can I pick up", "Does anybody stock", "Please reserve", "I would like to see",
         "Keep for me", "Could you set aside", "Who sells", "Find me"],
        [" in {city}, {quantity} of them?", ", {quantity} pieces, near {city}?",
         " at {city}? I take {quantity}.", " x {quantity} in your {city} branch?",
         ", about {quantity}, before {day} in {city}?", " ({quantity}, {city}, for {first})?"],
    ),
    "change_delivery": (
        ["Please bring", "I would rather receive", "Send", "Redirect", "Deliver", "Drop off",
         "Let the driver take", "Do not ship home", "Could you move", "Forward", "Reroute",
         "My neighbour accepts"],
        [" to {city} on {day}, order {order}.", ", {order}, on {day} in {city} instead.",
         " ({order}) to {first} {last} in {city}, {day}.", ": {city}, {day}, number {order}.",
         " on {day}, and to {city}, please; {order}.", " of {order} over to {city} by {day}."],
    ),
    "escalate": (
        ["I demand a person for", "Put me through about", "No more robots, it is about",
         "A human please, for", "Who is in charge of", "Get your manager, it concerns",
         "I complain about", "Call me back about", "Enough talk about", "Connect me, this is on"],
        [", order {order}, {team} please.", ", {team} knows {order}.", " to {team} ({order}).",
         ". {first} {last} of {team} has {order}.", ", {order}, and only {team} will do.",
         "! {order}, {team}, now."],
    ),
}
# fmt: on
CORES = {
    tool: [
        f"{lead} {owner} {{adjective}} {{material}} {{noun}}{end}"
        for lead in leads
        for owner in ("the", "my", "our", "this", "that")
        for end in ends
    ]
    for tool, (leads, ends) in _SAID.items()
}
ARGUMENTS = {
    "track_order": r"\"order_id\": \"{order}\"",
    "open_return": r"\"order_id\": \"{order}\", \"reason\": \"{reason}\"",
    "book_repair": r"\"order_id\": \"{order}\", \"city\": \"{city}\", \"day\": \"{day}\"",
    "check_stock": (
        r"\"product\": \"{adjective} {material} {noun}\", \"city\": \"{city}\", "
        r"\"quantity\": {quantity}"
    ),
    "change_delivery": r"\"order_id\": \"{order}\", \"city\": \"{city}\", \"day\": \"{day}\"",
    "escalate": r"\"order_id\": \"{order}\", \"team\": \"{team}\"",
}
"""As they stand inside a JSON text."""

NOT_IN = ("change_delivery", "escalate", "escalate")
"""Tools that a version lacks, one after the other."""
CONTACTS = ("open_return", "book_repair")
"""Tools that take a ``contact``, too."""

_TEXT = {"type": "string"}
_ORDER = {"order_id": _TEXT}
_TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "track_order": ("Say where an order is.", _ORDER),
    "open_return": (
        "Take an item back.",
        {**_ORDER, "reason": {"type": "string", "enum": VOCABULARY["reason"]}},
    ),
    "book_repair": ("Book a visit of a technician.", {**_ORDER, "city": _TEXT, "day": _TEXT}),
    "check_stock": (
        "See whether a shop has it.",
        {"product": _TEXT, "city": _TEXT, "quantity": {"type": "integer"}},
    ),
    "change_delivery": ("Deliver elsewhere or later.", {**_ORDER, "city": _TEXT, "day": _TEXT}),
    "escalate": (
        "Hand over to a person.",
        {**_ORDER, "team": {"type": "string", "enum": VOCABULARY["team"]}},
    ),
}
PROMPT = """You are the help desk of Alder & Finch, a shop for furniture and household goods.
Read the customer's last message and call exactly one tool. Take names, numbers and places from the
message as they are written; never invent an order number. Dates stay the weekday the customer says.
If no tool fits, or something that a tool requires is missing, ask one short question instead.
{policy}
Prices, discounts and legal questions are not yours to answer. Be brief and friendly."""
POLICIES = [
    "Returns are free within two weeks of delivery.",
    "Returns are free within 30 days, for members 60.",
    "Returns are free within 30 days, repairs for two years.",
]
"""One after the other."""


def tool(name: str, hint: str = "") -> dict[str, Any]:
    """A tool as a request names it; ``hint`` ends its description."""
    description, properties = _TOOLS[name]
    parameters = {
        "type": "object",
        "properties": {**properties, **({"contact": _TEXT} if name in CONTACTS else {})},
        "required": list(properties)[:1],
    }
    function = {"name": name, "description": description + hint, "parameters": parameters}
    return {"type": "function", "function": function}
