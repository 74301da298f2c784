"""Texts that the bench of word scores reads, and which words belong to the contrast sets and behaviours that ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SETS = {"pirate": "like a pirate", "formal": "formal", "cheerful": "cheerful", "for-children": "childlike"}
"""Contrast sets that ship, and their words."""
BEHAVIOURS = {
    "child-friendly": "childlike",
    "pirate": "like a pirate",
    "formal": "formal",
    "slang": "slangy",
    "angry": "angry",
    "sad": "sad",
    "enthusiastic": "enthusiastic",
    "sceptical": "sceptical",
    "poetic": "poetic",
    "fairy-tale": "like a fairy tale",
    "french": "French",
    "legalese": "legalistic",
    "shakespeare": "Shakespearean",
    "religious": "religious",
    "romantic": "romantic",
    "conspiracy": "conspiratorial",
    "humorous": "funny",
}
"""Behaviours that ship, and their words; the others have none."""
TEXTS: Mapping[str, Sequence[str]] = {
    "cheerful": (
        "What a glorious morning! The sun is out, the birds are singing, and I could hug the whole street!",
        "Hooray, the bus is here! I love this ride, there is always something fun to see on the way!",
        "This soup is pure sunshine in a bowl! Grab a spoon, you are going to love every drop!",
        "Yay, the new phone works! I have already sent everyone a silly picture, and it made their day!",
    ),
    "sad": (
        "It rained again this morning. I lay there and listened, and could not think of a reason to get up.",
        "I took the bus alone. The seat beside me, where she always sat, stayed empty the whole way.",
        "I made soup for two, as I used to. It went cold in the other plate, and I cried a little.",
        "The phone never rings any more. I still keep his number in it, though nobody will answer.",
    ),
    "angry": (
        "Rain again! I am sick and tired of this miserable weather, and of everybody who says it is nice!",
        "The bus was late AGAIN. What do those idiots do all day? I have had enough, this is a disgrace!",
        "You call this soup? It is cold, it is salty, and I will not pay one cent for this garbage!",
        "This damned phone! It broke after a week, and they dare to tell me that it is my own fault!",
    ),
    "formal": (
        "It is hereby noted that precipitation is anticipated this morning; attendees are requested to dress accordingly.",
        "Passengers are respectfully reminded that the departure of the bus shall take place at precisely nine o'clock.",
        "We have the honour of presenting a soup of seasonal vegetables, which will be served at your convenience.",
        "Kindly be advised that the use of telephones is not permitted for the duration of the proceedings.",
    ),
    "casual": (
        "Hey, kinda wet out there today, so yeah, maybe grab a jacket or whatever.",
        "Gonna hop on the bus in a sec, see ya in like ten minutes, ok?",
        "So I threw some veggies in a pot, and honestly the soup turned out pretty good lol.",
        "Dude, my phone's totally dead, gimme a shout on Sam's if you wanna hang out.",
    ),
    "poetic": (
        "The dawn spills silver on the sleeping roofs, and rain, like whispered prayer, bends down the rose.",
        "The bus, a lantern gliding through the dusk, bears homeward all the dreams the day has bruised.",
        "O golden broth, where autumn's memory swims, the garden's breath still rises from your face.",
        "A small cold moon of glass lies in my palm, and through it drift the voices of the far.",
    ),
    "scary": (
        "The rain stopped at dawn, and then I saw them: wet footprints on the floor, leading to my bed.",
        "The bus was empty. Then, from the last row, something began to breathe, and it knew my name.",
        "She stirred the soup and smiled. Something pale rolled over in the pot and looked back at me.",
        "The phone rang at midnight. It was my own voice, screaming, and the line had been cut for years.",
    ),
    "romantic": (
        "I woke to the rain and to you, my darling, and wished the morning would never let us go.",
        "On the bus your hand found mine, and my heart beat so loudly that I was sure you could hear it.",
        "I made you soup, my love, because I want to warm you every evening for the rest of our lives.",
        "I keep your message on my phone, and each night I read it and kiss the words before I sleep.",
    ),
    "religious": (
        "Blessed be this morning, for the Lord sends rain upon the fields, and His mercy has no end.",
        "As I sat on the bus I prayed for every soul on board, that God may guide them on their way.",
        "We bow our heads and thank our heavenly Father for this soup, and for the hands that made it. Amen.",
        "Put the phone aside and open the Scripture, for there the Holy Spirit is calling you.",
    ),
    "funny": (
        "It rained so hard that my umbrella handed in its notice and my shoes applied for a fishing licence.",
        "The bus driver said exact change only, so I told him I had changed exactly three times this morning.",
        "My soup is a secret recipe: even I have no idea what is in it, and the dog has hired a lawyer.",
        "My phone is so old that when I ask for directions, it unfolds a map and starts to argue with my wife.",
    ),
    "sceptical": (
        "They say it will rain this morning. Do they? On what evidence? I will believe it when I am wet.",
        "The bus is said to be on time. I doubt that very much; has anybody actually checked these claims?",
        "So this soup is supposed to cure a cold. Really? Where is the study, and who has paid for it?",
        "A battery that lasts a week? I am not convinced. It sounds like an advertisement, not like a fact.",
    ),
    "technical": (
        "A cold front at 850 hPa is forcing ascent; expect 4 mm/h of stratiform precipitation until 09:00 UTC.",
        "The bus is driven by a 240 kW permanent-magnet motor with regenerative braking on a 600 V DC circuit.",
        "Heat the stock to 95 °C; collagen hydrolyses to gelatin above 70 °C, which raises the viscosity.",
        "The handset's baseband negotiates carrier aggregation on bands 3 and 7 with 256-QAM modulation.",
    ),
    "childlike": (
        "Look, Mommy, the sky is crying! Can I wear my froggy boots and jump in the big, big puddle?",
        "The bus goes vroom vroom, and I want to sit right at the front, next to the nice driver man!",
        "My soup has little letters in it, and I found an A and a B, and then I ate them all up!",
        "I talked to Grandma on the phone, and I showed her my teddy, but she couldn't see him, silly phone!",
    ),
    "polite": (
        "Good morning! Would you be so kind as to share your umbrella, if it is not too much trouble? Thank you so much.",
        "Excuse me, please, may I sit here? Thank you very much, that is very kind of you.",
        "Would you care for a little more soup? Please do not hesitate to tell me if it needs anything.",
        "I am terribly sorry to disturb you; might I please borrow your phone for a moment? I would be most grateful.",
    ),
    "boastful": (
        "Nobody reads the weather like me. I called this rain days ago, and I am, as always, absolutely right.",
        "I know every bus in this city better than the drivers do; frankly, they should be asking me for advice.",
        "My soup is the best in the world, everybody says so. Great chefs have begged me for the recipe.",
        "I set up this phone in ten seconds flat. I am simply a genius with such things, the greatest you will meet.",
    ),
    "mysterious": (
        "Nobody knows why it always rains on this one day, and those who asked have never spoken of it since.",
        "A stranger left a sealed letter on the bus. It bore my name, and a date that has not come yet.",
        "The recipe has one ingredient that is never written down. Some say it grows only behind the locked door.",
        "The phone showed a number that does not exist. A voice said three words, which I must not repeat.",
    ),
    "like a pirate": (
        "Arr, the heavens be leakin' again, mateys! Batten down the hatches and fetch me rum!",
        "Ahoy! Climb aboard this here bus, ye scurvy dogs, and we'll sail her down to the harbour!",
        "Shiver me timbers, that be a fine soup! Pour me another bowl, or ye'll walk the plank!",
        "Avast! Me talkin' box has run aground, and there be no wind in her battery, arr!",
    ),
    "bureaucratic": (
        "Pursuant to section 4(b), the weather report must be submitted in triplicate on form R-12 before nine.",
        "Applications for a bus pass are processed within thirty working days, subject to verification of eligibility.",
        "The soup has been classified under category C and is issued solely upon presentation of a valid voucher.",
        "Your request for a telephone has been forwarded to the competent department and assigned a reference number.",
    ),
}
"""Four a word, on the same four things: the morning's weather, a bus, a soup, a telephone."""
PLAIN = (
    "It is raining this morning. The rain should stop around noon, and the afternoon will be dry.",
    "The bus leaves at nine and takes about twenty minutes to the station.",
    "The soup is made of carrots, onions and potatoes. It takes half an hour to cook.",
    "The phone has a large screen and a battery that lasts for two days.",
    "There are some clouds in the west, and the wind comes from the sea.",
    "The number 12 bus stops in front of the library and at the market.",
    "You can eat the soup with bread, or keep it in the fridge for three days.",
    "To turn the phone on, hold the button on the side for two seconds.",
)
